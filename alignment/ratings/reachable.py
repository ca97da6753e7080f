"""What share of the votes a model can agree with at most, and with what share one person agrees. numpy alone.

People differ on a pair, so even the best possible model, which knows the probability p of a vote for the first answer,
agrees only with max(p, 1 - p) of its votes. The best reachable share is the mean of that over the votes.

Majorities overstate it: of three coin flips two or three fall the same way. With d = |2p - 1| it is (1 + E d) / 2, and
two or three votes of a pair tell E d^2 alone, without bias; four and more tell E d^4 too. Many distributions of d have
these moments, so the share is known within bounds, however many pairs there are: E d^2 <= E d <= sqrt(E d^2), the lower
one where people agree on everything or nothing, the upper one where all pairs are equally hard. The interval holds the
bounds with the error of sampling.

Labelers of different skill agree less with each other than the best model does with them: two good ones and a coin
agree as three middling ones do, and the model follows the good ones. So the upper bound is raised by what their own
agreement says of each labeler (`skill_factor`). Two labelers alone cannot be told apart, and one may be perfect: the
bound is then half way from one person's figure to 1. Votes without names count as drawn from one pool of people.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.data.formats import Choice
from alignment.intervals import Estimate, bootstrap_mean, resampled_sums
from alignment.ratings.agreement import COIN

Floats = NDArray[np.float64]

FEW = 20
"""Prompts (for an interval) or pairs with four votes (for their E d^4) below which a bootstrap says nothing."""
LINK = 5
"""Pairs that two labelers share from which they are compared."""
SMALL = 0.1
"""Share of all votes up to which a labeler's skill need not be known: many labelers even out."""


class Shares(NamedTuple):
    """Agreement with the votes on pairs that two or more people decided; `n` counts those votes, ties left out."""

    best: Estimate | None
    """The best possible model. `value` is the share if d^2 has a beta distribution; `ci` holds for any distribution.
    None: too few prompts."""
    one_human: Estimate
    """One of the other people in the model's place; a tie is worth 1/2, as a model's equal scores are."""
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
    """The shares of the votes that the best model, one person and a given model agree with, all on the same votes.

    Args:
        votes: per pair what each labeler chose. Pairs with fewer than two decided votes tell nothing and are left out.
        groups: the prompt of each pair; the 95% intervals resample whole prompts.
        first_is_better: what a model says of each pair: 1, 0, or 1/2 where it cannot tell.
        labelers: who gave each vote.

    Returns:
        None where no pair has two decided votes.
    """
    counts = np.array(
        [[row.count(choice) for choice in ("first", "second", "tie")] for row in votes], dtype=np.float64
    ).reshape(-1, 3)
    used = np.flatnonzero(counts[:, :2].sum(1) >= 2)
    if not len(used):
        return None
    first, second, ties = counts[used].T
    decided = first + second
    keys: list[Hashable] = [index if groups is None else groups[index] for index in used.tolist()]
    others = first * (first - 1) + second * (second - 1) + ties * decided / 2
    total = int(decided.sum())

    def mean(values: Floats) -> Estimate:
        found = bootstrap_mean(values, keys, decided, num_resamples=num_resamples, seed=seed)
        return Estimate(value=found["value"], ci=found["ci"], n=total)

    model = best = None
    if first_is_better is not None:
        says = np.asarray(first_is_better, dtype=np.float64)[used]
        model = mean((says * first + (1 - says) * second) / decided)
    if len(set(keys)) >= FEW:
        columns = _moment_columns(first, second)
        named = None if labelers is None else _by_labeler([(votes[index], labelers[index]) for index in used.tolist()])
        factor = 1.0 if named is None else skill_factor(named)
        lows, highs = _bounds(resampled_sums(columns, keys, num_resamples=num_resamples, seed=seed), factor)
        ends = float(np.quantile(lows, 0.025)), float(np.quantile(highs, 0.975))
        best = Estimate(value=_beta_share([float(column.sum()) for column in columns], factor or 1.0), ci=ends, n=total)
    return Shares(best, mean(others / (decided * (decided + ties - 1))), model, len(used))


def _moment_columns(first: Floats, second: Floats) -> list[Floats]:
    """Votes and unbiased d^2 of pairs with two or three decided votes; votes, d^2 and d^4 of those with more.

    d^2 = 1 - 4 p(1-p), d^4 = 1 - 8 p(1-p) + 16 (p(1-p))^2, and of n votes, k for the first, p^a (1-p)^b is estimated
    without bias by falling factorials: k^(a) (n-k)^(b) / n^(a+b). Each pair weighs as many as its votes.
    """
    n = first + second
    many = n >= 4
    if many.sum() < FEW:
        many = np.zeros_like(many)
    varied = first * second / (n * (n - 1))
    squares = 1 - 4 * varied
    fourfold = np.where(many, n * (n - 1) * (n - 2) * (n - 3), 1.0)
    fourths = 1 - 8 * varied + 16 * first * (first - 1) * second * (second - 1) / fourfold
    few, more = n * ~many, n * many
    return [few, few * squares, more, more * squares, more * fourths]


def _by_labeler(rows: Sequence[tuple[Sequence[Choice], Sequence[str | None]]]) -> Floats | None:
    """(pairs, labelers): 1 for the first answer, -1 for the second, 0 for none of them; None if a name is missing."""
    names = sorted({name for _, who in rows for name in who if name is not None})
    if any(name is None for _, who in rows for name in who):
        return None
    place = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)))
    for number, (choices, who) in enumerate(rows):
        for choice, name in zip(choices, who, strict=True):
            if name is not None:
                table[number, place[name]] = {"first": 1.0, "second": -1.0, "tie": 0.0}[choice]
    return table


