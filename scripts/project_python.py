"""Start a script anew under the project's `.venv`, so that whoever runs it need not know what that is."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTED = "ALIGNMENT_SCRIPT_STARTED"


def use_project_python() -> None:
    """Replace this process by the same command under `.venv/bin/python`, if there is one and it is not running yet.

    Exits with code 2 and one line where the packages are missing.
    """
    python = ROOT / ".venv" / "bin" / "python"
    inside = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    # os.path, as Path.exists raises where a folder may not be entered.
    # The mark keeps a `.venv` that is no virtual environment from starting itself for ever.
    if os.path.exists(python) and not inside and STARTED not in os.environ:
        os.execve(python, [str(python), *sys.argv], os.environ | {STARTED: "1"})
    sys.path.insert(0, str(ROOT))  # this checkout, and not one that happens to be installed
    if find_spec("rich") is None:
        name = Path(sys.argv[0]).name
        print(f"{name}: this Python lacks the project's packages; scripts/test sets them up in .venv", file=sys.stderr)
        sys.exit(2)
