"""Starts of one run by 30 processes at once, each several times: new, resumed, overwriting, failing, killed.

`racing.py FOLDER` prints a JSON list of what each process saw. The training is a stand-in that only checks that it is
alone and writes a line, so no process imports torch; all are forked from this one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

from alignment.config.sections import RunConfig
from alignment.errors import UserError
from alignment.runs.lease import _start_of
from alignment.training.stage import run_stage

PROCESSES, STARTS = 30, 4
STARTED_BY = ([], ["--resume", "auto"], ["--overwrite"])


def train(config: RunConfig, ending: str) -> dict[str, str]:
    """Ends as told; raises AssertionError if another process trains in the folder."""
    inside = config.run_dir.parent / "inside"
    if inside.exists():
        assert _start_of(int(inside.read_text())) is None, "another process trains here"
    inside.write_text(str(os.getpid()))
    journal = config.run_dir / "samples.jsonl"
    assert not journal.exists(), "the journal is another run's"
    journal.write_text(json.dumps({"pid": os.getpid()}) + "\n")
    time.sleep(0.02)
    assert json.loads(journal.read_text()) == {"pid": os.getpid()}
    if ending == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    inside.unlink()
    if ending == "failed":
        raise UserError("failed as told")
    return {"model": f"of {os.getpid()}"}


def race(folder: Path, number: int) -> None:
    """Start the run a few times; each exit code and the process's stderr are written to FOLDER/seen-NUMBER."""
    draw = random.Random(number)
    for start in range(STARTS):
        by, ending = draw.choice(STARTED_BY), "done" if draw.random() < 0.5 else "failed"
        if start == STARTS - 1 and number % 3 == 0:
            ending = "killed"
        code = run_stage(
            "toy", RunConfig, lambda c, e=ending: train(c, e), lambda c, n: {}, [str(folder / "c.yaml"), *by]
        )
        print(json.dumps({"code": code, "by": by, "ending": ending}), file=sys.stderr)
        time.sleep(draw.random() * 0.1)


def fork(folder: Path, number: int) -> int:
    if child := os.fork():
        return child
    seen = os.open(folder / f"seen-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(seen, 1)
    os.dup2(seen, 2)
    try:
        race(folder, number)
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    folder = Path(sys.argv[1])
    sys.modules["alignment.models.onednn"] = types.SimpleNamespace(linear_layers=nullcontext)  # the other needs torch
    children = [fork(folder, number) for number in range(PROCESSES)]
    for child in children:
        os.waitpid(child, 0)
    assert "torch" not in sys.modules
    config = [str(folder / "c.yaml"), "--overwrite"]
    print(run_stage("toy", RunConfig, lambda c: train(c, "done"), lambda c, n: {}, config))


if __name__ == "__main__":
    main()
