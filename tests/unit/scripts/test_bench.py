"""The benchmark's arithmetic, its refusal to compare unlike work, and that its contestants do the same work."""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace

import bench
import pytest
import torch
from benchmarks import sft
from benchmarks.sft_ours import Contestant as Ours
from benchmarks.sft_trl import Contestant as Trl

from alignment.errors import UserError

WORK = {"tokens": 100, "trained": 60, "loss": 5.0}


def test_spread_is_median_least_and_greatest():
    assert bench.spread([3.0, 1.23456, 2.0, 9.0]) == {"median": 2.5, "min": 1.235, "max": 9.0}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tokens": 99}, "tokens 99, ours 100"),
        ({"trained": 61}, "trained 61, ours 60"),
        ({"loss": 5.001}, "loss 5.001"),
    ],
)
def test_unlike_work_is_not_compared(change, part):
    bench.same_work({"ours": WORK, "packed": WORK})
    with pytest.raises(UserError, match=part):
        bench.same_work({"ours": WORK, "packed": WORK | change})


class Scripted:
    """A contestant whose runs take the seconds it is given."""

    def __init__(self, seconds):
        self.seconds = iter(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, what):
        return WORK if what == "check" else {"seconds": next(self.seconds), "cpu_seconds": 2.0, "train_loss": 4.0}


def test_ratios_are_taken_within_a_round():
    """A round in which the machine was busy slows both and leaves their ratio."""
    seconds = {"ours": [1, 10, 2], "defaults": [4, 40, 6], "packed": [2, 20, 2]}
    found = bench.measure_speed(lambda name: Scripted(seconds[name]), list(seconds), rounds=3)
    assert found["ratio"] == {"median": 4.0, "min": 3.0, "max": 4.0}
    assert found["ratio_best"] == {"setting": "packed", "median": 2.0, "min": 1.0, "max": 2.0}
    assert found["cpu_ratios"]["packed"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert found["rates"]["ours"] == {"median": 50.0, "min": 10.0, "max": 100.0}


def test_a_contestant_that_dies_says_why(tmp_path):
    with (
        pytest.raises(UserError, match="nowhere"),
        bench.Process(sys.executable, "nowhere", tmp_path, {}, 1) as process,
    ):
        process.ask("check")


def test_the_memory_of_a_process_is_read(tmp_path):
    from benchmarks.worker import resident

    assert 0 < resident("VmRSS") <= resident("VmHWM")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return folder, sft.prepare(folder, Namespace(data=None, seed=0, rows=8, memory=False))


def test_all_contestants_do_the_same_work(work, monkeypatch):
    """Ours and each of TRL's settings: as many tokens, as many trained, the same loss to the fifth digit."""
    folder, about = work
    assert about["rows"] == 8
    checks = {"ours": Ours(folder, {}).check()}
    checks |= {name: Trl(folder, settings).check() for name, (_, settings) in sft.PEERS.items()}
    bench.same_work(checks)
    rows = json.loads((folder / "rows.json").read_text())
    assert checks["ours"]["tokens"] == sum(map(len, rows["input_ids"]))
    assert 0 < checks["ours"]["trained"] < checks["ours"]["tokens"]


def test_ours_and_the_defaults_end_at_the_same_loss(work):
    folder, _ = work
    threads = torch.get_num_threads()
    ours, theirs = Ours(folder, {}).run(), Trl(folder, {}).run()
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
    assert ours["seconds"] > 0
    assert torch.get_num_threads() == threads


def test_generated_transcripts_are_as_long_as_those_of_hh(tmp_path):
    """HH: 190 tokens on average, one in twenty beyond 512; a word here is about 1.3 tokens."""
    lines = sft.write_transcripts(tmp_path / "a.jsonl", 0).read_text().splitlines()
    words = [sum(len(m["content"].split()) for m in json.loads(line)["messages"]) for line in lines]
    assert 120 < statistics.fmean(words) < 190
    assert max(words) > 3 * statistics.fmean(words)
    assert sft.write_transcripts(tmp_path / "b.jsonl", 0).read_text().splitlines() == lines
