"""Kappa of a judge with people, against worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.evaluation.agreement import judge_kappa


def test_kappa_of_a_judge_is_cohens():
    # Cohen's worked case: 20 and 15 agreements of 50, marginals 25/25 and 30/20: (0.7 - 0.5) / 0.5.
    judge = ["a"] * 25 + ["b"] * 25
    people = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    found = judge_kappa(judge, people, range(50))
    assert found["value"] == pytest.approx(0.4) and found["n"] == 50
    low, high = found["ci"]
    # Standard error of kappa at these counts: sqrt(p_o (1 - p_o) / (n (1 - p_e)^2)) = 0.13.
    assert (high - low) / 2 == pytest.approx(2.01 * 0.13, rel=0.1)


def test_full_agreement_on_few_items_is_no_certainty():
    found = judge_kappa(["a", "b"] * 8, ["a", "b"] * 8, range(16))
    assert found["value"] == found["ci"][1] == 1
    assert 0.4 < found["ci"][0] < 0.8


def test_votes_on_one_prompt_are_drawn_together():
    rng = np.random.default_rng(0)
    judge = rng.choice(["a", "b", "tie"], 40)
    people = np.where(rng.random(40) < 0.6, judge, rng.choice(["a", "b", "tie"], 40))
    once = judge_kappa(judge.tolist(), people.tolist(), range(40))
    copies = judge_kappa(judge.tolist() * 3, people.tolist() * 3, [*range(40)] * 3)
    assert copies["ci"] == pytest.approx(once["ci"], abs=1e-9)
    assert copies["n"] == 120


def test_there_is_no_kappa_without_votes_or_with_one_label():
    assert judge_kappa([], [], []) is None
    assert judge_kappa(["a"] * 5, ["a"] * 5, range(5)) is None
