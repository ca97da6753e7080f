"""Win rates of A against B: raw, at equal length, and the sign test. Outcomes are A's: 1 win, 1/2 tie, 0 loss."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation.clusters import effective_prompts, prompt_draws, prompt_index, score_interval
from alignment.intervals import Estimate
from alignment.ratings.agreement import binomial_test

Floats = NDArray[np.float64]

RIDGE = 0.05
"""Keeps the regression finite where one side always wins; a twentieth of one outcome's weight."""


def raw_win_rate(outcomes: Sequence[float] | Floats, prompts: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """Mean outcome with a 95% interval over prompts: bootstrap variance in Wilson's form (`clusters.score_interval`).

    Args:
        outcomes: 1 or more, in [0, 1], (N,).
        prompts: the prompt of each outcome; votes on one prompt are drawn together.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    assert len(y) == len(prompts) > 0, "a win rate needs outcomes, each with its prompt"
    member, num_prompts = prompt_index(prompts)
    sums, sizes = np.bincount(member, y, num_prompts), np.bincount(member, minlength=num_prompts).astype(np.float64)
    draws = prompt_draws(num_prompts, seed=seed)
    return _rate(float(y.mean()), (draws @ sums) / (draws @ sizes), sizes)


def length_controlled_win_rate(
    outcomes: Sequence[float] | Floats,
    length_differences: Sequence[float] | Floats,
    prompts: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
) -> Estimate | None:
    """The win rate that is expected where both answers are equally long, with a 95% interval over prompts.

    Logistic regression of the outcome on tanh(difference / standard deviation of the differences), and its prediction
    at difference 0: length-controlled AlpacaEval (Dubois, Galambosi, Liang & Hashimoto 2024, arXiv:2404.04475) without
    its term for a prompt's difficulty, which takes many models to fit. Ties are fractional outcomes. Exchanging the
    sides gives 1 less the value.

    Args:
        outcomes: in [0, 1], (N,).
        length_differences: length of A's answer less that of B's, in any unit, (N,).
        prompts: the prompt of each outcome.

    Returns:
        None if the data cannot say: one side is longer by about as much everywhere, so that equal length is far outside
        what was seen (a standard error above one logit).
    """
    y, difference = np.asarray(outcomes, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    assert len(y) == len(difference) == len(prompts) > 0, "one length difference and one prompt for each outcome"
    x = squashed(difference)
    if x is None or float(((x - x.mean()) ** 2).sum()) < 4 * float(x.mean()) ** 2:
        return None
    member, num_prompts = prompt_index(prompts)
    draws = prompt_draws(num_prompts, seed=seed, num_resamples=num_resamples)
    resampled = expit(fit_logistic(y, x, draws[:, member])[:, 0])
    value = float(expit(fit_logistic(y, x, np.ones((1, len(y))))[0, 0]))
    # Resamples of few, nearly separable outcomes all agree; independent outcomes would still vary by this much.
    outcomes_at_zero = len(y) / (1 + float(x.mean()) ** 2 / max(float(x.var()), 1e-12)) if x.any() else len(y)
    least = value * (1 - value) * float(((2 * y - 1) ** 2).mean()) / outcomes_at_zero
    return _rate(value, resampled, np.bincount(member, minlength=num_prompts).astype(np.float64), least)


def sign_test(outcomes: Sequence[float] | Floats, prompts: Sequence[Hashable]) -> float:
    """Two-sided exact p-value of A and B being equally good: each prompt's mean outcome decides, and ties are dropped.

    1.0 if every prompt is a tie.
    """
    member, num_prompts = prompt_index(prompts)
    lead = np.bincount(member, np.asarray(outcomes, dtype=np.float64) - 0.5, num_prompts)
    decided = np.abs(lead) > 1e-9
    return binomial_test(int((lead[decided] > 0).sum()), int(decided.sum()))


def _rate(value: float, resampled: Floats, sizes: Floats, least_variance: float = 0.0) -> Estimate:
    count = len(sizes)
    variance = float(resampled.var()) * count / max(count - 1, 1)  # the bootstrap divides by G where G - 1 is unbiased
    variance = max(variance, least_variance)
    return Estimate(value=value, ci=score_interval(value, variance, effective_prompts(sizes)), n=int(sizes.sum()))


def squashed(differences: Floats) -> Floats | None:
    """tanh of the differences in their standard deviations, (N,); None: all differ by the same length, but not by 0."""
    deviation = float(differences.std())
    if deviation > 1e-9 * max(1.0, float(np.abs(differences).max())):
        return np.tanh(differences / deviation)
    return np.zeros_like(differences) if not differences.any() else None


def fit_logistic(y: Floats, x: Floats, weights: Floats, ridge: float = RIDGE) -> Floats:
    """Intercept and slope of the logistic regression of y on x, one fit for each row of weights: (R, N) -> (R, 2)."""
    design = np.stack([np.ones_like(x), x], -1)
    products = np.stack([np.ones_like(x), x, x**2], -1)
    beta = np.zeros((len(weights), 2))
    for _ in range(50):
        p = expit(beta @ design.T)
        gradient = (weights * (y - p)) @ design - ridge * beta
        h00, h01, h11 = ((weights * (p * (1 - p))) @ products).T
        h00, h11 = h00 + ridge, h11 + ridge
        determinant = h00 * h11 - h01**2
        step = np.stack(
            [
                (h11 * gradient[:, 0] - h01 * gradient[:, 1]) / determinant,
                (h00 * gradient[:, 1] - h01 * gradient[:, 0]) / determinant,
            ],
            -1,
        )
        # A full Newton step can overshoot where almost all are won; a bounded one cannot.
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-12))
        beta += step
        if np.abs(step).max() < 1e-8:
            break
    return beta


def expit(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))
