"""Calibration of sigmoid(score difference) as the probability of a preference: ECE and the reliability diagram.

The order of two completions is arbitrary, and a file of pairs always has the chosen one first, so every outcome would
be 1. Therefore a pair is oriented by the model's preference, as classifiers are evaluated by the confidence in the
predicted class (Guo et al. 2017, section 2): confidence c = sigmoid(|delta|) in [1/2, 1] against the fraction of votes
that agree, with a tie as half a vote. Counting each pair in both orders would put both halves of an undecided pair into
the middle bin, where their gaps always cancel.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.intervals import Estimate, bootstrap_mean

BINS = 15
Array = NDArray[np.float64]


def confidence(delta: Array) -> Array:
    """Probability that the completion with the higher score is better, (N,) in [1/2, 1]."""
    return 1 / (1 + np.exp(-np.abs(delta)))


def agreement(delta: Array, target: Array) -> Array:
    """Fraction of the votes for the completion that the model prefers, (N,); 1/2 for equal scores."""
    return np.where(delta > 0, target, np.where(delta < 0, 1 - target, 0.5))


def bin_of(confidence: Array) -> NDArray[np.int64]:
    """The index of each confidence's bin; the bins divide [1/2, 1] evenly, and 1 is in the last."""
    return np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(np.int64)


def ece(confidence: Array, agreement: Array, weight: Array) -> float:
    """Expected calibration error: over bins, the weighted mean of |mean confidence - mean agreement|."""
    bins = bin_of(confidence)
    gaps = np.bincount(bins, weight * (confidence - agreement), BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def reliability(confidence: Array, agreement: Array, weight: Array, groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """The non-empty bins in ascending order: bounds, mean confidence, and mean agreement with an interval over prompt
    groups; n counts pairs."""
    bins = bin_of(confidence)
    rows = []
    for bin_index in np.unique(bins).tolist():
        inside = np.flatnonzero(bins == bin_index)
        estimate = bootstrap_mean(
            agreement[inside], [groups[index] for index in inside.tolist()], weight[inside], num_resamples=500
        )
        rows.append(
            {
                "low": 0.5 + bin_index / (2 * BINS),
                "high": 0.5 + (bin_index + 1) / (2 * BINS),
                "confidence": float(np.average(confidence[inside], weights=weight[inside])),
                **estimate,
            }
        )
    return rows


def calibrated_ece(
    scores: Sequence[Sequence[float]],
    pairs: Sequence[tuple[int, int, int]],
    weight: Array,
    *,
    num_draws: int = 500,
    seed: int = 0,
) -> Estimate:
    """The ECE of these scores if they were perfectly calibrated; it is above 0, because votes are few and noisy.

    Each draw ranks the completions of each question by score plus standard Gumbel noise. This prefers one to another
    with probability sigmoid(difference) exactly (Yellott 1977) and keeps the pairs of one ranking dependent, as human
    ones are. All votes on a pair agree in a draw, and none is a tie, so the range is conservative.

    Args:
        scores: one score per completion of each question.
        pairs: question, first and second completion of each pair.
        weight: votes on each pair, (N,).

    Returns:
        The mean of the draws, with the range of 95% of them.
    """
    starts = np.cumsum([0, *map(len, scores)])
    flat = np.array([score for row in scores for score in row], dtype=np.float64)
    first, second = (np.array([starts[pair[0]] + pair[side] for pair in pairs]) for side in (1, 2))
    delta = flat[first] - flat[second]
    sure = confidence(delta)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_draws):
        noisy = flat + rng.gumbel(size=len(flat))
        draws.append(ece(sure, agreement(delta, (noisy[first] > noisy[second]).astype(np.float64)), weight))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value=float(np.mean(draws)), ci=(float(low), float(high)), n=len(pairs))


def log_loss(delta: Array, target: Array) -> Array:
    """Cross entropy of each pair in nats, (N,); ln 2 = 0.693 for a constant probability of 1/2."""
    return np.logaddexp(0, -delta) * target + np.logaddexp(0, delta) * (1 - target)


LN2 = math.log(2)
