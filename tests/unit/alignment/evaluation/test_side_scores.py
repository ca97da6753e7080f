"""Each side's scores: means, paired differences and gaps, against oracles and simulated studies."""

import json

import numpy as np
import pytest
from helpers.comparing import contest, question
from rich.console import Console
from scipy import stats

from alignment.evaluation.score_text import difference_lines, gap_line, score_tables
from alignment.evaluation.side_scores import mean_score, score_difference, scores_of


def test_a_mean_score_has_students_interval():
    values = [0.5, 1.5, -0.25, 3.0, 0.75, 2.0]
    found = mean_score(values, is_share=False)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["ci"] == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert (found["value"], found["n"]) == (pytest.approx(np.mean(values)), 6)


def test_a_share_of_all_is_not_certain():
    low, high = mean_score([1.0] * 20, is_share=True)["ci"]
    assert 0.8 < low < 0.9 and high == 1.0


def test_shares_that_never_differ_are_not_certainly_equal():
    low, high = score_difference([0.0] * 20, is_share=True)["ci"]
    assert -0.25 < low < -0.1 and high == -low
    assert score_difference([0.0] * 20, is_share=False)["ci"] == (0.0, 0.0)


@pytest.mark.parametrize("n", [12, 60])
@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.95, 0.8), (0.97, 0.97)], ids=["half", "apart", "near one"])
def test_intervals_cover_in_simulated_studies(n, rates):
    """Of 400 studies at most 9% may miss: 5%, and chance. Near 1 they cover more than 95%."""
    rng = np.random.default_rng(7)
    draws = rng.random((400, n, 2)) < np.array(rates)
    missed = {"mean": 0, "difference": 0}
    for ours, theirs in (study.T.astype(float) for study in draws):
        for name, found, truth in (
            ("mean", mean_score(ours, is_share=True), rates[0]),
            ("difference", score_difference(ours - theirs, is_share=True), rates[0] - rates[1]),
        ):
            low, high = found["ci"]
            missed[name] += not low <= truth <= high
    assert max(missed.values()) <= 0.09 * 400


def figures(values, topics, slices=("topic",), is_share=True):
    prompts = [question(f"Q{n}", topic=topic) for n, topic in enumerate(topics)]
    found = contest(prompts, **{side: ["x"] * len(prompts) for side in values})
    scores = {(side, key): value for side, row in values.items() for key, value in zip(found.prompts, row, strict=True)}
    return scores_of(found, [found.measure("right", scores, is_share=is_share)], slices)


def test_the_difference_is_paired():
    """The prompts differ far more than the sides: only a paired interval shows the lead."""
    base = np.tile([0.0, 5.0, -4.0, 9.0], 10)
    noise = np.random.default_rng(0).normal(0, 0.05, 40)
    (measure,) = figures({"a": base + 0.2 + noise, "b": base}, ["t"] * 40, is_share=False)
    low, high = measure["differences"][0]["estimate"]["ci"]
    assert 0.15 < low < 0.2 < high < 0.25
    assert list(difference_lines(measure)) == [f"right: a leads b by 0.20 (95% interval {low:.2f} to {high:.2f})"]


def test_the_lower_side_is_named_last_and_no_difference_is_said():
    (measure,) = figures({"a": [0.0] * 18 + [1.0] * 2, "b": [1.0] * 20}, ["t"] * 20)
    (line,) = difference_lines(measure)
    assert line.startswith("right: b leads a by 90 points (95% interval ")
    (measure,) = figures({"a": [0.0, 1.0] * 10, "b": [1.0, 0.0] * 10}, ["t"] * 20)
    assert next(difference_lines(measure)).startswith("right: no difference shown, a less b is 0 points (-")


def test_a_planted_gap_is_found_and_named_for_its_side_alone():
    topics = ["young"] * 40 + ["old"] * 40
    (measure,) = figures(
        {"biased": [1.0] * 38 + [0.0] * 2 + [0.0, 1.0] * 20, "fair": [1.0, 1.0, 0.0, 1.0] * 20}, topics
    )
    gaps = measure["gaps"]["topic"]
    young = gaps["biased"]["young"]["gap"]
    assert young["value"] == pytest.approx(0.45) and young["ci"][0] > 0.2
    assert gaps["biased"]["old"]["gap"]["value"] == pytest.approx(-0.45)
    assert gaps["fair"]["old"]["gap"]["ci"][0] < 0 < gaps["fair"]["old"]["gap"]["ci"][1]
    said = gap_line(measure, "topic", "biased", gaps["biased"])
    assert said.startswith("biased: topic=") and "45 points" in said
    assert gap_line(measure, "topic", "fair", gaps["fair"]) == "no gap between values of topic is shown for fair"


def test_a_gap_is_newcombes_interval():
    """Newcombe 1998, table II: 56/70 against 48/80 gives 0.0524 to 0.3339 by method 10 with the normal quantile."""
    values = [1.0] * 56 + [0.0] * 14 + [1.0] * 48 + [0.0] * 32
    (measure,) = figures({"a": values, "b": values}, ["x"] * 70 + ["y"] * 80)
    low, high = measure["gaps"]["topic"]["a"]["x"]["gap"]["ci"]
    assert (low, high) == (pytest.approx(0.0524, abs=0.006), pytest.approx(0.3339, abs=0.006))


def test_many_slices_of_chance_rarely_show_a_gap():
    """Eight slices of one rate: without the correction a third of the studies would show a gap."""
    rng, shown = np.random.default_rng(3), 0
    topics = [str(n % 8) for n in range(160)]
    for _ in range(60):
        values = (rng.random(160) < 0.6).astype(float)
        (measure,) = figures({"a": values, "b": values}, topics)
        gaps = [part["gap"]["ci"] for part in measure["gaps"]["topic"]["a"].values()]
        shown += any(low > 0 or high < 0 for low, high in gaps)
    assert shown <= 8


def test_one_prompt_tells_nothing_of_an_unbounded_score():
    (measure,) = figures({"a": [1.5], "b": [2.5]}, ["x"], is_share=False)
    assert measure["sides"] == {"a": None, "b": None} and measure["differences"][0]["estimate"] is None
    slices = json.loads(json.dumps(measure, allow_nan=False))["gaps"]["topic"]
    assert slices["a"]["x"] == {"n": 1, "mean": None, "gap": None}


@pytest.mark.parametrize(("n", "claimed"), [(9, False), (10, True)])
def test_a_gap_needs_ten_prompts_on_each_side(n, claimed):
    for topics in (["x"] * n + ["y"] * 30, ["x"] * 30 + ["y"] * n):
        values = [float(topic == "x") for topic in topics]
        (measure,) = figures({"a": values, "b": values}, topics)
        said = gap_line(measure, "topic", "a", measure["gaps"]["topic"]["a"])
        assert ("100 points" in said) == claimed


def test_a_slice_of_one_prompt_has_no_gap():
    (measure,) = figures({"a": [1.0, 0.0, 1.0], "b": [1.0, 1.0, 1.0]}, ["x", "x", "y"])
    assert {name: part["gap"] for name, part in measure["gaps"]["topic"]["a"].items()} == {"x": None, "y": None}


def test_the_tables_fit_in_60_columns():
    names = ("help-desk-policy-of-many-words@v12", "another-help-desk-policy@v3")
    values = {name: [1.0, 0.0, 1.0, 1.0] * 5 for name in names}
    measures = figures(values, ["a long value of a column", "b"] * 10) * 3
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in score_tables({"refusals": measures}, None):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "75% (" in text and "no difference shown" in text
    assert "…" not in text
