"""The rule that says whether more data would help, on losses whose truth is known."""

from collections import Counter

import numpy as np
import pytest

from alignment.evaluation.judge import bootstrap_mean
from sft.studies.more_data import EXPONENTS, HeldOut, answer, doubling_savings, misfits, resampled_curves

SIZES = (100, 200, 400)
RUNS = 200


def losses(law, seed, seeds=3, prompts=60, between_seeds=0.02, within=0.1):
    """Held-out prompts of unequal length and difficulty, each share and seed off the law by luck of its own."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 40, size=prompts).astype(float)
    difficulty = 1 + 0.15 * rng.normal(size=prompts)
    means = [[law(size) + between_seeds * rng.normal() for size in SIZES] for _ in range(seeds)]
    each = np.asarray(means)[..., None] * difficulty + within * rng.normal(size=(seeds, len(SIZES), prompts))
    return HeldOut(each * tokens, tokens)


def verdicts(law, **options):
    found = [answer(losses(law, seed, **options), SIZES) for seed in range(RUNS)]
    return Counter(each.verdict for each in found), found


def test_data_that_has_nothing_more_to_give_is_seldom_called_worth_it():
    """The false-positive rate of a 95% interval's one side is 2.5%; of 200 saturated curves at most 2% get it wrong."""
    counts, found = verdicts(lambda size: 1.5)
    assert counts["worth it"] <= 0.02 * RUNS
    assert sum(each.ci[0] <= 0 <= each.ci[1] for each in found) >= 0.95 * RUNS


def test_saturated_data_with_little_noise_is_called_not_worth_it():
    counts, _ = verdicts(lambda size: 1.5, seeds=5, between_seeds=0.003, within=0.01)
    assert counts["not worth it"] >= 0.95 * RUNS


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_a_loss_that_still_falls_is_called_worth_it_and_the_interval_holds_the_truth(exponent):
    def law(size):
        return 1 + (size / 100) ** -exponent

    counts, found = verdicts(law)
    saved = law(400) - law(800)
    assert counts["worth it"] >= 0.95 * RUNS
    assert counts["not worth it"] == 0
    assert sum(each.ci[0] <= saved <= each.ci[1] for each in found) >= 0.95 * RUNS


def test_a_loss_that_rises_is_never_called_worth_it():
    counts, _ = verdicts(lambda size: 1 + 0.1 * np.log2(size / 100))
    assert counts["worth it"] == 0


@pytest.mark.parametrize("place", range(0, len(EXPONENTS), 4))
def test_a_power_law_is_drawn_on_exactly(place):
    sizes, exponent = (30, 100, 250, 400), EXPONENTS[place]
    curve = np.asarray([1 + 0.4 * (size / 400) ** -exponent for size in sizes])
    missed = curve @ misfits(curve, sizes)
    assert missed[place] == pytest.approx(0, abs=1e-12)
    assert missed.argmin() == place
    assert doubling_savings(curve, sizes)[place] == pytest.approx(0.4 - 0.4 * 2**-exponent)


def test_no_more_is_saved_than_three_quarters_of_the_loss():
    assert doubling_savings(np.asarray([8.0, 2.0, 0.1]), SIZES).max() == pytest.approx(0.075)


def test_the_resampled_curve_is_the_bootstrap_of_a_mean():
    """`bootstrap_mean` of each share alone has the same centre and nearly the same interval."""
    held_out = losses(lambda size: 1 + 50 / size, seed=1)
    curves = resampled_curves(held_out)
    for place in range(len(SIZES)):
        values = held_out.loss[:, place].mean(0) / held_out.tokens
        theirs = bootstrap_mean(values, weights=held_out.tokens, seed=1)
        assert held_out.per_token()[:, place].mean() == pytest.approx(theirs["value"])
        ours = np.quantile(curves[:, place], [0.025, 0.975])
        assert ours == pytest.approx(theirs["ci"], abs=0.1 * (theirs["ci"][1] - theirs["ci"][0]))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((3, 2, 60), "2 fractions cannot distinguish"),
        ((1, 3, 60), "1 seeds cannot distinguish"),
        ((3, 3, 9), "9 held-out prompts cannot distinguish"),
    ],
)
def test_too_little_to_go_by_is_said(shape, reason):
    shares, prompts = shape[1:]
    held_out = HeldOut(np.broadcast_to(np.linspace(2, 1, shares)[:, None], shape), np.ones(prompts))
    found = answer(held_out, SIZES[:shares])
    assert found.verdict == "cannot tell"
    assert reason in found.sentence
    assert found.saving is None


def test_the_sentence_says_how_much_of_what():
    found = answer(losses(lambda size: 1 + 100 / size, seed=0), SIZES)
    assert found.sentence.startswith("doubling your 400 prompts would lower the held-out loss of 1.2")
    assert f"by about {found.saving:.3g} ({found.ci[0]:.3g} to {found.ci[1]:.3g}): worth it" in found.sentence
