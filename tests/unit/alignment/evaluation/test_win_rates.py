"""Win rates against statsmodels and worked cases: ties, few prompts, separable data, lengths not to be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from alignment.evaluation.clusters import effective_prompts, score_interval, t_quantile
from alignment.evaluation.win_rates import (
    fit_logistic,
    length_controlled_win_rate,
    raw_win_rate,
    sign_test,
    squashed,
)


def judged(rng, count, lead, slope, longer, ties=0.0):
    """Outcomes of a judge with a logistic taste for A (`lead`) and for length, where A's answers are longer."""
    difference = rng.normal(longer, 1, count)
    won = (rng.random(count) < 1 / (1 + np.exp(-lead - slope * np.tanh(difference)))).astype(float)
    return np.where(rng.random(count) < ties, 0.5, won), difference * 80, [str(i) for i in range(count)]


# --- intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 5, 9, 10, 19, 49, 500])
def test_the_t_quantile_is_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-4)


def test_a_broken_number_of_degrees_of_freedom_is_rounded_down_where_it_matters():
    assert t_quantile(2.9) == t_quantile(2) and t_quantile(0.1) == t_quantile(1)


def test_the_score_interval_of_many_independent_outcomes_is_wilsons():
    low, high = scipy.stats.binomtest(1400, 2000).proportion_ci(method="wilson")
    assert score_interval(0.7, 0.7 * 0.3 / 2000, 2000) == pytest.approx((low, high), abs=1e-4)


def test_one_prompt_says_nothing_of_others():
    assert raw_win_rate([1.0, 1.0, 0.0], ["p", "p", "p"])["ci"] == (0.0, 1.0)


def test_a_few_large_prompts_count_as_few():
    assert effective_prompts(np.ones(10)) == pytest.approx(10)
    assert effective_prompts(np.array([100.0, *[1.0] * 10])) < 2


# --- raw -----------------------------------------------------------------------------------------------------------


def test_the_raw_rate_is_the_mean_with_ties_one_half():
    found = raw_win_rate([1, 0.5, 0, 1], ["a", "b", "c", "d"])
    assert (found["value"], found["n"]) == (0.625, 4)


def test_always_winning_is_no_certainty():
    found = raw_win_rate([1.0] * 20, range(20))
    # Clopper-Pearson's lower end of 20 wins of 20 is 83.2%; the percentile bootstrap's is 100%.
    assert found["value"] == found["ci"][1] == 1.0
    assert 0.75 < found["ci"][0] < 0.85


def test_copies_of_a_prompts_votes_add_nothing():
    outcomes = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0] * 5
    once = raw_win_rate(outcomes, range(30))["ci"]
    assert raw_win_rate(outcomes * 4, [*range(30)] * 4)["ci"] == pytest.approx(once, abs=1e-9)
    assert raw_win_rate(outcomes * 4, range(120))["ci"][0] > once[0] + 0.05


def test_the_seed_decides_the_resamples():
    outcomes, prompts = [1.0, 0.0, 0.5, 1.0, 1.0] * 4, range(20)
    assert raw_win_rate(outcomes, prompts, seed=3) == raw_win_rate(outcomes, prompts, seed=3)
    assert raw_win_rate(outcomes, prompts, seed=3) != raw_win_rate(outcomes, prompts, seed=4)


# --- at equal length -----------------------------------------------------------------------------------------------


def test_the_regression_is_statsmodels_with_ties_and_weights():
    y, difference, _ = judged(np.random.default_rng(0), 300, 0.4, 1.5, 0.5, ties=0.2)
    x = squashed(difference)
    weights = np.random.default_rng(1).integers(0, 4, (3, 300)).astype(float)
    ours = fit_logistic(y, x, weights, ridge=0.0)
    for row, weight in zip(ours, weights, strict=True):
        theirs = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial(), freq_weights=weight).fit()
        assert row == pytest.approx(theirs.params, abs=1e-6)


