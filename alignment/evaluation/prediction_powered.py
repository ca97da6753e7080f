"""Prediction-powered inference: few human votes and many of a judge give one interval that is valid for any judge."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation.clusters import effective_prompts, prompt_index, score_interval
from alignment.evaluation.win_rates import raw_win_rate
from alignment.intervals import Estimate

Floats = NDArray[np.float64]


UNSEEN = 0.25
"""Disagreements of judge and people added to those seen: a few votes without one do not prove a perfect judge."""


class PoweredEstimate(NamedTuple):
    """The mean human outcome, from people alone and with the judge's help."""

    plain: Estimate
    """From the human votes alone; `n` counts them."""
    powered: Estimate
    """With the judge; `n` counts the human votes. It can be wider than `plain` by chance where the judge is useless."""
    judge_weight: float
    """lambda of PPI++: 0 ignores the judge. Above 1 where the judge's outcomes vary less than people's."""
    effective_votes: float
    """Human votes that would give the powered variance by themselves; below `plain["n"]` the judge cost some."""

    @property
    def votes_bought(self) -> float:
        """Human votes that the judge was worth; negative where it cost some."""
        return self.effective_votes - self.plain["n"]


def powered_mean(
    human: Sequence[float] | Floats,
    judge_same: Sequence[float] | Floats,
    judge_rest: Sequence[float] | Floats,
    prompts_same: Sequence[Hashable] | None = None,
    prompts_rest: Sequence[Hashable] | None = None,
) -> PoweredEstimate:
    """Mean human outcome over all items, from n human votes and a judge's outcomes on those and on N other items.

    PPI++ (Angelopoulos, Duchi & Zrnic 2023, arXiv:2311.01453): mean(human) + lambda (mean(judge_rest) -
    mean(judge_same)), with the lambda of the smallest variance, at least 0. The items that people voted on must be a
    random sample of all items; what the judge gets wrong then cancels, whatever the judge is. Variances are over
    prompts, and a prompt may be in both parts. The 95% intervals are score intervals with Student's quantile
    (`clusters.score_interval`), with one degree of freedom less for lambda.

    Args:
        human: people's outcomes in [0, 1], (n,), n of 1 or more.
        judge_same: the judge's outcomes in [0, 1] of the same items, (n,).
        judge_rest: the judge's outcomes of items without a human vote, (N,); may be empty.
        prompts_same: prompt of each of the n items; None: each item is a prompt of its own.
        prompts_rest: prompt of each of the N items; None: likewise.
    """
    y, same, rest = (np.asarray(values, dtype=np.float64) for values in (human, judge_same, judge_rest))
    assert len(y) == len(same) > 0, "one outcome of the judge for each human vote"
    keys_same = [("same", i) for i in range(len(y))] if prompts_same is None else list(prompts_same)
    keys_rest = [("rest", i) for i in range(len(rest))] if prompts_rest is None else list(prompts_rest)
    assert len(keys_same) == len(y) and len(keys_rest) == len(rest), "one prompt for each outcome"
    member, num_prompts = prompt_index([*keys_same, *keys_rest])
    mine, others = member[: len(y)], member[len(y) :]
    sizes = np.bincount(mine, minlength=num_prompts).astype(np.float64)
    effective = effective_prompts(sizes[sizes > 0])

    a = _influence(y, mine, num_prompts)
    b = _influence(same, mine, num_prompts)
    if len(rest):
        b = b - _influence(rest, others, num_prompts)
    plain = raw_win_rate(y, keys_same)
    power = float(b @ b)
    weight = max(0.0, float(a @ b) / power) if len(rest) and power > 1e-12 else 0.0
    if weight == 0.0:
        return PoweredEstimate(plain, plain, 0.0, float(len(y)))
    alone, together = _variance(a, sizes > 0, 1), _variance(a - weight * b, sizes > 0, 2)
    together += UNSEEN * weight**2 / effective**2
    value = min(1.0, max(0.0, float(y.mean()) + weight * float(rest.mean() - same.mean())))
    powered = Estimate(value=value, ci=score_interval(value, together, effective - 1), n=len(y))
    most = float(len(y) + len(rest))  # a perfect judge is worth as many votes as it gave
    worth = min(most, len(y) * alone / together) if together > 0 else most
    return PoweredEstimate(plain, powered, weight, worth)


def _influence(values: Floats, member: NDArray[np.int64], num_prompts: int) -> Floats:
    """Each prompt's part in the error of the mean, (G,)."""
    return np.bincount(member, values - values.mean(), num_prompts) / len(values)


def _variance(influence: Floats, voted: NDArray[np.bool_], estimated: int) -> float:
    """Variance over prompts; `estimated` numbers cost degrees of freedom where human votes are, which are few."""
    count = int(voted.sum())
    squares = influence**2
    return float(squares[voted].sum()) * count / max(count - estimated, 1) + float(squares[~voted].sum())
