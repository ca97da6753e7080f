"""The held-out report, worked by hand."""

import math

import pytest
import tiny

from alignment.data import Comparison
from reward.evaluate import order, report, vote_accuracy
from reward.questions import JudgedPair, Question


def comparison(prompt, first, second, tie=0):
    return Comparison(({"role": "user", "content": prompt},), "x", "y", tiny.votes(first, second, tie))


def test_accuracy_counts_votes_not_pairs_and_leaves_ties_out():
    rows = [comparison("a", 3, 1), comparison("b", 0, 1, 5), comparison("c", 0, 0, 2), comparison("d", 1, 0)]
    says = [1.0, 1.0, 1.0, 0.5]
    found = vote_accuracy(rows, says.__getitem__)
    assert found["value"] == pytest.approx((3 + 0 + 0.5) / 6)
    assert found["n"] == 6
    assert found["ci"][0] <= found["value"] <= found["ci"][1]
    assert vote_accuracy(rows[2:3], says.__getitem__) is None


def test_order_knows_a_tie():
    assert (order(2, 1), order(1, 2), order(1, 1)) == (1.0, 0.0, 0.5)


def question(comparison, first, second):
    return Question([], [first, second], (JudgedPair(0, 1, comparison.target, comparison.weight, 0.0, comparison),))


def test_the_report_gives_accuracy_log_loss_and_the_length_baseline():
    questions = [
        question(comparison("a", 1, 0), [1, 2, 3], [1, 2]),  # right, longer is better
        question(comparison("b", 0, 2), [1], [1, 2]),  # wrong, longer is better
        question(comparison("c", 1, 1), [1, 2], [1]),
        question(comparison("d", 0, 0, 1), [1, 2], [1]),
    ]
    scores = [(1.0, -1.0), (0.5, 0.0), (2.0, 0.0), (800.0, -800.0)]
    found = report(questions, scores)
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 1) / 5)
    assert found["length_baseline"]["value"] == pytest.approx((1 + 2 + 1) / 5)

    def softplus(x):
        return math.log1p(math.exp(x))

    total = softplus(-2) + 2 * softplus(0.5) + (softplus(-2) + softplus(2)) + 800
    assert found["log_loss"]["value"] == pytest.approx(total / 6)
