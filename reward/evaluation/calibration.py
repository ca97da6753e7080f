"""Whether sigmoid(score difference) is the probability that people prefer an answer: ECE and its reliability plot.

Which of two completions comes first is arbitrary, and a file of pairs puts the chosen one there always: read that way,
every outcome would be 1. So a pair is turned to the side that the model prefers, as classifiers are judged by the
confidence in the class that they predict (Guo et al. 2017, section 2): confidence c = sigmoid(|delta|) in [1/2, 1]
against the share of the votes that agree, a tie being half a vote. Counting each pair both ways instead would put
both halves of every undecided pair into one middle bin, where they cancel to a gap of 0 whatever the model says.
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
    """Probability that the preferred completion is the better one, (N,) in [1/2, 1]."""
    return 1 / (1 + np.exp(-np.abs(delta)))


def agreement(delta: Array, target: Array) -> Array:
    """Share of the votes for the completion that the model prefers, (N,); 1/2 where it prefers none."""
    return np.where(delta > 0, target, np.where(delta < 0, 1 - target, 0.5))


def bin_of(confidence: Array) -> NDArray[np.int64]:
    """Which of the equally wide bins of [1/2, 1] each confidence falls into; 1 belongs to the last."""
    return np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(np.int64)


def ece(confidence: Array, agreement: Array, weight: Array) -> float:
    """Expected calibration error: over bins, the weighted mean of |mean confidence - mean agreement|."""
    bins = bin_of(confidence)
    gaps = np.bincount(bins, weight * (confidence - agreement), BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def reliability(confidence: Array, agreement: Array, weight: Array, groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """The bins that hold something, from 1/2 upwards: their bounds, mean confidence, and mean agreement with an
    interval over prompt groups; n counts pairs."""
    bins = bin_of(confidence)
    rows = []
    for number in np.unique(bins).tolist():
        inside = np.flatnonzero(bins == number)
        estimate = bootstrap_mean(
            agreement[inside], [groups[index] for index in inside.tolist()], weight[inside], num_resamples=500
        )
        rows.append(
            {
                "low": 0.5 + number / (2 * BINS),
                "high": 0.5 + (number + 1) / (2 * BINS),
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
    """The ECE that these scores would have if they were right: it is above 0, because votes are few and chance.

    Each draw ranks the completions of each question by score plus standard Gumbel noise, which prefers one to another
    with probability sigmoid(their difference) exactly (Yellott 1977) and keeps the pairs of one ranking dependent, as
    people's are. All votes on a pair agree in a draw, and none is a tie, so the range is rather wide than narrow.

    Args:
        scores: of each completion of each question.
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
    """Cross entropy of each pair in nats, (N,): ln 2 = 0.693 for a model that always says 1/2."""
    return np.logaddexp(0, -delta) * target + np.logaddexp(0, delta) * (1 - target)


LN2 = math.log(2)
