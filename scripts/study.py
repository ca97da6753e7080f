#!/usr/bin/env python3
"""Run a study of scripts/studies/: scripts/study.py NAME [its options], e.g. scripts/study.py length_bias --quick."""

import importlib
import sys
from pathlib import Path

from project_python import use_project_python

STUDIES = sorted(file.stem for file in (Path(__file__).parent / "studies").glob("*.py") if file.stem != "__init__")


def main() -> int:
    """Run the study named first with the arguments after it; returns its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"{__doc__}\n\nThe studies: {', '.join(STUDIES)}. NAME --help shows a study's options.")
        return 0
    if name not in STUDIES:
        print(f"study.py: {name!a} is no study; expected one of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    sys.argv = [f"study.py {name}", *sys.argv[2:]]
    result: int = importlib.import_module(f"studies.{name}").main()
    return result


if __name__ == "__main__":
    use_project_python()
    sys.exit(main())
