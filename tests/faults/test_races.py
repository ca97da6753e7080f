"""Several processes start, resume or overwrite one run, or import into one new file, at the same moment."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import launching
import pytest
from races import CONTENDERS, OPTIONS, ROWS

from alignment.ratings import RatingsStore

TITLE = "Races"
ANSWERS = dict.fromkeys(OPTIONS, "one trains, the others are told who has the folder; nothing lost, nothing twice")


def raced(folder: Path, kind: str, count: int) -> list[list[dict[str, object]]]:
    """What each contender of each race saw."""
    variables = {name: value for name, value in launching.environment().items() if name not in ("RANK", "SLURM_JOB_ID")}
    command = [sys.executable, str(Path(__file__).with_name("races.py")), str(folder), kind, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables | {"ALIGNMENT_TICK": "0"}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check_run(folder: Path, kind: str, seen: list[dict[str, object]]) -> None:
    """One contender has trained; the others were told who owns the folder; nothing is lost, nothing there twice."""
    assert sorted(one["code"] for one in seen) == [0, *[2] * (CONTENDERS - 1)], seen
    for loser in (one for one in seen if one["code"]):
        assert "belongs to process" in loser["said"] and len(str(loser["said"]).splitlines()) == 1
    run_dir = folder / "runs" / "toy"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (winner,) = [one for one in seen if one["code"] == 0]
    assert len(rows) == 1 and f"of {rows[0]['pid']}" in winner["said"]
    assert json.loads((run_dir / "exit.json").read_text())["model"] == f"of {rows[0]['pid']}"
    names = sorted(path.name for path in run_dir.iterdir())
    assert names == ["config.json", "exit.json", "lease", "metrics.jsonl", "report.html", "run.json"], names


def check_import(folder: Path, seen: list[dict[str, object]]) -> None:
    """All rows of the good files are there, once; the bad file has left nothing and taken nothing."""
    assert [one["code"] for one in seen] == [*[0] * (CONTENDERS - 1), 2], seen
    with closing(RatingsStore(folder / "r.db")) as store:
        prompts = sorted(item.prompt[-1]["content"] for item in store.items())
        assert len(store.ratings()) == len(prompts)
    assert prompts == sorted(f"{number}.{row}?" for number in range(CONTENDERS - 1) for row in range(ROWS))


@pytest.mark.parametrize("count", [3, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [*OPTIONS, "import"])
def test_races(tmp_path, kind, count, tried):
    """Four kinds: 12 races, and 100 in the slow tests."""
    answer = ANSWERS.get(kind, "every row of the good files is there once; the bad file takes nothing away")
    tried(f"{kind}: {CONTENDERS} processes at once", answer, count)
    for number, seen in enumerate(raced(tmp_path, kind, count)):
        assert not any("Traceback" in str(one["said"]) for one in seen), seen
        if kind == "import":
            check_import(tmp_path / str(number), seen)
        else:
            check_run(tmp_path / str(number), kind, seen)
