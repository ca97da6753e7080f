"""The benchmark's arithmetic, its refusal to compare unlike work, and that its contestants do the same work.

Those of PPO are in test_bench_ppo.py.
"""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace

import bench
import pytest
import torch
from benchmarks import reward, sft
from benchmarks.reward_ours import Contestant as OursReward
from benchmarks.reward_trl import Contestant as TrlReward
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

    def __init__(self, seconds, work=WORK):
        self.seconds, self.work = iter(seconds), work

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, what):
        return self.work if what == "check" else {"seconds": next(self.seconds), "cpu_seconds": 2.0, "train_loss": 4.0}


def test_ratios_are_taken_within_a_round():
    """A round in which the machine was busy slows both and leaves their ratio."""
    seconds = {"ours": [1, 10, 2], "defaults": [4, 40, 6], "packed": [2, 20, 2]}
    checks, runs = bench.take_turns(lambda name: Scripted(seconds[name]), list(seconds), rounds=3)
    found = bench.sum_up(checks, runs, ["defaults", "packed"])
    assert found["ratio"] == {"median": 4.0, "min": 3.0, "max": 4.0}
    assert found["ratio_best"] == {"setting": "packed", "median": 2.0, "min": 1.0, "max": 2.0}
    assert found["cpu_ratios"]["packed"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert found["rates"]["ours"] == {"median": 50.0, "min": 10.0, "max": 100.0}


def test_rates_are_of_what_is_counted_first():
    work = {"pairs": 8, "tokens": 500, "loss": 0.7}
    checks, runs = bench.take_turns(lambda name: Scripted([2.0], work), ["ours", "defaults"], rounds=1)
    found = bench.sum_up(checks, runs, ["defaults"])
    assert found["rates"]["ours"]["median"] == 4.0
    assert found["same_work"]["defaults"] == work


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
    return folder, sft.prepare(folder, Namespace(data=None, seed=0, rows=8, memory=False, model=None))


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


# --- the reward model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return folder, reward.prepare(folder, Namespace(data=None, seed=0, rows=8, memory=False, model=None))


def test_all_reward_trainers_do_the_same_work(pairs):
    folder, about = pairs
    checks = {"ours": OursReward(folder, {}).check()}
    checks |= {name: TrlReward(folder, settings).check() for name, (_, settings) in reward.PEERS.items()}
    bench.same_work(checks)
    rows = json.loads((folder / "rows.json").read_text())
    assert checks["ours"]["pairs"] == about["pairs"] == 8
    assert checks["ours"]["tokens"] == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)


def test_our_reward_trainer_and_the_defaults_end_at_the_same_loss(pairs):
    folder, _ = pairs
    ours, theirs = OursReward(folder, {}).run(), TrlReward(folder, {}).run()
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)


def test_a_pair_is_left_out_whole(tokenizer):
    """Undecided, beyond the limit, or of a prompt that was there: our stage would put those into one question."""

    def pair(prompt, first, second, target=1.0):
        return Namespace(prompt=[{"role": "user", "content": prompt}], first=first, second=second, target=target)

    rows = [pair("a", "x", "y", 0.0), pair("b", "x", "y", 0.5), pair("a", "z", "y"), pair("c", "w " * 600, "y")]
    found = reward.usable_pairs([*rows, pair("d", "x", "x"), pair("e", "x", "y")], tokenizer)
    assert [(texts["prompt"][0]["content"], texts["chosen"]) for texts, _, _ in found] == [("a", "y"), ("e", "x")]


def test_generated_pairs_are_as_long_as_those_of_hh(tmp_path):
    """HH: 173 tokens a side, 37% of them in the prompt, which both sides share; the longest side 190."""
    lines = reward.write_pairs(tmp_path / "a.jsonl", 0).read_text().splitlines()
    assert reward.write_pairs(tmp_path / "b.jsonl", 0).read_text().splitlines() == lines
    about = reward.prepare(tmp_path, Namespace(data=None, seed=0, rows=400, memory=False, model=None))
    assert 150 < about["mean_tokens"] < 200
    assert 0.33 < about["shared"] < 0.42


@pytest.mark.parametrize("arguments", [["--rows", "-1"], ["--rounds", "0"], ["--data", "nowhere.jsonl"]])
def test_a_mistake_is_found_before_the_peer_is_installed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(bench, "bench", lambda options: pytest.fail("began"))
    with pytest.raises(SystemExit) as ended:
        bench.main(["sft", *arguments])
    assert ended.value.code == 2
    assert f"{arguments[0]} {arguments[1]}: " in capsys.readouterr().err
