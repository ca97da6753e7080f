"""What a trainer's log becomes in the journal, tokens a second, and when a run is said to overfit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from alignment.runs.journal import Journal
from alignment.training import throughput
from alignment.training.callbacks import JournalCallback, overfitting
from alignment.training.throughput import TokenCount


def history(*rows):
    """("t", step, loss) is a line of training, ("e", step, loss) an evaluation."""
    return [{"step": step, "loss" if kind == "t" else "eval_loss": loss} for kind, step, loss in rows]


FALLING = [("t", 1, 3.0), ("t", 2, 2.5), ("e", 2, 2.4), ("t", 3, 2.0), ("t", 4, 1.5), ("e", 4, 2.0)]
RISING = [*FALLING, ("t", 5, 1.0), ("t", 6, 0.5), ("e", 6, 2.3)]


def test_overfitting_is_a_held_out_loss_above_its_lowest_while_training_goes_on_falling():
    assert overfitting(history(*FALLING)) is None
    said = overfitting(history(*RISING))
    assert "2.300, up from 2.000 at step 4" in said
    assert "from 1.750 to 0.750" in said  # means of what was trained before either evaluation
    assert overfitting(history(*RISING[:-1])) is None  # the last line is no evaluation


def test_evaluations_between_two_lines_of_the_log_are_judged_by_the_line_before():
    rows = [("t", 10, 3.0), ("e", 15, 2.4), ("e", 18, 2.0), ("t", 20, 1.0), ("e", 22, 2.2), ("e", 25, 2.4)]
    assert overfitting(history(*rows[:3])) is None
    assert "up from 2.000 at step 18, while the training loss fell from 3.000 to 1.000" in overfitting(
        history(*rows[:5])
    )
    assert overfitting(history(*rows)) is not None  # it does not come and go with the lines of the log


@pytest.mark.parametrize(
    "rows",
    [
        [*FALLING, ("t", 6, 0.5), ("e", 6, 2.01)],  # within 1% of the lowest
        [*FALLING, ("t", 6, 2.2), ("e", 6, 2.3)],  # both rise: it diverges, which is another matter
        [*FALLING, ("e", 6, 2.3)],  # nothing is known of the training in between
        [("t", 1, 1.0), ("e", 1, 2.0)],
        [*FALLING, ("t", 6, 0.5), ("e", 6, float("nan"))],
    ],
)
def test_other_courses_are_no_overfitting(rows):
    assert overfitting(history(*rows)) is None


def follow(tmp_path, rows, keeps_best=False):
    """The journal's events of a trainer that logs these rows."""
    with Journal(tmp_path) as journal:
        callback = JournalCallback(journal, "", False, keeps_best)
        state = SimpleNamespace(log_history=[], global_step=0)
        for row in history(*rows):
            state.log_history.append(row)
            state.global_step = row["step"]
            callback.on_log(None, state, None, {name: value for name, value in row.items() if name != "step"})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    return [(event["event"], event["step"], event.get("level")) for event in map(json.loads, lines)]


@pytest.mark.parametrize(("keeps_best", "level"), [(False, "warning"), (True, "note")])
def test_it_is_said_once_and_taken_back(tmp_path, keeps_best, level):
    rows = [*RISING, ("t", 7, 0.4), ("e", 7, 2.5), ("t", 8, 0.3), ("e", 8, 1.9)]
    assert follow(tmp_path, rows, keeps_best) == [("finding", 6, level), ("cleared", 8, None)]


def test_a_trainers_names_become_the_declared_ones(tmp_path):
    with Journal(tmp_path, stage="sft") as journal:  # which refuses any other
        callback = JournalCallback(journal, "", False, False)
        state = SimpleNamespace(log_history=[{}], global_step=5)
        logs = {"loss": 1.0, "epoch": 0.5, "num_tokens": 10.0, "num_input_tokens_seen": 10, "note": "text"}
        callback.on_log(None, state, None, logs)
        logs = {"eval_loss": 2.0, "eval_runtime": 1.5, "eval_samples_per_second": 3.0, "eval_steps_per_second": 1.0}
        callback.on_log(None, state, None, logs)
        logs = {"train_loss": 1.2, "train_runtime": 9.0, "train_samples_per_second": 4.0, "total_flos": 1e9}
        callback.on_log(None, state, None, logs | {"train_steps_per_second": 1.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in row if name not in ("step", "time")} for row in rows] == [
        {"train/loss": 1.0, "train/epoch": 0.5, "train/num_tokens": 10.0},
        {"eval/loss": 2.0, "time/eval": 1.5},
        {"train/mean_loss": 1.2, "time/train": 9.0, "train/samples_per_second": 4.0},
    ]


def test_tokens_a_second_are_those_since_the_last_line_without_evaluations(monkeypatch):
    clock = iter([100.0, 110.0, 140.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    count, device = TokenCount(), torch.device("cpu")
    count.add({"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})  # at 100
    count.add({"input_ids": torch.zeros(1, 7), "position_ids": None})
    assert count.metrics(device) == {"num_tokens": 10.0, "tokens_per_second": 1.0}  # at 110
    assert count.metrics(device) == {}  # nothing since: no rate of 0, which would look like a stall
    count.add({"input_ids": torch.zeros(1, 20), "position_ids": None})
    count.pause(20.0)
    assert count.metrics(device) == {"num_tokens": 30.0, "tokens_per_second": 2.0}  # at 140


def test_tokens_before_a_resumed_run_count_in_the_total_alone(monkeypatch):
    monkeypatch.setattr(throughput.time, "monotonic", iter([0.0, 2.0]).__next__)
    count = TokenCount()
    count.total = torch.tensor(1000.0, dtype=torch.float64)
    count.add({"input_ids": torch.zeros(1, 8), "position_ids": None})
    assert count.metrics(torch.device("cpu")) == {"num_tokens": 1008.0, "tokens_per_second": 4.0}
