"""Reading a run folder: in the order of steps, with the published model's figures, whatever stands in its lines."""

import json

import pytest
from helpers.journals import make_run
from hypothesis import given
from hypothesis import strategies as st

from alignment.reports.overview import total_steps
from alignment.reports.report import report_page
from alignment.reports.verdicts import verdicts
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord, Series

STEPS = st.lists(st.tuples(st.integers(0, 20), st.floats(-1, 1)))


@given(STEPS)
def test_a_series_is_in_the_order_of_its_steps_and_the_last_word_on_each_stands(rows):
    series = Series()
    for step, value in rows:
        series.insert(step, value)
    assert list(zip(series.steps, series.values, strict=True)) == sorted(dict(rows).items())


def test_figures_of_an_evaluation_are_those_of_the_step_that_was_published(tmp_path):
    rows = {2: {"eval/loss": 0.5, "train/loss": 0.6}, 4: {"eval/loss": 0.9, "train/loss": 0.3}}
    make_run(tmp_path / "best", "sft", rows, events=[("published", {"model": "m@v1", "best_step": 2})])
    make_run(tmp_path / "last", "sft", rows, events=[("published", {"model": "m@v1"})])
    best, last = RunRecord.read(tmp_path / "best"), RunRecord.read(tmp_path / "last")
    assert (best.published_step, best.figure("eval/loss"), best.figure("train/loss")) == (2, (2, 0.5), (4, 0.3))
    assert (last.published_step, last.figure("eval/loss"), last.figure("none")) == (None, (4, 0.9), None)
    page = report_page([best])
    assert "m@v1, of step 2" in page and "as published, step 2; at the end 0.9" in page
    assert "as published" not in report_page([last])


def test_the_answers_shown_first_are_those_of_the_step_that_was_published(tmp_path):
    make_run(
        tmp_path / "run", "ppo", {4: {"eval/score": 1.0}}, events=[("published", {"model": "m@v1", "best_step": 2})]
    )
    with Journal(tmp_path / "run") as journal:
        for step, answer in ((0, "one"), (2, "two"), (4, "three")):
            journal.samples(step, [{"id": 0, "prompt": "?", "response": answer, "score": float(step)}])
    page = report_page([RunRecord.read(tmp_path / "run")])
    assert '<output id="at-said">2</output>' in page
    assert page.index("<ins>two</ins>") and "<ins>three</ins>" not in page


ODD = [
    {"event": "watching"},
    {"event": "finding", "name": "x"},
    {"event": "finding", "step": 1, "level": "error", "text": "t"},
    {"event": "finding", "step": 1, "name": "x", "level": "dreadful", "text": "t"},
    {"event": "cleared", "name": None, "step": 1},
    {"event": "published"},
    {"event": "histogram", "name": "h", "step": 1, "edges": None, "counts": [1]},
    {"event": ["x"]},
]


@pytest.mark.parametrize("row", ODD, ids=lambda row: json.dumps(row)[:40])
def test_an_event_that_no_run_of_ours_writes_is_passed_over_or_counts_as_a_failure(tmp_path, row):
    make_run(tmp_path / "run", "ppo", {1: {"eval/score": 1.0}})
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    record = RunRecord.read(tmp_path / "run")
    failed = [verdict.name for verdict in verdicts(record) if verdict.outcome == "fail"]
    assert failed == (["x"] if row.get("level") == "dreadful" else [])
    assert record.published is None
    report_page([record])


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e308", "NaN", "null"])
def test_a_value_without_end_is_not_finite(tmp_path, value):
    make_run(tmp_path / "run", "ppo")
    (tmp_path / "run" / "metrics.jsonl").write_text(f'{{"step": 1, "time": 0, "eval/score": {value}}}\n')
    record = RunRecord.read(tmp_path / "run")
    assert record.metrics["eval/score"].values == [None]
    report_page([record])


def test_a_line_of_brackets_without_end_is_passed_over(tmp_path):
    make_run(tmp_path / "run", "ppo")
    (tmp_path / "run" / "events.jsonl").write_text("[" * 100_000 + "\n")
    assert RunRecord.read(tmp_path / "run").events == []


def test_members_make_as_many_steps_each(tmp_path):
    make_run(tmp_path / "run", "reward", {15: {"train/loss": 1.0}}, training={"max_steps": 15, "members": 3})
    assert total_steps(RunRecord.read(tmp_path / "run")) == 45


def test_a_lesser_finding_does_not_undo_a_worse_one_until_that_is_cleared(tmp_path):
    path = tmp_path / "run"
    make_run(path)
    with Journal(path) as journal:
        journal.finding(1, "x", "error", "worse")
        journal.finding(2, "x", "note", "lesser")
        journal.finding(1, "y", "warning", "first")
        journal.finding(2, "y", "warning", "second")
        journal.finding(1, "z", "error", "worse")
        journal.cleared(2, "z")
        journal.finding(3, "z", "error", "again")
    found = {verdict.name: (verdict.outcome, verdict.reason) for verdict in verdicts(RunRecord.read(path))}
    assert (found["x"], found["y"], found["z"]) == (("fail", "worse"), ("warn", "second"), ("fail", "again"))


def test_the_published_models_figures_are_those_of_the_prompts_that_did_not_choose_it(tmp_path):
    rows = {step: {"eval/win_rate": rate, "rollout/score": 1.0} for step, rate in enumerate((0.5, 0.9, 0.7))}
    make_run(
        tmp_path / "run", rows=rows, events=[("published", {"model": "m@v1", "best_step": 1, "eval_win_rate": 0.6})]
    )
    record = RunRecord.read(tmp_path / "run")
    assert record.figure("eval/win_rate") == (1, 0.6)
    assert record.figure("rollout/score") == (2, 1.0)
