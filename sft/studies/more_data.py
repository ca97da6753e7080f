"""Extrapolate the held-out losses of nested fractions of the training data to twice the data.

These are pure functions; `sft.studies.learning_curve` measures the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORTH = 0.01
"""Fraction of the loss that doubling the data must save to be worth it."""
MIN_SHARES, MIN_SEEDS, MIN_GROUPS = 3, 2, 10
EXPONENTS = np.geomspace(0.05, 2.0, 20)
"""Candidate exponents c, from nearly linear in log n to twice the rate of a sample mean's variance."""
RESAMPLES = 2000
# Student's t, 97.5%, for 1 to 9 degrees of freedom: 2 to 10 seeds.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
RULE = (
    "a + b n^-c is fitted by least squares to the held-out loss over n prompts and extrapolated to twice the "
    "data. The saving uses the c from 0.05 to 2 that fits the mean over seeds best. Its 95% interval combines "
    "Student's t over seeds and a bootstrap over held-out prompts, and covers those of every c whose misfit may be "
    f"noise. Worth it: the interval is above 0 and the saving at least {WORTH:.0%} of the loss. Not worth it: the "
    f"whole interval is below {WORTH:.0%} of the loss. Otherwise it cannot tell."
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """Losses on the held-out prompts.

    loss: (..., fractions, prompts) nats, summed over the trained tokens of a prompt's rows; tokens: (prompts,).
    """

    loss: Array
    tokens: Array

    def per_token(self, times: Array | None = None) -> Array:
        """Loss per token, (..., fractions); with weights `times` of the prompts, (n, prompts): (..., fractions, n)."""
        counts = np.ones(len(self.tokens)) if times is None else times
        return np.asarray((self.loss @ counts.T) / (counts @ self.tokens))


@dataclass(frozen=True)
class DoublingEstimate:
    """The saving of doubling the data in nats per token, its 95% interval, and the verdict in a sentence."""

    verdict: str
    sentence: str
    saving: float | None = None
    ci: tuple[float, float] | None = None


def doubling_savings(curves: Array, sizes: Sequence[int]) -> Array:
    """The saving of twice the last size under each exponent: (..., fractions) -> (..., exponents).

    It is at most three quarters of the last loss, because a loss and thus `a` are at least 0, and c is at most 2.
    """
    shares = np.asarray(sizes, dtype=np.float64) / sizes[-1]
    weights = [np.linalg.pinv(_design(shares, c))[1] * (1 - 2.0**-c) for c in EXPONENTS]
    return np.asarray(np.minimum(curves @ np.stack(weights, axis=1), curves[..., -1:] * 0.75))


def misfits(curve: Array, sizes: Sequence[int]) -> Array:
    """Weights that give the length of each exponent's residuals when multiplied by a curve: (fractions, exponents).

    The length is measured along this curve's residuals, so that the noise of other curves averages out to 0.
    """
    shares = np.asarray(sizes, dtype=np.float64) / sizes[-1]
    weights = []
    for exponent in EXPONENTS:
        design = _design(shares, exponent)
        residual = np.eye(len(shares)) - design @ np.linalg.pinv(design)
        residuals = residual @ curve
        weights.append(residuals / max(float(np.linalg.norm(residuals)), 1e-300) @ residual)
    return np.stack(weights, axis=1)


def _design(shares: Array, exponent: float) -> Array:
    return np.stack([np.ones_like(shares), shares**-exponent], axis=1)


def answer(held_out: HeldOut, sizes: Sequence[int], seed: int = 0) -> DoublingEstimate:
    """Apply `RULE`.

    Args:
        sizes: number of training prompts of each fraction, in ascending order.
    """
    num_seeds, num_shares, num_groups = held_out.loss.shape
    curves = held_out.per_token()
    now = float(curves[:, -1].mean())
    doubling = f"doubling your {sizes[-1]} prompts would lower the held-out loss of {now:.4g} per token"
    for count, minimum, unit in (
        (num_shares, MIN_SHARES, "fractions"),
        (num_seeds, MIN_SEEDS, "seeds"),
        (num_groups, MIN_GROUPS, "held-out prompts"),
    ):
        if count < minimum:
            reason = f"{count} {unit} cannot distinguish luck from learning; it takes {minimum} or more"
            return DoublingEstimate("cannot tell", f"cannot tell whether {doubling}: {reason}")
    resampled = resampled_curves(held_out, seed)
    savings, low, high = _interval(doubling_savings(curves, sizes), doubling_savings(resampled, sizes))
    weights = misfits(curves.mean(0), sizes)
    misfit, misfit_low, _ = _interval(curves @ weights, resampled @ weights)
    best = int(misfit.argmin())
    fits = misfit_low <= max(float(misfit_low[best]), 0.0)
    saving, ci = float(savings[best]), (float(low[fits].min()), float(high[fits].max()))
    saving_text = f"by about {saving:.3g} ({ci[0]:.3g} to {ci[1]:.3g})"
    if ci[0] > 0 and saving >= WORTH * now:
        return DoublingEstimate("worth it", f"{doubling} {saving_text}: worth it", saving, ci)
    if ci[1] < WORTH * now:
        return DoublingEstimate("not worth it", f"{doubling} {saving_text}: not worth it", saving, ci)
    more = "more seeds or more held-out rows make the interval narrower"
    return DoublingEstimate("cannot tell", f"cannot tell whether {doubling}: {saving_text}; {more}", saving, ci)


def _interval(by_seed: Array, resampled: Array) -> tuple[Array, Array, Array]:
    """Mean with its 95% interval over seeds and held-out prompts: (seeds, n) and (resamples, n) to three of (n,)."""
    mean = by_seed.mean(0)
    over_seeds = T975[len(by_seed) - 2] * by_seed.std(0, ddof=1) / len(by_seed) ** 0.5
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return mean, mean - np.hypot(over_seeds, mean - low), mean + np.hypot(over_seeds, high - mean)


def resampled_curves(held_out: HeldOut, seed: int = 0) -> Array:
    """The mean curve over seeds, for held-out prompts drawn with replacement: (resamples, fractions)."""
    num_groups = len(held_out.tokens)
    mean = HeldOut(held_out.loss.mean(0), held_out.tokens)
    rng = np.random.default_rng(seed)
    # A hundred draws at a time limit the memory.
    draws = (
        rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=100) for _ in range(RESAMPLES // 100)
    )
    return np.concatenate([mean.per_token(times.astype(np.float64)).T for times in draws])