def test_the_ridge_is_too_small_to_see():
    y, difference, prompts = judged(np.random.default_rng(2), 200, 1.0, 1.0, 0.5)
    theirs = sm.GLM(y, sm.add_constant(squashed(difference)), family=sm.families.Binomial()).fit().params[0]
    found = length_controlled_win_rate(y, difference, prompts)
    assert found["value"] == pytest.approx(1 / (1 + math.exp(-theirs)), abs=1e-3)


def test_the_interval_is_as_wide_as_that_of_clustered_errors():
    y, difference, _ = judged(np.random.default_rng(3), 400, 0.3, 1.0, 0.3)
    groups = np.arange(400) // 4
    fit = sm.GLM(y, sm.add_constant(squashed(difference)), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups}
    )
    theirs = 1 / (1 + np.exp(-fit.conf_int()[0]))
    found = length_controlled_win_rate(y, difference, groups.tolist())
    assert found["ci"] == pytest.approx(tuple(theirs), abs=0.012)


def test_a_judge_that_goes_by_length_alone_gives_one_half_and_turning_round_gives_one_less():
    y, difference, prompts = judged(np.random.default_rng(4), 1500, 0.0, 2.0, 0.8)
    found = length_controlled_win_rate(y, difference, prompts)
    assert y.mean() > 0.65
    assert found["value"] == pytest.approx(0.5, abs=0.05) and found["ci"][0] < 0.5 < found["ci"][1]
    turned = length_controlled_win_rate(1 - y, -difference, prompts)
    assert turned["value"] == pytest.approx(1 - found["value"], abs=1e-9)


def test_the_unit_of_length_does_not_matter():
    y, difference, prompts = judged(np.random.default_rng(5), 80, 0.5, 1.0, 0.3)
    tokens = length_controlled_win_rate(y, difference, prompts)
    assert length_controlled_win_rate(y, difference * 4.2, prompts)["ci"] == pytest.approx(tokens["ci"], abs=1e-9)


@pytest.mark.parametrize("outcomes", [[1.0] * 30, [0.0] * 30, [1.0] * 15 + [0.0] * 15], ids=["won", "lost", "split"])
def test_separable_outcomes_stay_finite_and_uncertain(outcomes):
    difference = np.linspace(30, -31, 30)  # in "split" the longer answer always wins
    found = length_controlled_win_rate(outcomes, difference, range(30))
    low, high = found["ci"]
    assert 0 <= low < found["value"] < high <= 1 or found["value"] in (low, high)
    assert high - low > 0.1


def test_equal_lengths_give_about_the_raw_rate():
    outcomes = [1.0, 1.0, 1.0, 0.0] * 25
    found = length_controlled_win_rate(outcomes, [0.0] * 100, range(100))
    assert found["value"] == pytest.approx(0.75, abs=1e-3)
    assert found["ci"] == pytest.approx(raw_win_rate(outcomes, range(100))["ci"], abs=0.01)


@pytest.mark.parametrize("differences", [[7.0] * 40, [100.0 + i % 3 for i in range(40)]], ids=["the same", "alike"])
def test_nothing_is_said_of_equal_length_where_one_side_is_always_longer(differences):
    assert length_controlled_win_rate([1.0, 0.0] * 20, differences, range(40)) is None


# --- sign test -----------------------------------------------------------------------------------------------------


def test_the_sign_test_is_scipys_over_prompts_without_ties():
    prompts = [i // 3 for i in range(60)]
    outcomes = np.random.default_rng(6).choice([0.0, 0.5, 1.0], 60, p=[0.2, 0.3, 0.5])
    means = outcomes.reshape(20, 3).mean(1)
    won, lost = int((means > 0.5).sum()), int((means < 0.5).sum())
    assert won + lost < 20
    assert sign_test(outcomes, prompts) == pytest.approx(scipy.stats.binomtest(won, won + lost).pvalue)


def test_ties_alone_are_no_evidence():
    assert sign_test([0.5, 0.5, 1.0, 0.0], ["a", "b", "c", "c"]) == 1.0