def skill_factor(votes: Floats) -> float | None:
    """By how much the square of the labelers' mean lean, which bounds the best model, is above the mean product of two
    labelers' leans, which is what agreement tells; 1 or more, None where the labelers cannot be told apart.

    A labeler's lean on a pair is taken as t_j x: skill times how clear the pair is. Then labelers j and l agree on
    t_j t_l, and where three who are no coins share pairs, the skills of these three can be found, and of others by them
    (one common factor, by least squares; those with few shared votes are drawn toward the mean). Two who agree, or a
    team that agrees no more than coins do, leave open who of them knows the answers.

    Args:
        votes: (pairs, labelers) of 1, -1 and 0.
    """
    votes = votes[np.abs(votes).sum(1) >= 2]  # two votes of one labeler are one here
    if not len(votes):
        return None
    given = np.abs(votes)
    shared, product = given.T @ given, votes.T @ votes
    np.fill_diagonal(shared, 0.0)
    np.fill_diagonal(product, 0.0)
    linked = (shared >= LINK).astype(np.float64)
    lead = product.sum(1) / np.sqrt(np.maximum(shared.sum(1), 1.0))  # standard errors of a coin's agreement, about
    core = linked * np.outer(lead > COIN, lead > COIN)
    in_core = np.diagonal(core @ core @ core) > 0
    known = in_core | ((lead <= COIN) & (linked @ in_core > 0))
    mean = product.sum() / shared.sum()
    if mean * math.sqrt(shared.sum() / 2) < COIN or (given.sum(0)[~known] > SMALL * given.sum()).any():
        return None
    skills = np.full(len(shared), math.sqrt(mean))
    for _ in range(200):
        before = skills
        fitted = (product @ skills + FEW * mean**1.5) / (shared @ skills**2 + FEW * mean)
        skills = (before + np.clip(fitted, -1.0, 1.0)) / 2  # half steps: whole ones may swing to and fro
        if np.abs(skills - before).max() < 1e-6:
            break
    n, total = given.sum(1), given @ skills
    products = (total**2 - given @ skills**2) / (n - 1)  # the mean over two labelers of a pair, times n
    common = float(total.sum() / n.sum()) ** 2
    return max(1.0, common / max(float(products.sum() / n.sum()), 1e-12))


def _bounds(sums: Floats, factor: float | None = 1.0) -> tuple[Floats, Floats]:
    """Lower and upper bound of the best share, given R resampled sums of `_moment_columns`: (5, R) -> (R,), (R,).

    The variance of d^2 is moved by one standard error to the wider side of each bound: where all pairs are equally
    hard it is 0, an error in it can only narrow the bounds, and the interval would hold too rarely.
    """
    few, few_squares, more, more_squares, more_fourths = sums
    one = np.minimum(few_squares / np.maximum(few, 1.0), 1.0)
    mean = np.minimum(more_squares / np.maximum(more, 1.0), 1.0)
    m = np.maximum(mean, 0.0)
    variance = more_fourths / np.maximum(more, 1.0) - m**2
    shift = float(variance.std())
    low, _ = moment_bounds(m, variance + shift)
    share = few / (few + more)
    # Means below 0 come from sampling alone. To cut each off would make their sum too large, and the lower bound too.
    lower = np.maximum(share * one + (1 - share) * np.where(mean < 0, mean, low), 0.0)
    if factor is None:
        upper = (1 + np.maximum(share * one + (1 - share) * mean, 0.0)) / 2
    else:
        _, high = moment_bounds(np.minimum(m * factor, 1.0), variance - shift)
        upper = share * np.sqrt(np.clip(one * factor, 0.0, 1.0)) + (1 - share) * high
    return 0.5 + lower / 2, 0.5 + upper / 2


def moment_bounds(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """The least and the largest E sqrt(x) of x in [0, 1] with this mean and variance.

    Since 1, x, x^2, sqrt(x) are a Chebyshev system, they are reached with two values: 0 and another one, or 1 and
    another one (Karlin and Studden 1966, Tchebycheff Systems, chapter II). A variance that no such x has is moved to
    the nearest one that is possible.
    """
    m = np.clip(mean, 1e-12, 1 - 1e-12)
    second = m**2 + np.clip(variance, 0.0, m * (1 - m))
    low = m**1.5 / np.sqrt(second)
    other = (m - second) / (1 - m)
    weight = (1 - m) / np.maximum(1 - other, 1e-12)
    return low, 1 - weight + weight * np.sqrt(np.maximum(other, 0.0))


def _beta_share(sums: Sequence[float], factor: float) -> float:
    """The best share if d^2 has a beta distribution: of pairs with two or three votes beta(1/2, a), which is what a
    symmetric beta(a, a) of p gives; of those with more the one with their mean and variance."""
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
    """E sqrt(x) of a beta distribution with this mean and this sum of its two parameters; its limits at the ends."""
    if mean <= 0 or mean >= 1:
        return min(max(mean, 0.0), 1.0)
    if size <= 1e-6:
        return mean
    if size > 1e6:
        return math.sqrt(mean)
    a = mean * size
    return math.exp(math.lgamma(a + 0.5) + math.lgamma(size) - math.lgamma(a) - math.lgamma(size + 0.5))
