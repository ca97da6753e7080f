"""The studies of what ratings are worth: their own arithmetic."""

import math

import numpy as np
import pytest
from helpers.rated_world import world
from studies.ratings_value import forecasts, influence
from studies.ratings_value.d_optimal import greedy_order


def test_each_choice_adds_most_to_the_determinant():
    rng = np.random.default_rng(0)
    x, information = rng.standard_normal((30, 4)), rng.random(30)
    matrix = np.eye(4) * 0.5
    order = greedy_order(x, information, matrix, 12)
    assert len(set(order)) == 12
    for place, chosen in enumerate(order):
        left = [row for row in range(30) if row not in order[:place]]
        gains = {row: np.linalg.slogdet(matrix + information[row] * np.outer(x[row], x[row]))[1] for row in left}
        assert gains[chosen] == pytest.approx(max(gains.values()))
        matrix = matrix + information[chosen] * np.outer(x[chosen], x[chosen])


def test_no_more_items_are_ordered_than_there_are():
    assert sorted(greedy_order(np.eye(3), np.ones(3), np.eye(3), 9)) == [0, 1, 2]


def test_a_subset_keeps_its_own_votes():
    table = world()
    keep = np.arange(len(table.x)) % 3 == 0
    small = forecasts.subset(table, keep, table.held_out)
    wanted = [(table.items[p], t) for p, t in zip(table.pair, table.target, strict=True) if keep[p]]
    assert [(small.items[p], t) for p, t in zip(small.pair, small.target, strict=True)] == wanted
    assert (small.x == table.x[keep]).all()


def test_exact_changes_are_on_the_votes_of_the_others():
    votes = {"p": [("ann", 1.0), ("bob", 1.0)], "q": [("ann", 0.0), ("bob", 0.5)]}
    rows = [
        {"step": "full-0", "seed": 0, "left_out": None, "scores": {"p": 0.0, "q": 1.0}},
        {"step": "ann-0", "seed": 0, "left_out": "ann", "scores": {"p": math.log(3), "q": 1.0}},
    ]
    found = influence.exact(rows, votes, {"p": 1.0, "q": -1.0})["ann"][0]
    # Of bob: the loss of p falls from ln 2 to ln 4/3; q, his tie, stays. An equal score is no right choice.
    assert found["log-loss"] == pytest.approx((math.log(4 / 3) - math.log(2)) / 2)
    assert found["error, percent"] == -100
    assert found["1 - correlation with the gold score"] == pytest.approx(-2)  # from -1 to 1


@pytest.mark.parametrize(("noise", "seeds"), [(1.0, 2), (2.0, 2), (1.0, 5)])
def test_the_ceiling_is_what_the_truth_itself_reaches(noise, seeds):
    """Many labelers with a true change each, and seeds that add noise of their own."""
    rng = np.random.default_rng(3)
    truth = rng.standard_normal(20_000)
    by_seed = truth + noise * rng.standard_normal((seeds, 20_000))
    between = np.corrcoef(by_seed)[np.triu_indices(seeds, 1)].mean()
    reached = np.corrcoef(truth, by_seed.mean(0))[0, 1]
    assert influence.ceiling(float(between), seeds) == pytest.approx(reached, abs=0.01)
    assert influence.ceiling(-0.2, seeds) is None and influence.ceiling(None, 1) is None


def test_the_interval_over_labelers_holds_the_correlation():
    estimate, truth = np.arange(8.0), np.array([0.0, 1, 3, 2, 4, 5, 7, 6])
    low, high = influence.interval(estimate, truth)
    assert low < influence.spearman(estimate, truth) < high <= 1 and low < 0.9
