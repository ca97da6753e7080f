"""A contestant's process: answers `check`, `run` and `learn SEED`, a line of JSON each. Needs nothing of ours, so any
Python runs it.

    python -m benchmarks.worker MODULE FOLDER SETTINGS

Memory is the peak of this process less what it held after its imports.
"""

import importlib
import json
import os
import sys
from pathlib import Path


def resident(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes. A peak from getrusage would include our parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    module, folder, settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print goes to stderr
    contestant = importlib.import_module(f"benchmarks.{module}").Contestant(Path(folder), json.loads(settings))
    imported = resident("VmRSS")
    for line in sys.stdin:
        what, *numbers = line.split()
        answer = getattr(contestant, what)(*map(int, numbers))
        answer["bytes"] = resident("VmHWM") - imported
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
