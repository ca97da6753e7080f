"""Figures with honest intervals: bootstraps over prompts. numpy alone, so that small commands can use it at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np


class Estimate(TypedDict):
    """A figure with its 95% interval and the number of values behind it."""

    value: float
    ci: tuple[float, float]
    n: int


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean with a 95% percentile interval, resampling whole groups (prompts) with replacement.

    Values of one prompt are not independent, so an interval that resamples values is too narrow.

    Args:
        values: one figure each.
        groups: the prompt that each value belongs to; None: each value is its own.
        weights: non-negative; None: all 1.
    """
    assert len(values) > 0, "no values to average"
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    keys = range(len(x)) if groups is None else groups
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    membership = np.array([index[key] for key in keys])
    sums = np.bincount(membership, x * w, len(index))
    sizes = np.bincount(membership, w, len(index))
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for number in range(num_resamples):  # one at a time: all draws at once take gigabytes for a large set
        draw = rng.integers(len(index), size=len(index))
        means[number] = sums[draw].sum() / max(sizes[draw].sum(), 1e-12)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=float(sums.sum() / sizes.sum()), ci=(float(low), float(high)), n=len(x))


def win_rate(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Estimate:
    """Share of prompts on which ours scores higher, ties one half, with a 95% interval over prompts."""
    assert len(ours) == len(theirs)
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    return bootstrap_mean(points, groups, seed=seed)
