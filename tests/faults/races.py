"""Races of processes for one run folder, or for one ratings file that does not exist yet.

`races.py FOLDER KIND COUNT` runs COUNT races and prints a JSON list of what each contender saw: exit code and stderr.
All are forked from this process, which has imported what they need; the training is a stand-in, without torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

from alignment.cli.rate import main as rate
from alignment.config.sections import RunConfig
from alignment.labeling import formats, import_export  # noqa: F401 - before the forks
from alignment.training.stage import run_stage

CONTENDERS = 3
ROWS = 20
OPTIONS = {"start": [], "resume": ["--resume", "auto"], "overwrite": ["--overwrite"]}


def train(config: RunConfig) -> dict[str, str]:
    """Train until every other contender has been answered, so that all of them meet a living owner."""
    folder = config.run_dir.parents[1]
    with (config.run_dir / "metrics.jsonl").open("a") as journal:
        journal.write(json.dumps({"step": 1, "pid": os.getpid()}) + "\n")
    end = time.monotonic() + 60
    while len(list(folder.glob("seen-*"))) < CONTENDERS - 1 and time.monotonic() < end:
        time.sleep(0.005)
    return {"model": f"of {os.getpid()}"}


def start(folder: Path, *options: str) -> int:
    return run_stage("toy", RunConfig, train, lambda c, n: {}, [str(folder / "c.yaml"), *options])


def contend(folder: Path, kind: str, number: int) -> int:
    if kind == "import":
        return rate(["import", "--db", str(folder / "r.db"), "--format", "jsonl", str(folder / f"{number}.jsonl")])
    return start(folder, *OPTIONS[kind])


def prepare(folder: Path, kind: str) -> None:
    folder.mkdir()
    if kind == "import":
        for number in range(CONTENDERS):  # the last has too many bad rows: it fails, and must take nothing with it
            bad = number == CONTENDERS - 1
            rows = [
                {
                    "kind": "pair" if not bad or row % 4 else "none",
                    "prompt": [{"role": "user", "content": f"{number}.{row}?"}],
                    "completions": [{"text": "Yes."}, {"text": "No."}],
                    "ratings": [{"labeler": "ann", "choice": "first"}],
                }
                for row in range(ROWS)
            ]
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    (folder / "c.yaml").write_text(
        f"name: toy\ndata: {{train: d.jsonl}}\nregistry: {{name: toy}}\ntracking: {{runs: {folder / 'runs'}}}\n"
    )
    if kind == "start":
        return
    run_dir = folder / "runs" / "toy"
    if not (child := os.fork()):  # an earlier run, which was killed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run_stage("toy", RunConfig, lambda config: os._exit(9), lambda c, n: {}, [str(folder / "c.yaml")])
    os.waitpid(child, 0)
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "pid": child}) + "\n")


def fork(folder: Path, kind: str, number: int, begin: float) -> int:
    if child := os.fork():
        return child
    os.dup2(os.open(folder / f"log-{number}", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(2, 1)
    time.sleep(max(0.0, begin - time.monotonic()))
    code = 99
    try:
        code = contend(folder, kind, number)
    finally:
        sys.stderr.flush()
        (folder / f"seen-{number}").write_text(str(code))
        os._exit(0)


def race(folder: Path, kind: str) -> list[dict[str, object]]:
    prepare(folder, kind)
    begin = time.monotonic() + 0.02
    for child in [fork(folder, kind, number, begin) for number in range(CONTENDERS)]:
        os.waitpid(child, 0)
    return [
        {"code": int((folder / f"seen-{number}").read_text()), "said": (folder / f"log-{number}").read_text()}
        for number in range(CONTENDERS)
    ]


if __name__ == "__main__":
    sys.modules["alignment.models.onednn"] = types.SimpleNamespace(linear_layers=nullcontext)  # the other needs torch
    print(json.dumps([race(Path(sys.argv[1]) / str(number), sys.argv[2]) for number in range(int(sys.argv[3]))]))
