"""Best reachable accuracy of a model on human votes, and the accuracy of one person, in numpy.

People disagree on pairs, so even the best possible model, which knows the probability p of a vote for the first answer,
agrees with only max(p, 1 - p) of its votes. The best reachable accuracy is the mean of that over the votes.

Majorities overestimate it: two of three coin flips always agree. With d = |2p - 1| it is (1 + E d) / 2. Two or three
votes of a pair give an unbiased estimate of E d^2 only; four or more also give E d^4. Many distributions have these
moments, so the accuracy is only known within bounds, however many pairs there are: E d^2 <= E d <= sqrt(E d^2). The
lower bound is reached if people agree on a pair fully or not at all, the upper one if all pairs are equally hard. The
interval covers the bounds and the sampling error.

Labelers of different skill agree less with each other than the best model does with them: two good ones and a coin
agree as often as three mediocre ones, and the model follows the good ones. So the upper bound is raised by the skills
that their agreement implies (`skill_factor`). Two labelers alone are not distinguishable, and one may be perfect; the
bound is then halfway between one person's accuracy and 1. Votes without names count as drawn from one pool of people.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.data.formats import Choice
from alignment.intervals import Estimate, bootstrap_mean, resampled_sums
from alignment.ratings.agreement import COIN_Z

Floats = NDArray[np.float64]

MIN_SAMPLE = 20
"""Minimum number of prompts (for an interval) or of pairs with four votes (for E d^4) for a bootstrap."""
MIN_SHARED = 5
"""Minimum number of common pairs for a comparison of two labelers."""
NEGLIGIBLE = 0.1
"""Fraction of the votes up to which a labeler's skill need not be known: many such labelers average out."""


class Shares(NamedTuple):
    """Agreement with the votes on pairs that two or more people decided; `n` counts those votes without ties."""

    best: Estimate | None
    """The best possible model. `value` assumes a beta distribution of d^2; `ci` holds for any distribution. None if
    there are too few prompts."""
    one_human: Estimate
    """Another person in the model's place; a tie counts 1/2, like equal scores of a model."""
    model: Estimate | None
    """The model on the same votes."""
    pairs: int


