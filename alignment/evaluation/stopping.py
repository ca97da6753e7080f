"""When enough people have voted: a decision between A and B that may be looked at after every vote.

A p-value that is computed after each vote until it is small is wrong far more often than it says. A bettor's capital is
not: who bets on votes at fair odds under "A and B win equally often" multiplies the money by 1 / level with a
probability of at most `level`, ever (Ville's inequality; Waudby-Smith & Ramdas 2023, "Estimating means of bounded
random variables by betting", JRSS-B 86(1)).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BETS = np.linspace(0.05, 0.95, 19)
"""Shares of the capital that are staked on a side; the capital is spread over them (the method of mixtures)."""
_GRID = np.arange(1, 400) / 400
"""Win rates that a confidence sequence is asked about; its ends are rounded outwards to the next one."""
_MOST_LOOKS = 256


class Decision(NamedTuple):
    """What the votes decide so far."""

    decided: Literal["a", "b"] | None
    """The side that wins more often; None: not decided yet."""
    at: int | None
    """The number of votes after which it was decided."""
    e_value: float
    """The evidence against equal sides: the capital made of 1 by now. 1 / level decides, whenever it is reached."""
    interval: tuple[float, float]
    """Confidence sequence: holds A's win rate after every vote at once, with probability 1 - level."""
    counted: int
    """Outcomes that count: prompts that have their votes."""


def decide(
    outcomes_in_order: Sequence[float] | Floats,
    level: float = 0.05,
    prompts: Sequence[Hashable] | None = None,
    *,
    votes_per_prompt: int = 1,
) -> Decision:
    """Whether A's win rate differs from 1/2, from votes in the order in which they came. Look as often as you like.

    Half of the capital bets on A and half on B, each spread over stakes from 5% to 95% of it; no votes can make it
    negative. A decision stays: later votes do not take it back.

    Args:
        outcomes_in_order: A's outcomes in [0, 1], (N,); 1 win, 1/2 tie, 0 loss.
        level: the probability of ever deciding between equal sides, at most.
        prompts: the prompt of each vote. Votes on one prompt are not independent, so that a prompt counts once: with
            the mean of its first `votes_per_prompt` votes, as soon as these are there. None: each vote has its own.
        votes_per_prompt: fixed before the first look, not chosen by what the votes say.
    """
    x, when = settled(outcomes_in_order, prompts, votes_per_prompt)
    capital = log_capital(x, 0.5)
    threshold = -math.log(level)
    crossed = np.flatnonzero(capital.max(0) >= threshold)
    first = int(crossed[0]) if len(crossed) else None
    decided: Literal["a", "b"] | None = None
    if first is not None:
        decided = "a" if capital[0, first] > capital[1, first] else "b"
    looks = np.unique(np.r_[np.linspace(0, len(x), _MOST_LOOKS).astype(int), first or 0])
    return Decision(
        decided=decided,
        at=None if first is None else int(when[first - 1]),
        e_value=float(np.exp(capital[:, -1].max())),
        interval=_confidence_sequence(x, looks, threshold),
        counted=len(x),
    )


class RatingsNeeded(NamedTuple):
    """How many more votes decide, by simulation; None: more than the simulation went, or no vote yet."""

    low: int | None
    middle: int | None
    high: int | None
    """With 10%, 50% and 90% probability, if people go on voting as they did."""


def ratings_needed(
    outcomes: Sequence[float] | Floats,
    level: float = 0.05,
    prompts: Sequence[Hashable] | None = None,
    *,
    most: int = 2000,
    seed: int = 0,
) -> int | None:
    """Further votes, each on a new prompt, that decide with even odds (`ratings_forecast`). 0: it is decided.

    Args:
        outcomes: A's outcomes so far, in order, as `decide` takes them.
        most: None is returned if more than these are needed, or without a vote.
    """
    return ratings_forecast(outcomes, level, prompts, most=most, seed=seed).middle


