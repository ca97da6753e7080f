"""The study of saved votes: votes of the demo's labelers, and judges whose worth is known."""

from __future__ import annotations

import random
import statistics

import pytest
from studies import saved_votes as study_of

from alignment.errors import UserError


def test_votes_follow_the_gold_scores_whichever_side_is_shown_first():
    rng = random.Random(0)
    better, worse = ([study_of.vote(gold, rng) for _ in range(2000)] for gold in ((3.0, 1.0), (1.0, 3.0)))
    assert statistics.fmean(better) == pytest.approx(1 - statistics.fmean(worse), abs=0.03)
    assert statistics.fmean(better) > 0.85
    assert statistics.fmean(study_of.vote((2.0, 2.0), rng) for _ in range(4000)) == pytest.approx(0.5, abs=0.03)


def test_a_judge_who_knows_halves_the_votes_and_one_who_does_not_saves_none():
    rng = random.Random(0)
    gold = {str(key): (rng.choice((0.0, 3.0)), rng.choice((0.0, 3.0))) for key in range(600)}
    knows = {key: 0.5 if a == b else float(a > b) for key, (a, b) in gold.items()}
    guesses = {key: float(rng.random() < 0.5) for key in gold}
    seeds = list(map(str, range(10)))
    found = {
        name: [study_of.study(gold, judge, 0.5, 0.1, 5, seed) for seed in seeds]
        for name, judge in (("knows", knows), ("guesses", guesses))
    }
    assert statistics.fmean(each.needed for each in found["knows"]) < 0.5
    assert statistics.fmean(each.needed for each in found["guesses"]) > 0.9
    assert sum(each.holds for each in found["knows"]) >= 7


def test_a_comparison_without_the_gold_score_is_refused():
    with pytest.raises(UserError, match="compare with --by python=help_desk"):
        study_of.page([], 1)