def agreement_shares(
    votes: Sequence[Sequence[Choice]],
    groups: Sequence[Hashable] | None = None,
    first_is_better: Sequence[float] | None = None,
    *,
    labelers: Sequence[Sequence[str | None]] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Shares | None:
    """The fractions of the votes that the best model, one person and a given model agree with, on the same votes.

    Args:
        votes: per pair each labeler's choice. Pairs with fewer than two decided votes are left out.
        groups: the prompt of each pair; the 95% intervals resample whole prompts.
        first_is_better: a model's choice for each pair: 1, 0, or 1/2 for equal scores.
        labelers: who gave each vote.

    Returns:
        None if no pair has two decided votes.
    """
    counts = np.array(
        [[row.count(choice) for choice in ("first", "second", "tie")] for row in votes], dtype=np.float64
    ).reshape(-1, 3)
    indices = np.flatnonzero(counts[:, :2].sum(1) >= 2)
    if not len(indices):
        return None
    first, second, ties = counts[indices].T
    decided = first + second
    keys: list[Hashable] = [index if groups is None else groups[index] for index in indices.tolist()]
    others = first * (first - 1) + second * (second - 1) + ties * decided / 2
    total = int(decided.sum())

    def mean(values: Floats) -> Estimate:
        estimate = bootstrap_mean(values, keys, decided, num_resamples=num_resamples, seed=seed)
        return Estimate(value=estimate["value"], ci=estimate["ci"], n=total)

    model = best = None
    if first_is_better is not None:
        choices = np.asarray(first_is_better, dtype=np.float64)[indices]
        model = mean((choices * first + (1 - choices) * second) / decided)
    if len(set(keys)) >= MIN_SAMPLE:
        columns = _moment_columns(first, second)
        named = (
            None if labelers is None else _by_labeler([(votes[index], labelers[index]) for index in indices.tolist()])
        )
        factor = 1.0 if named is None else skill_factor(named)
        lows, highs = _bounds(resampled_sums(columns, keys, num_resamples=num_resamples, seed=seed), factor)
        ends = float(np.quantile(lows, 0.025)), float(np.quantile(highs, 0.975))
        best = Estimate(value=_beta_share([float(column.sum()) for column in columns], factor or 1.0), ci=ends, n=total)
    return Shares(best, mean(others / (decided * (decided + ties - 1))), model, len(indices))


def _moment_columns(first: Floats, second: Floats) -> list[Floats]:
    """Votes and unbiased d^2 of pairs with two or three decided votes; votes, d^2 and d^4 of those with more.

    d^2 = 1 - 4 p(1-p) and d^4 = 1 - 8 p(1-p) + 16 (p(1-p))^2. With k of n votes for the first, p^a (1-p)^b is estimated
    without bias by falling factorials: k^(a) (n-k)^(b) / n^(a+b). Each pair is weighted by its number of votes.
    """
    n = first + second
    many = n >= 4
    if many.sum() < MIN_SAMPLE:
        many = np.zeros_like(many)
    varied = first * second / (n * (n - 1))
    squares = 1 - 4 * varied
    fourfold = np.where(many, n * (n - 1) * (n - 2) * (n - 3), 1.0)
    fourths = 1 - 8 * varied + 16 * first * (first - 1) * second * (second - 1) / fourfold
    few, more = n * ~many, n * many
    return [few, few * squares, more, more * squares, more * fourths]


def _by_labeler(rows: Sequence[tuple[Sequence[Choice], Sequence[str | None]]]) -> Floats | None:
    """Votes, (pairs, labelers): 1 for the first answer, -1 for the second, 0 otherwise; None if a name is missing."""
    names = sorted({name for _, voters in rows for name in voters if name is not None})
    if any(name is None for _, voters in rows for name in voters):
        return None
    columns = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)))
    for index, (choices, voters) in enumerate(rows):
        for choice, name in zip(choices, voters, strict=True):
            if name is not None:
                table[index, columns[name]] = {"first": 1.0, "second": -1.0, "tie": 0.0}[choice]
    return table


def skill_factor(votes: Floats) -> float | None:
    """Ratio of the squared mean skill, which bounds the best model, to the mean product of two labelers' skills, which
    agreement measures. It is 1 or more, or None if the skills are not identifiable.

    The expected vote of labeler j on a pair is modelled as t_j x: skill times the pair's clarity. Then the agreement of
    labelers j and l gives t_j t_l, and three labelers who are not coins and share pairs identify their skills and those
    of others (one common factor, by least squares; skills with few shared votes are shrunk toward the mean). Two
    labelers who agree, or a group that agrees no more than coins, do not identify who is right.

    Args:
        votes: (pairs, labelers) of 1, -1 and 0.
    """
    votes = votes[np.abs(votes).sum(1) >= 2]  # two votes of one labeler count once
    if not len(votes):
        return None
    given = np.abs(votes)
    shared, product = given.T @ given, votes.T @ votes
    np.fill_diagonal(shared, 0.0)
    np.fill_diagonal(product, 0.0)
    compared = (shared >= MIN_SHARED).astype(np.float64)
    z_scores = product.sum(1) / np.sqrt(np.maximum(shared.sum(1), 1.0))  # approximate z-scores under a coin
    core = compared * np.outer(z_scores > COIN_Z, z_scores > COIN_Z)
    in_core = np.diagonal(core @ core @ core) > 0
    known = in_core | ((z_scores <= COIN_Z) & (compared @ in_core > 0))
    mean = product.sum() / shared.sum()
    if mean * math.sqrt(shared.sum() / 2) < COIN_Z or (given.sum(0)[~known] > NEGLIGIBLE * given.sum()).any():
        return None
    skills = np.full(len(shared), math.sqrt(mean))
    for _ in range(200):
        previous = skills
        fitted = (product @ skills + MIN_SAMPLE * mean**1.5) / (shared @ skills**2 + MIN_SAMPLE * mean)
        skills = (previous + np.clip(fitted, -1.0, 1.0)) / 2  # half steps, because full ones may oscillate
        if np.abs(skills - previous).max() < 1e-6:
            break
    n, total = given.sum(1), given @ skills
    products = (total**2 - given @ skills**2) / (n - 1)  # the mean over pairs of labelers, times n
    common = float(total.sum() / n.sum()) ** 2
    return max(1.0, common / max(float(products.sum() / n.sum()), 1e-12))


