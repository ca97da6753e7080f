"""The stopping rule: valid at every look, like a capital worked by hand, and a forecast of how many votes it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.evaluation.stopping import decide, log_capital, ratings_forecast, ratings_needed, settled


def streams(rng, shape, rate, ties=0.2):
    return np.where(rng.random(shape) < ties, 0.5, (rng.random(shape) < rate).astype(float))


def deciders(outcomes, level=0.05, rate=0.5):
    """The share of streams whose capital reaches 1 / level at any vote: (S, N) -> share."""
    parts = np.array_split(outcomes, max(1, outcomes.size // 40_000))
    return float(np.concatenate([log_capital(part, rate).max(0).max(-1) >= -math.log(level) for part in parts]).mean())


def test_the_capital_is_that_of_a_bettor():
    outcomes = [1.0, 0.0, 0.5, 1.0]
    bets = [k / 20 for k in range(1, 20)]
    for side, sign in enumerate((1, -1)):
        capital = sum(math.prod(1 + sign * bet * (x - 0.5) / 0.5 for x in outcomes) for bet in bets) / len(bets) / 2
        assert log_capital(np.array(outcomes), 0.5)[side, -1] == pytest.approx(math.log(capital))
    found = decide(outcomes)
    assert found.e_value == pytest.approx(math.exp(log_capital(np.array(outcomes), 0.5)[:, -1].max()))
    assert found.decided is None and found.at is None and found.counted == 4


def test_the_bets_are_fair_for_any_outcomes_with_the_rate_that_is_asked_about():
    rates = np.array([0.2, 0.5, 0.7])
    for rate in rates:
        # Two outcomes with this mean: the expected capital after one vote is the capital before it.
        low, high = np.exp(log_capital(np.array([0.1]), rate)), np.exp(log_capital(np.array([0.9]), rate))
        odds = (rate - 0.1) / 0.8
        assert ((1 - odds) * low + odds * high)[:, 1] == pytest.approx([0.5, 0.5])


def test_equal_sides_are_hardly_ever_decided_though_looked_at_after_every_vote():
    """A z-test after each of these votes decides between equal sides in more than a third of the streams."""
    outcomes = streams(np.random.default_rng(0), (400, 200), 0.5)
    assert deciders(outcomes) <= 0.05
    lead, n = np.cumsum(outcomes - 0.5, -1), np.arange(1, 201)
    assert (np.abs(lead)[:, 10:] > 1.96 * np.sqrt(0.2 * n)[10:]).any(-1).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("ties", [0.0, 0.3])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_error_stays_below_the_level_in_2000_streams_of_400_votes(ties, level):
    error = deciders(streams(np.random.default_rng(1), (2000, 400), 0.5, ties), level)
    assert error <= level


@pytest.mark.slow
def test_the_confidence_sequence_holds_the_rate_at_every_look():
    outcomes = streams(np.random.default_rng(2), (2000, 400), 0.65, ties=0.2)
    assert deciders(outcomes, rate=0.8 * 0.65 + 0.1) <= 0.05


def test_a_clear_lead_is_decided_for_the_right_side_and_stays_decided():
    outcomes = streams(np.random.default_rng(3), 120, 0.8)
    found = decide(outcomes)
    assert found.decided == "a" and found.at < 60 and found.interval[0] >= 0.5
    later = decide(np.r_[outcomes[: found.at], np.zeros(40)])
    assert (later.decided, later.at) == ("a", found.at)
    turned = decide(1 - outcomes)
    assert (turned.decided, turned.at) == ("b", found.at)
    assert turned.interval == pytest.approx((1 - found.interval[1], 1 - found.interval[0]))


def test_the_decision_comes_at_the_vote_at_which_the_interval_leaves_one_half():
    outcomes = streams(np.random.default_rng(4), 100, 0.85)
    at = decide(outcomes).at
    assert decide(outcomes[: at - 1]).interval[0] < 0.5 <= decide(outcomes[:at]).interval[0]


def test_a_smaller_level_takes_more_votes_and_no_votes_say_nothing():
    outcomes = streams(np.random.default_rng(5), 200, 0.75)
    assert decide(outcomes, 0.001).at > decide(outcomes, 0.1).at
    nothing = decide([])
    assert (nothing.decided, nothing.interval, nothing.counted) == (None, (0.0, 1.0), 0)


def test_votes_on_one_prompt_count_once():
    outcomes = [1.0] * 40
    assert decide(outcomes).decided == "a"
    assert decide(outcomes, prompts=["p"] * 40).decided is None
    assert decide(outcomes, prompts=[i % 8 for i in range(40)]).counted == 8


def test_a_prompt_is_settled_by_its_last_vote_of_those_fixed_before():
    means, when = settled([1, 1, 0, 0.5, 0, 1], ["p", "q", "p", "p", "q", "r"], 2)
    assert means.tolist() == [0.5, 0.5] and when.tolist() == [3, 5]
    outcomes = [1.0] * 40
    assert decide(outcomes, prompts=[i // 2 for i in range(40)], votes_per_prompt=2).at % 2 == 0


# --- forecast ------------------------------------------------------------------------------------------------------


def test_the_forecast_is_about_what_it_takes():
    rng = np.random.default_rng(6)
    so_far = np.array([1.0] * 13 + [0.0] * 7)
    rng.shuffle(so_far)
    found = ratings_forecast(so_far)
    assert found.low <= found.middle and (found.high is None or found.middle <= found.high)
    assert ratings_needed(so_far) == found.middle
    # By hand: people go on with 13 of 20, known exactly; the range has to hold most of such futures.
    log = log_capital(np.c_[np.tile(so_far, (200, 1)), rng.random((200, 800)) < 0.65].astype(float), 0.5).max(0)
    took = (log >= math.log(20)).argmax(-1) - 20
    inside = (took >= found.low) & (took <= (found.high or 10**6))
    assert inside.mean() > 0.75


def test_a_clearer_lead_needs_fewer_and_a_decided_one_none():
    close = ratings_needed([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0] * 2)
    clear = ratings_needed([1.0] * 5 + [0.0] + [1.0] * 4)
    assert clear < 25 and (close is None or close > 2 * clear)
    assert ratings_needed([1.0] * 30) == 0


def test_nothing_is_forecast_without_a_vote_or_where_it_would_take_too_many():
    assert ratings_needed([]) is None
    assert ratings_needed([1.0, 0.0] * 100, most=100) is None


def test_a_seed_gives_the_same_forecast():
    outcomes = [1.0, 1.0, 0.0, 1.0, 0.5, 1.0]
    assert ratings_forecast(outcomes, seed=1) == ratings_forecast(outcomes, seed=1)
