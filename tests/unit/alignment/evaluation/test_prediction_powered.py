"""Prediction-powered means against ppi_py and worked cases: any judge, few votes, prompts with several votes."""

from __future__ import annotations

import numpy as np
import ppi_py
import pytest

from alignment.evaluation import prediction_powered
from alignment.evaluation.prediction_powered import powered_mean
from alignment.evaluation.win_rates import raw_win_rate


def votes(rng, count, quality, rate=0.6):
    """People's outcomes with ties, and those of a judge that copies a vote with probability 2 * quality - 1."""
    human = np.where(rng.random(count) < 0.15, 0.5, (rng.random(count) < rate).astype(float))
    guess = (rng.random(count) < 0.5).astype(float)
    return human, np.where(rng.random(count) < 2 * quality - 1, human, guess)


def test_estimate_weight_and_interval_are_ppi_pys(monkeypatch):
    monkeypatch.setattr(prediction_powered, "UNSEEN", 0.0)
    y, f = votes(np.random.default_rng(0), 3000, 0.85)
    n = 1000
    found = powered_mean(y[:n], f[:n], f[n:])
    assert found.judge_weight == pytest.approx(_lambda(y[:n], f[:n], f[n:]), abs=0.01)
    point = ppi_py.ppi_mean_pointestimate(y[:n], f[:n], f[n:], lam=found.judge_weight)
    low, high = ppi_py.ppi_mean_ci(y[:n], f[:n], f[n:], alpha=0.05, lam=found.judge_weight)
    assert found.powered["value"] == pytest.approx(np.ravel(point).item(), abs=1e-12)
    assert found.powered["ci"] == pytest.approx((np.ravel(low).item(), np.ravel(high).item()), abs=1e-3)
    assert found.powered["n"] == found.plain["n"] == n


def _lambda(y, f, rest):
    """The paper's example 6.1, by hand."""
    variance = np.r_[f, rest].var()
    return np.cov(y, f)[0, 1] / ((1 + len(y) / len(rest)) * variance)


def test_a_perfect_judge_is_worth_about_as_many_votes_as_it_gave():
    y, f = votes(np.random.default_rng(1), 600, 1.0)
    found = powered_mean(y[:200], f[:200], f[200:])
    assert 450 < found.effective_votes <= 600 and found.votes_bought == found.effective_votes - 200
    assert np.ptp(found.powered["ci"]) < 0.7 * np.ptp(found.plain["ci"])


def test_a_useless_judge_buys_nothing_and_takes_little():
    y, f = votes(np.random.default_rng(2), 2000, 0.5)
    found = powered_mean(y[:200], f[:200], f[200:])
    assert 0 <= found.judge_weight < 0.2
    assert found.effective_votes == pytest.approx(200, abs=8)


def test_a_judge_that_is_wrong_on_the_whole_shifts_nothing():
    """It finds A better by 30 points than people do; that cancels."""
    rng = np.random.default_rng(3)
    y, f = votes(rng, 4000, 0.9, rate=0.5)
    f = np.where(rng.random(4000) < 0.3, 1.0, f)
    found = powered_mean(y[:400], f[:400], f[400:])
    assert f.mean() > 0.6
    assert found.powered["value"] == pytest.approx(0.5, abs=0.04)
    assert found.effective_votes > 500


def test_without_a_judge_it_is_the_plain_rate():
    y, f = votes(np.random.default_rng(4), 50, 0.9)
    for same, rest in ((f, []), (np.full(50, 0.5), np.full(100, 0.5)), (1 - y, 1 - f)):
        found = powered_mean(y, same, rest)
        assert found.powered == found.plain == raw_win_rate(y, range(50))
        assert (found.judge_weight, found.votes_bought) == (0.0, 0.0)


def test_copies_of_a_prompts_votes_buy_nothing():
    y, f = votes(np.random.default_rng(5), 300, 0.85)
    keys = [str(i) for i in range(300)]
    once = powered_mean(y[:60], f[:60], f[60:], keys[:60], keys[60:])
    copies = powered_mean(np.tile(y[:60], 3), np.tile(f[:60], 3), np.tile(f[60:], 3), keys[:60] * 3, keys[60:] * 3)
    assert copies.powered["ci"] == pytest.approx(once.powered["ci"], abs=1e-9)
    assert copies.effective_votes == pytest.approx(3 * once.effective_votes)


def test_a_prompt_in_both_parts_is_drawn_with_both():
    """Where the rest are answers to the same prompts, a prompt's outcomes rise and fall together in both parts."""
    rng = np.random.default_rng(6)
    level = rng.random(100)
    y, f, rest = ((rng.random(100) < level).astype(float) for _ in range(3))
    keys = list(range(100))
    together = powered_mean(y, f, rest, keys, keys)
    apart = powered_mean(y, f, rest, keys, [-1 - key for key in keys])
    assert together.powered["ci"] != pytest.approx(apart.powered["ci"], abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_very_few_votes_give_wide_intervals(n):
    y, f = votes(np.random.default_rng(7), 200, 1.0)
    found = powered_mean(y[:n], f[:n], f[n:])
    low, high = found.powered["ci"]
    assert 0 <= low <= found.powered["value"] <= high <= 1
    assert high - low > 0.4


def test_agreement_on_a_few_votes_does_not_prove_a_perfect_judge():
    y, f = votes(np.random.default_rng(8), 1010, 1.0)
    found = powered_mean(y[:10], f[:10], f[10:])
    assert np.ptp(found.powered["ci"]) > 0.2  # a judge that is wrong in 5% agrees ten times in 60% of the cases