def _bounds(sums: Floats, factor: float | None = 1.0) -> tuple[Floats, Floats]:
    """Lower and upper bound of the best accuracy, given R resampled sums of `_moment_columns`: (5, R) -> (R,), (R,).

    The variance of d^2 is shifted by one standard error in the direction that widens each bound. If all pairs are
    equally hard, it is 0 and its error could only narrow the bounds, so the interval would cover too rarely.
    """
    few, few_squares, more, more_squares, more_fourths = sums
    one = np.minimum(few_squares / np.maximum(few, 1.0), 1.0)
    mean = np.minimum(more_squares / np.maximum(more, 1.0), 1.0)
    m = np.maximum(mean, 0.0)
    variance = more_fourths / np.maximum(more, 1.0) - m**2
    shift = float(variance.std())
    low, _ = moment_bounds(m, variance + shift)
    share = few / (few + more)
    # Negative means are sampling noise. Clipping each one would bias their sum and the lower bound upward.
    lower = np.maximum(share * one + (1 - share) * np.where(mean < 0, mean, low), 0.0)
    if factor is None:
        upper = (1 + np.maximum(share * one + (1 - share) * mean, 0.0)) / 2
    else:
        _, high = moment_bounds(np.minimum(m * factor, 1.0), variance - shift)
        upper = share * np.sqrt(np.clip(one * factor, 0.0, 1.0)) + (1 - share) * high
    return 0.5 + lower / 2, 0.5 + upper / 2


def moment_bounds(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """The smallest and the largest E sqrt(x) of x in [0, 1] with this mean and variance.

    Since 1, x, x^2, sqrt(x) are a Chebyshev system, both are attained by two-point distributions: 0 and another value,
    or 1 and another value (Karlin and Studden 1966, Tchebycheff Systems, chapter II). An impossible variance is clipped
    to the nearest possible one.
    """
    m = np.clip(mean, 1e-12, 1 - 1e-12)
    second = m**2 + np.clip(variance, 0.0, m * (1 - m))
    low = m**1.5 / np.sqrt(second)
    other = (m - second) / (1 - m)
    weight = (1 - m) / np.maximum(1 - other, 1e-12)
    return low, 1 - weight + weight * np.sqrt(np.maximum(other, 0.0))


def _beta_share(sums: Sequence[float], factor: float) -> float:
    """The best accuracy if d^2 has a beta distribution: beta(1/2, a) for pairs with two or three votes, which follows
    from a symmetric beta(a, a) of p; for pairs with more votes, the one with their mean and variance."""
    few, few_squares, more, more_squares, more_fourths = sums
    expected = 0.0
    if few:
        mean = factor * few_squares / few
        expected += few * _beta_root(mean, 0.5 / max(mean, 1e-12))
    if more:
        mean = min(max(factor * more_squares / more, 0.0), 1.0)
        variance = max(more_fourths / more - mean**2, 1e-12)
        expected += more * _beta_root(mean, mean * (1 - mean) / variance - 1)
    return 0.5 + expected / (few + more) / 2


def _beta_root(mean: float, size: float) -> float:
    """E sqrt(x) of a beta distribution with this mean and this sum of its two parameters, or its limit at the ends."""
    if mean <= 0 or mean >= 1:
        return min(max(mean, 0.0), 1.0)
    if size <= 1e-6:
        return mean
    if size > 1e6:
        return math.sqrt(mean)
    a = mean * size
    return math.exp(math.lgamma(a + 0.5) + math.lgamma(size) - math.lgamma(a) - math.lgamma(size + 0.5))
