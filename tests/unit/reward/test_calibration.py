"""Calibration against sums by hand, and against a model that is right by construction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.evaluation.calibration import agreement, bin_of, calibrated_ece, confidence, ece, log_loss, reliability


def logit(p):
    return math.log(p / (1 - p))


def test_ece_by_hand():
    """Bins of [1/2, 1] are 1/30 wide: 0.61 and 0.62 share the fourth, 0.9 is in the thirteenth."""
    sure = np.array([0.61, 0.62, 0.9, 0.9])
    agreed = np.array([1.0, 0.0, 1.0, 0.5])
    weight = np.array([1.0, 1.0, 2.0, 1.0])
    assert bin_of(sure).tolist() == [3, 3, 12, 12]
    first = 2 * abs((0.61 + 0.62) / 2 - 0.5)
    second = 3 * abs(0.9 - (2 * 1 + 0.5) / 3)
    assert ece(sure, agreed, weight) == pytest.approx((first + second) / 5)


def test_the_ends_of_the_scale_are_in_the_outer_bins():
    assert bin_of(np.array([0.5, 1.0, 0.5 + 1 / 30 + 1e-9, 1 - 1e-9])).tolist() == [0, 14, 1, 14]


def test_a_pair_is_turned_to_the_side_that_the_model_prefers():
    delta = np.array([logit(0.8), -logit(0.8), 0.0])
    assert confidence(delta) == pytest.approx([0.8, 0.8, 0.5])
    assert agreement(delta, np.array([1.0, 1.0, 1.0])) == pytest.approx([1.0, 0.0, 0.5])
    assert agreement(delta, np.array([0.25, 0.25, 0.25])) == pytest.approx([0.25, 0.75, 0.5])


def test_log_loss_by_hand():
    delta = np.array([logit(0.8), logit(0.8), logit(0.8), 0.0, 800.0])
    target = np.array([1.0, 0.0, 0.5, 0.3, 0.0])
    by_hand = [-math.log(0.8), -math.log(0.2), -(math.log(0.8) + math.log(0.2)) / 2, math.log(2), 800.0]
    assert log_loss(delta, target) == pytest.approx(by_hand)


def test_a_perfectly_calibrated_model_falls_to_0_and_within_the_range_that_is_given_for_it():
    """Votes drawn with the very probability that the scores say; the ECE that remains is chance, as 1/sqrt(N)."""
    rng = np.random.default_rng(0)
    found = {}
    for n in (200, 20_000):
        scores = rng.normal(size=(n, 2)) * 1.5
        delta = scores[:, 0] - scores[:, 1]
        votes = (rng.random(n) < 1 / (1 + np.exp(-delta))).astype(float)
        found[n] = ece(confidence(delta), agreement(delta, votes), np.ones(n))
        expected = calibrated_ece(
            scores.tolist(), [(i, 0, 1) for i in range(n)], np.ones(n), num_draws=200 if n < 1000 else 20
        )
        assert expected["ci"][0] * 0.8 < found[n] < expected["ci"][1] * 1.2
    assert found[20_000] < 0.012 < found[200]


def test_a_model_that_is_twice_as_sure_as_it_may_be_is_outside_that_range():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2000, 2))
    delta = scores[:, 0] - scores[:, 1]
    votes = (rng.random(2000) < 1 / (1 + np.exp(-delta))).astype(float)
    found = ece(confidence(2 * delta), agreement(delta, votes), np.ones(2000))
    expected = calibrated_ece((2 * scores).tolist(), [(i, 0, 1) for i in range(2000)], np.ones(2000), num_draws=100)
    assert found > 2 * expected["ci"][1]
    # By integration: the mean of |sigmoid(2d) - sigmoid(d)|, d the absolute difference of two normal scores.
    d = np.abs(np.random.default_rng(2).normal(size=200_000)) * math.sqrt(2)
    assert found == pytest.approx(np.mean(1 / (1 + np.exp(-2 * d)) - 1 / (1 + np.exp(-d))), abs=0.02)


def test_draws_of_a_ranking_prefer_with_the_probability_that_scores_say():
    """One pair whose confidence is 0.75: each draw's ECE is |0.75 - 1| or |0.75 - 0|, 3 to 1."""
    found = calibrated_ece([[logit(0.75), 0.0]], [(0, 0, 1)], np.ones(1), num_draws=4000)
    assert found["value"] == pytest.approx(0.75 * 0.25 + 0.25 * 0.75, abs=0.015)
    assert found["ci"] == pytest.approx((0.25, 0.75))


def test_pairs_of_one_ranking_are_drawn_together():
    """Three equal completions: no ranking has a > b > c > a, so the two sides of it are never all of one kind."""
    scores = [[0.02, 0.01, 0.0]]
    cycle = [(0, 0, 1), (0, 1, 2), (0, 2, 0)]
    found = calibrated_ece(scores, cycle, np.ones(3), num_draws=2000)
    # Agreement with a>b, b>c and a>c (the model's own order): 0 or 3 of 3 in 1/6 each, 1 or 2 of 3 in 1/3 each.
    assert found["value"] == pytest.approx((0.5 + 0.5) / 6 + (1 / 6 + 1 / 6) / 3, abs=0.02)


def test_the_plot_has_the_filled_bins_and_counts_prompts_once():
    sure = np.array([0.51, 0.51, 0.52, 0.97])
    agreed = np.array([1.0, 1.0, 0.0, 1.0])
    low, high = reliability(sure, agreed, np.ones(4), ["a", "a", "b", "c"])
    assert (low["low"], low["high"], low["n"]) == (0.5, pytest.approx(0.5 + 1 / 30), 3)
    assert low["confidence"] == pytest.approx(1.54 / 3)
    assert (low["value"], low["ci"]) == (pytest.approx(2 / 3), (0.0, 1.0))
    assert (high["value"], high["n"]) == (1.0, 1)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_sides_and_order_do_not_matter(rows, random):
    def figures(rows):
        delta, target, weight = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        return ece(confidence(delta), agreement(delta, target), weight), log_loss(delta, target).sum()

    swapped = [
        (-delta, 1 - target, weight) if random.random() < 0.5 else (delta, target, weight)
        for delta, target, weight in rows
    ]
    random.shuffle(swapped)
    assert figures(swapped) == pytest.approx(figures(rows), abs=1e-9)
    assert 0 <= figures(rows)[0] <= 1