def ratings_forecast(
    outcomes: Sequence[float] | Floats,
    level: float = 0.05,
    prompts: Sequence[Hashable] | None = None,
    *,
    most: int = 2000,
    simulations: int = 200,
    seed: int = 0,
) -> RatingsNeeded:
    """`ratings_needed` with its 80% range.

    Futures are drawn by the Bayesian bootstrap (Rubin 1981): each has its own frequencies of the outcomes so far, with
    one win, one tie and one loss added between them, so that the range holds what few votes leave open.
    """
    x, _ = settled(outcomes, prompts, 1)
    if len(x) == 0:
        return RatingsNeeded(None, None, None)
    if decide(x, level).decided:
        return RatingsNeeded(0, 0, 0)
    rng = np.random.default_rng(seed)
    values, counts = np.unique(np.r_[x, 0.0, 0.5, 1.0], return_counts=True)
    thirds = np.where(np.isin(values, (0.0, 0.5, 1.0)), 2 / 3, 0.0)  # of each of the three added ones a third is meant
    odds = rng.dirichlet(counts - thirds, size=simulations)
    steps = np.maximum(1, (np.arange(most) * 0.02).astype(int))  # later looks are further apart, for speed
    looks = np.cumsum(steps)
    looks = np.r_[looks[looks < most], most]
    drawn = rng.multinomial(np.diff(looks, prepend=0), odds[:, None]).cumsum(1)  # (simulations, looks, values)
    factors = _log_factors(values, 0.5)
    before = factors @ np.array([(x == value).sum() for value in values], dtype=np.float64)  # (2, bets)
    paths = np.einsum("slv,kbv->kbsl", drawn.astype(np.float64), factors) + before[..., None, None]
    crossed = (np.logaddexp.reduce(paths, 1).max(0) - math.log(2 * len(_BETS))) >= -math.log(level)
    needed = np.where(crossed.any(-1), looks[crossed.argmax(-1)], most + 1)
    low, middle, high = (int(np.quantile(needed, q, method="inverted_cdf")) for q in (0.1, 0.5, 0.9))
    return RatingsNeeded(*(count if count <= most else None for count in (low, middle, high)))


def settled(
    outcomes: Sequence[float] | Floats, prompts: Sequence[Hashable] | None, votes_per_prompt: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The outcome of each prompt that has its votes, in the order in which it got the last of them, and after how many
    votes in all that was: (P,), (P,)."""
    x = np.asarray(outcomes, dtype=np.float64)
    assert ((x >= 0) & (x <= 1)).all(), "outcomes are in [0, 1]"
    if prompts is None:
        return x, np.arange(1, len(x) + 1)
    seen: dict[Hashable, list[float]] = {}
    means, when = [], []
    for position, (prompt, outcome) in enumerate(zip(prompts, x.tolist(), strict=True), 1):
        votes = seen.setdefault(prompt, [])
        votes.append(outcome)
        if len(votes) == votes_per_prompt:
            means.append(math.fsum(votes) / votes_per_prompt)
            when.append(position)
    return np.array(means, dtype=np.float64), np.array(when, dtype=np.int64)


def _log_factors(values: Floats, rate: float | Floats) -> Floats:
    """What an outcome multiplies each bet by, in logs, for A and for B: (2, bets, *shape of values and rate)."""
    a, b = values / rate - 1, (1 - values) / (1 - rate) - 1
    bets = _BETS.reshape(-1, *(1,) * np.ndim(a))
    return np.log1p(np.stack([bets * a, bets * b]))


def log_capital(x: Floats, rate: float) -> Floats:
    """Log of the capital on A and on B after 0, 1, ... N votes, from 1/2 each, at odds fair for `rate`.

    (..., N) -> (2, ..., N + 1)
    """
    factors = np.cumsum(_log_factors(x, rate), -1)
    capital = np.logaddexp.reduce(np.concatenate([np.zeros((*factors.shape[:-1], 1)), factors], -1), 1)
    return capital - math.log(2 * len(_BETS))


def _confidence_sequence(x: Floats, looks: NDArray[np.int64], threshold: float) -> tuple[float, float]:
    """Rates against which nobody has become rich at any look; the capital on A falls with the rate, that on B rises."""
    values, which = np.unique(x, return_inverse=True)
    counts = np.cumsum(np.eye(len(values))[which], 0) if len(x) else np.zeros((0, 0))
    counts = np.concatenate([np.zeros((1, len(values))), counts])[looks]  # (looks, values)
    factors = _log_factors(values[:, None], _GRID[None])  # (2, bets, values, rates)
    capital = np.logaddexp.reduce(counts @ factors, 1) - math.log(2 * len(_BETS))  # (2, looks, rates)
    refuted = (capital >= threshold).any(1)
    low, high = _GRID[refuted[0]], _GRID[refuted[1]]
    return float(low.max(initial=0.0)), float(high.min(initial=1.0))
