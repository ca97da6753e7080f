"""Estimates with bootstrap intervals over prompts. It imports only numpy, so that small commands start fast."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 1_000_000


class Estimate(TypedDict):
    """A value with its 95% interval and the number of values behind it."""

    value: float
    ci: tuple[float, float]
    n: int


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean with a 95% percentile interval, resampling whole groups (prompts) with replacement.

    Values of one prompt are not independent, so an interval that resamples values is too narrow.

    Args:
        values: the values to average.
        groups: the prompt of each value; None: each value is a group of its own.
        weights: non-negative; None: all 1.
    """
    assert len(values) > 0, "no values to average"
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    return bootstrap_sums(
        (x * w, w),
        lambda sums, sizes: sums / np.maximum(sizes, 1e-12),
        groups,
        num_resamples=num_resamples,
        seed=seed,
    )


def bootstrap_sums(
    columns: Sequence[NDArray[np.float64]],
    statistic: Callable[..., NDArray[np.float64]],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A function of sums over rows (a ratio, a correlation), with a 95% percentile interval over whole groups.

    Args:
        columns: the columns to sum, (N,) each.
        statistic: maps the sums of the columns, arrays of one shape, to an array of that shape.
        groups: as `bootstrap_mean`.
    """
    totals = resampled_sums(columns, groups, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(statistic(*totals), [0.025, 0.975])
    value = statistic(*(np.asarray(np.sum(column)) for column in columns))
    return Estimate(value=float(value), ci=(float(low), float(high)), n=len(columns[0]))


def resampled_sums(
    columns: Sequence[NDArray[np.float64]],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Sums of each column over whole groups drawn with replacement: (columns, resamples). Arguments as above."""
    keys = range(len(columns[0])) if groups is None else groups
    index = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    membership = np.array([index[key] for key in keys])
    sums = [np.bincount(membership, column, len(index)) for column in columns]
    rng = np.random.default_rng(seed)
    totals = np.empty((len(columns), num_resamples))
    chunk = max(1, _DRAWS_AT_ONCE // len(index))  # a large set takes gigabytes if drawn at once
    for start in range(0, num_resamples, chunk):
        count = min(chunk, num_resamples - start)
        draws = rng.integers(len(index), size=(count, len(index)))
        totals[:, start : start + count] = [column[draws].sum(-1) for column in sums]
    return totals


def win_rate(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Estimate:
    """Fraction of prompts on which ours scores higher, ties one half, with a 95% interval over prompts."""
    assert len(ours) == len(theirs)
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    return bootstrap_mean(points, groups, seed=seed)


def choosing_half(groups: Sequence[Hashable]) -> list[bool]:
    """Split held-out rows in two: True rows choose the best of several models, False rows report on the chosen one.

    The best of several evaluations owes some of its lead to luck (the winner's curse), so its metrics on the rows that
    chose it are too good. The split is by whole groups (prompts) and depends only on their content, so it is the same
    for every evaluation, process and run. A single group leaves no rows to report on.
    """
    keys = sorted(set(groups), key=lambda key: hashlib.sha256(repr(key).encode()).digest())
    choosing = set(keys[: (len(keys) + 1) // 2])
    return [key in choosing for key in groups]


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, ties with their mean rank; 0 where one side is constant."""
    ranks = [_ranks(first), _ranks(second)]
    if any(each.std() == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])
