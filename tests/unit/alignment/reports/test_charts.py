"""Charts: thousands of steps in few points without losing a spike, and what cannot be drawn."""

import math
import random

import pytest
from helpers.full_runs import full_run
from helpers.journals import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.reports import charts
from alignment.reports.charts import POINTS, chart_of, number, still, thin
from alignment.reports.dashboards import HistogramPanel, LinePanel, ScatterPanel
from alignment.runs.record import RunRecord, Series


def test_a_spike_of_one_step_in_a_hundred_thousand_is_kept():
    values = [0.0] * 100_000
    values[54_321], values[70_001] = 9.0, -4.0
    line = thin(Series(list(range(100_000)), values))
    assert len(line.x) <= POINTS
    assert (max(line.high), min(line.low)) == (9.0, -4.0)
    place = line.high.index(9.0)
    assert abs(line.x[place] - 54_321) <= 100_000 / POINTS


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=80), st.integers(1, 20))
def test_buckets_hold_all_finite_values_and_their_means(values, most):
    line = thin(Series(list(range(len(values))), values), most)
    known = [value for value in values if value is not None]
    assert line.bad == [step for step, value in enumerate(values) if value is None]
    assert len(line.x) == len(line.y) <= most
    if len(known) <= most:
        assert (line.y, line.low) == (known, [])
        return
    assert (min(line.low), max(line.high)) == (min(known), max(known))
    assert all(
        low <= mean + 1e-6 and mean <= high + 1e-6 for low, mean, high in zip(line.low, line.y, line.high, strict=True)
    )
    assert line.x == sorted(line.x)


def record(tmp_path, rows, **kwargs):
    make_run(tmp_path / "run", rows=rows, **kwargs)
    return [("run", RunRecord.read(tmp_path / "run"))]


def test_a_frontier_has_the_steps_that_have_both(tmp_path):
    rows = {0: {"eval/score": 1.0, "eval/kl": 0.0}, 1: {"eval/kl": 9.0}, 2: {"eval/score": 3.0, "eval/kl": 4.0}}
    panel = ScatterPanel(kind="scatter", title="t", x="eval/kl", y=("eval/score",), sqrt_x=True)
    chart = chart_of(panel, "ppo", record(tmp_path, rows))
    (line,) = chart.lines
    assert (line.x, line.y, line.steps) == ([0.0, 2.0], [1.0, 3.0], [0, 2])


def test_an_interval_is_a_band_around_the_first_metric(tmp_path):
    rows = {n: {"eval/win_rate": 0.5, "eval/win_rate_low": 0.4, "eval/win_rate_high": 0.7} for n in range(3)}
    panel = LinePanel(
        kind="line", title="t", metrics=("eval/win_rate",), low="eval/win_rate_low", high="eval/win_rate_high"
    )
    chart = chart_of(panel, "ppo", record(tmp_path, rows))
    (line,) = chart.lines
    assert (line.low, line.high, line.band) == ([0.4] * 3, [0.7] * 3, "95% interval")
    assert chart.share and chart.unit == ""


def test_what_was_not_journalled_is_not_drawn(tmp_path):
    runs = record(tmp_path, {1: {"policy/loss": 1.0}})
    assert chart_of(LinePanel(kind="line", title="t", metrics=("value/loss",)), "ppo", runs) is None
    assert chart_of(HistogramPanel(kind="histogram", title="t", names=("eval/score",)), "ppo", runs) is None


def test_steps_that_were_not_finite_are_marked(tmp_path):
    runs = record(tmp_path, {1: {"policy/loss": 1.0}, 2: {"policy/loss": math.nan}, 3: {"policy/loss": 2.0}})
    chart = chart_of(LinePanel(kind="line", title="t", metrics=("policy/loss",)), "ppo", runs)
    assert chart.lines[0].bad == [2] and chart.lines[0].y == [1.0, 2.0]


def test_one_colour_a_run_where_runs_are_compared(tmp_path):
    runs = []
    for name in ("a", "b"):
        full_run(tmp_path / name, "ppo", 3)
        runs.append((name, RunRecord.read(tmp_path / name)))
    panel = LinePanel(kind="line", title="t", metrics=("policy/loss", "value/loss"))
    looks = [(line.name, line.colour, line.dash) for line in chart_of(panel, "ppo", runs).lines]
    assert looks == [("a policy/loss", 0, 0), ("a value/loss", 0, 1), ("b policy/loss", 1, 0), ("b value/loss", 1, 1)]


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1.0, -1.0], [1e-9, 2e-9], [1e9, -1e9], [0.0, 1e-12]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_course_has_a_picture_inside_its_frame(tmp_path, values, log):
    runs = record(tmp_path, {n: {"policy/loss": value} for n, value in enumerate(values)})
    chart = chart_of(LinePanel(kind="line", title="t", metrics=("policy/loss",), log=log), "ppo", runs)
    for shape in still(chart).shapes:
        if "points" in shape["attributes"]:
            pairs = [pair.split(",") for pair in shape["attributes"]["points"].split()]
            assert all(0 <= float(x) <= charts.WIDTH and 0 <= float(y) <= charts.HEIGHT for x, y in pairs)


def test_areas_of_a_histogram_are_one_whatever_its_bins():
    rng = random.Random(1)
    for bins in (1, 7, 40):
        edges = sorted(rng.uniform(-3, 3) for _ in range(bins + 1))
        shape = {"edges": edges, "counts": [rng.randint(0, 9) + 1 for _ in range(bins)]}
        area = sum(
            height * (right - left)
            for height, left, right in zip(charts._density(shape), edges, edges[1:], strict=False)
        )
        assert area == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [(0.0, False, "0"), (1234.5678, False, "1235"), (12345.6, False, "12,346"), (1e-6, False, "1.00e-06"),
     (0.5, True, "50%"), (-1.46, True, "-146%"), (None, False, "-"), (2.3728979, False, "2.373")],
)  # fmt: skip
def test_numbers_are_short(value, share, text):
    assert number(value, share) == text
