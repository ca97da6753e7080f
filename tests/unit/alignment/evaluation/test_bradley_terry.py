"""Bradley-Terry strengths against evalica and worked cases: ties, unbeaten sides, sides that never met."""

from __future__ import annotations

import itertools
import math

import evalica
import numpy as np
import pytest

from alignment.evaluation.bradley_terry import bradley_terry, separated, unlinked, win_probability

STRENGTHS = {"a": 0.9, "b": 0.2, "c": -0.3, "d": -0.8}
WINNERS = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}


def round_robin(rng, prompts, strengths=STRENGTHS, ties=0.2):
    rows, keys = [], []
    for prompt in range(prompts):
        for a, b in itertools.combinations(strengths, 2):
            won = float(rng.random() < win_probability(strengths[a], strengths[b]))
            outcome = 0.5 if rng.random() < ties else won
            rows.append((a, b, outcome) if rng.random() < 0.5 else (b, a, 1 - outcome))
            keys.append(prompt)
    return rows, keys


def test_strengths_are_evalicas_with_ties():
    rows, prompts = round_robin(np.random.default_rng(0), 60)
    result = evalica.bradley_terry(
        [a for a, _, _ in rows],
        [b for _, b, _ in rows],
        [WINNERS[outcome] for *_, outcome in rows],
        tolerance=1e-12,
        limit=10_000,
    )
    theirs = np.log(result.scores)
    theirs -= theirs.mean()
    ours = bradley_terry(rows, prompts)
    assert list(ours) == list(theirs.index)
    assert [ours[side]["value"] for side in ours] == pytest.approx(list(theirs), abs=2e-3)
    assert sum(found["value"] for found in ours.values()) == pytest.approx(0, abs=1e-9)
    assert {found["n"] for found in ours.values()} == {180}


def test_two_sides_have_the_log_odds_of_their_win_rate():
    ours = bradley_terry([("a", "b", 1.0)] * 60 + [("b", "a", 1.0)] * 20 + [("a", "b", 0.5)] * 20, range(100))
    assert ours["a"]["value"] - ours["b"]["value"] == pytest.approx(math.log(70 / 30), abs=2e-3)
    assert win_probability(ours["a"]["value"], ours["b"]["value"]) == pytest.approx(0.7, abs=1e-3)


def test_the_interval_of_two_sides_is_that_of_the_log_odds():
    ours = bradley_terry([("a", "b", 1.0)] * 140 + [("b", "a", 1.0)] * 60, range(200))
    reach = 1.972 * math.sqrt(1 / 140 + 1 / 60) / 2  # each strength is half of the log-odds
    low, high = ours["a"]["ci"]
    assert ((high - low) / 2) == pytest.approx(reach, rel=0.08)


def test_pairs_of_one_prompt_are_drawn_together():
    rows, prompts = round_robin(np.random.default_rng(1), 40)
    once = bradley_terry(rows, prompts)
    copies = bradley_terry(rows * 3, prompts * 3)
    apart = bradley_terry(rows * 3, range(len(rows) * 3))
    for side in once:
        assert copies[side]["ci"] == pytest.approx(once[side]["ci"], abs=2e-3)
    assert np.ptp(apart["a"]["ci"]) < 0.7 * np.ptp(copies["a"]["ci"])


def test_an_unbeaten_side_is_ahead_by_nobody_knows_how_much():
    ours = bradley_terry([("a", "b", 1.0)] * 20, range(20))
    low, high = ours["a"]["ci"]
    # 20 of 20: with 95% the win rate is above 83%, so that each strength is above 0.80.
    assert 0.3 < low < 0.85 and high > ours["a"]["value"] > 2
    assert ours["b"]["ci"] == pytest.approx((-high, -low))


def test_a_set_of_sides_that_never_lost_to_the_others_is_found_though_each_has_wins_and_losses():
    rows = [("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 1.0), ("d", "c", 1.0)] * 10
    rows += [("a", "c", 1.0), ("b", "d", 1.0)] * 10
    ours = bradley_terry(rows, range(len(rows)))
    assert ours["a"]["ci"][0] > 0 and np.ptp(ours["a"]["ci"]) > 2
    wins = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=float)
    assert separated(wins) and not separated(wins + wins.T)


def test_sides_that_never_met_are_not_ordered():
    rows = [("a", "b", 1.0)] * 20 + [("c", "d", 1.0), ("d", "c", 1.0)] * 10
    assert unlinked(rows) == [["a", "b"], ["c", "d"]]
    assert unlinked([*rows, ("d", "a", 0.5)]) == []
    ours = bradley_terry(rows, range(len(rows)))
    assert all(found["ci"][0] < 0 < found["ci"][1] and np.ptp(found["ci"]) > 4 for found in ours.values())


def test_ties_alone_leave_the_sides_equal_and_uncertain():
    ours = bradley_terry([("a", "b", 0.5)] * 6, range(6))
    assert ours["a"]["value"] == pytest.approx(0, abs=1e-9)
    assert ours["a"]["ci"][0] < -0.3 and ours["a"]["ci"][1] > 0.3
    assert bradley_terry([], []) == {}


def test_a_win_probability_never_overflows():
    assert win_probability(0, 0) == 0.5
    assert win_probability(-1e6, 1e6) < 1e-200 and win_probability(1e6, -1e6) == 1
