"""Reading a range test: a quadratic whose best rate is known, noise that says nothing, and losses that end early."""

import math

import numpy as np
import pytest

from sft.studies.lr_finder import DECADE, HIGHEST, LOWEST, STEPS, has_diverged, read_range, smooth

RATES = np.geomspace(LOWEST, HIGHEST, STEPS).tolist()


def ramp(curvature, noise=0.0, seed=0, dimensions=10):
    """Losses of gradient descent on curvature / 2 |x|^2 while the rate grows, stopped as the finder stops."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=dimensions) / math.sqrt(curvature)
    losses = []
    for rate in RATES:
        losses.append(float(0.5 * curvature * (x @ x) + 2.0 + noise * rng.normal()))
        if has_diverged(losses):
            break
        x = x - rate * curvature * x
    return losses


@pytest.mark.parametrize("curvature", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_quadratic_is_given_a_rate_that_learns_and_does_not_diverge(curvature, noise):
    """Gradient descent diverges above 2 / curvature; a hundredth of that would still be slow to learn."""
    losses = ramp(curvature, noise)
    result = read_range(RATES[: len(losses)], losses)
    assert result.diverged
    assert len(losses) < STEPS
    assert RATES[len(losses) - 1] > 2 / curvature
    assert 0.02 / curvature < result.suggestion < 1 / curvature


def test_the_suggestion_moves_with_the_curvature():
    found = [read_range(RATES[: len(losses)], losses).suggestion for losses in map(ramp, (1e2, 1e3, 1e4))]
    assert found[0] / found[1] == pytest.approx(10, rel=0.3)
    assert found[1] / found[2] == pytest.approx(10, rel=0.3)


def test_the_suggestion_is_at_most_a_tenth_of_the_rate_with_the_lowest_loss():
    """A cliff right before the minimum: its own middle would be too near to where it diverges."""
    losses = [5.0] * 70 + np.linspace(5, 1, 10).tolist() + [30.0] * 3
    result = read_range(RATES[: len(losses)], losses)
    assert result.suggestion == pytest.approx(result.lowest / 10)


def test_losses_that_never_fall_give_no_suggestion():
    """Noise alone, and noise before a divergence: at most one in fifty is mistaken for learning."""
    wrong = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        losses = (3 + 0.2 * rng.normal(size=STEPS)).tolist()
        if seed % 2:
            losses[70:] = [10.0] * 5
        wrong += read_range(RATES[: len(losses)], losses).suggestion is not None
    assert wrong <= 6


def test_losses_that_climb_at_once_give_no_suggestion():
    losses = [2.0, 2.0, 4.0, 9.0]
    assert has_diverged(losses)
    assert read_range(RATES[:4], losses).suggestion is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_test_and_does_not_spoil_it(value):
    losses = [*ramp(1e3)[:-5], value]
    assert has_diverged(losses)
    result = read_range(RATES[: len(losses)], losses)
    assert result.suggestion == pytest.approx(read_range(RATES[: len(losses) - 1], losses[:-1]).suggestion)


def test_a_loss_that_falls_or_wavers_has_not_diverged():
    losses = []
    for step in range(STEPS):
        losses.append(7 - 0.05 * step + 0.5 * math.sin(step))
        assert not has_diverged(losses)


def test_smoothing_does_not_start_at_zero():
    assert smooth([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    # weights 0.2 for the last and 0.2 * 0.8 for the one before it, divided by their sum
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.16 * 1 + 0.2 * 2) / 0.36)


def test_a_decade_of_rates_is_a_decade():
    assert RATES[DECADE] / RATES[0] == pytest.approx(10, rel=0.2)
