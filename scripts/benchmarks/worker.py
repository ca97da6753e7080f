"""A contestant's process: answers `check`, `run` and `learn SEED` with a line of JSON each. It needs no package of the
suite, so any Python can run it.

    python -m benchmarks.worker MODULE FOLDER SETTINGS

Memory is the peak of this process minus its size after the imports.
"""

from __future__ import annotations

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
    os.dup2(2, 1)  # libraries print to stderr
    contestant = importlib.import_module(f"benchmarks.{module}").Contestant(Path(folder), json.loads(settings))
    imported = resident("VmRSS")
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = getattr(contestant, command)(*map(int, arguments))
        answer["bytes"] = resident("VmHWM") - imported
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
