"""Metrics in arrays, and a long journal in brief."""

import json
import random
import tracemalloc

import pytest
from helpers.journals import CONFIGS

from alignment.reports.verdicts import verdicts
from alignment.runs import brief
from alignment.runs.journal import Journal
from alignment.runs.record import RunRecord, add_metrics
from alignment.runs.series import Series, SeriesTable, Times


def test_a_table_has_the_series_that_rows_make_one_by_one():
    """Rows in any order, with any metrics, twice for a step, and values that are not finite."""
    draw = random.Random(0)
    for _ in range(150):
        rows = []
        for number in range(draw.randint(0, 40)):
            row = {"step": draw.choice([number, number, draw.randint(0, 40)]), "time": float(number), "text": "no"}
            row |= {name: draw.choice([1.0, None, 2, 1e305]) for name in draw.sample("abcd", draw.randint(0, 4))}
            rows.append(row)
        metrics: dict[str, Series] = {}
        times = Times()
        for row in rows:
            add_metrics(row, metrics, times)
        table = SeriesTable(rows)
        assert dict(table.times()) == dict(times)
        found = table.series()
        assert list(found) == list(metrics)
        for name, series in metrics.items():
            assert list(found[name].steps) == list(series.steps)
            assert found[name].values == series.values


def test_a_series_tells_its_ends():
    series = Series([1, 2, 3, 4], [None, 2.0, 3.0, None])
    assert (series.first, series.last, series.last_point) == (2.0, 3.0, (3, 3.0))
    assert (series.num_finite, series.first_not_finite, series.at(2), series.at(4), series.at(9)) == (
        2,
        1,
        2.0,
        None,
        None,
    )


def long_journal(path, steps=400, evaluated=(0, 100, 300), broken=None):
    path.mkdir()
    config = {"name": path.name, "registry": {"name": "m", "path": "none"}, **CONFIGS["sft"]}
    (path / "config.json").write_text(json.dumps(config))
    with Journal(path, stage="sft") as journal:
        journal.watching(["overfitting"])
        for step in range(steps + 1):
            loss = float("nan") if step == broken else 1 / (step + 1)
            journal.log(step, {"train/loss": loss, "train/grad_norm": 1.0})
            if step in evaluated:
                journal.log(step, {"eval/loss": 2 / (step + 1)})
            if step == steps // 2:
                journal.finding(step, "a thing", "warning", "look at it")
    return path


@pytest.mark.parametrize("broken", [None, 200], ids=["finite", "not finite"])
def test_a_brief_record_says_of_a_long_journal_what_the_whole_one_does(tmp_path, monkeypatch, broken):
    path = long_journal(tmp_path / "r", broken=broken)
    for name, size in (("HEAD_BYTES", 500), ("TAIL_BYTES", 700), ("CHUNK_BYTES", 64)):
        monkeypatch.setattr(brief, name, size)
    short, whole = brief.read_brief(path), RunRecord.read(path)
    assert len(short.times) < 40 < len(whole.times)
    assert [(each.name, each.outcome) for each in verdicts(short)] == [(v.name, v.outcome) for v in verdicts(whole)]
    assert ("fail" in {each.outcome for each in verdicts(short)}) == (broken is not None)
    for name in ("train/loss", "eval/loss"):
        assert short.figure(name) == whole.figure(name)
    assert list(short.metrics["eval/loss"].steps) == [0, 100, 300]
    assert short.last_step == whole.last_step == 400


def test_a_value_that_is_not_finite_is_found_in_a_journal_without_events_of_it(tmp_path, monkeypatch):
    path = long_journal(tmp_path / "r", broken=200)
    events = path / "events.jsonl"
    lines = [line for line in events.read_text().splitlines() if '"not_finite"' not in line]
    events.write_text("\n".join(lines).replace(', "not_finite_events": true', "") + "\n")
    for name, size in (("HEAD_BYTES", 500), ("TAIL_BYTES", 700)):
        monkeypatch.setattr(brief, name, size)
    short = brief.read_brief(path)
    assert short.metrics["train/loss"].first_not_finite == 200
    assert "fail" in {each.outcome for each in verdicts(short)}


def test_a_brief_record_of_a_short_journal_is_the_whole_one(tmp_path):
    path = long_journal(tmp_path / "r")
    short, whole = brief.read_brief(path), RunRecord.read(path)
    assert short.metrics.keys() == whole.metrics.keys()
    assert all(short.metrics[name].values == series.values for name, series in whole.metrics.items())
    assert dict(short.times) == dict(whole.times)


def test_a_long_journal_takes_bounded_memory(tmp_path):
    path = long_journal(tmp_path / "r", steps=1)
    row = {"step": 0, "time": 1.5, **{f"train/m{number}": 0.123456789 for number in range(20)}}
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(20_000):
            file.write(json.dumps(row | {"step": step}) + "\n")
    size = (path / "metrics.jsonl").stat().st_size
    tracemalloc.start()
    record = RunRecord.read(path)
    whole = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    del record
    brief.read_brief(path)
    short = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole < 0.6 * size, "8 bytes for a value of 24"
    assert short < 8 << 20
