"""What is computed from the rows: best-of-n, win rates with length held equal, intervals. numpy alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation.clusters import t_quantile
from alignment.evaluation.win_rates import expit, fit_logistic
from alignment.intervals import Estimate

Floats = NDArray[np.float64]

CUT_COSTS = 3.0
"""What an answer that does not end loses, in standard deviations of the scores: PPO's `rewards.missing_eos_penalty`."""
RIDGE = 0.1
"""Of the logistic regression: keeps it finite where one side always wins; a tenth of one answer's weight."""


# --- best-of-n -----------------------------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the policy that it samples, in nats: log n - (n - 1) / n where no two answers score alike,
    and an upper bound otherwise (Stiennon et al. 2020; Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def selection_rewards(scores: Sequence[Sequence[float]], ended: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Scores of each prompt's pool as PPO would see them: a cut answer loses `CUT_COSTS` standard deviations."""
    cost = CUT_COSTS * float(np.std(np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])))
    return [[s if e else s - cost for s, e in zip(*row, strict=True)] for row in zip(scores, ended, strict=True)]


def pick_best(rewards: Sequence[float], n: int) -> int:
    """Index of the best of the first n; of equal ones the first."""
    assert 1 <= n <= len(rewards), (n, len(rewards))
    return max(range(n), key=lambda index: (rewards[index], -index))


# --- win rates -----------------------------------------------------------------------------------------------------


def wins(ours: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> Floats:
    """1 where ours scores higher, 0 where theirs does, 1/2 where they are equal: (N,)."""
    return (np.sign(np.asarray(ours) - np.asarray(theirs)) + 1) / 2


def length_controlled(
    won: Sequence[float] | Floats,
    log_ratio: Sequence[float] | Floats,
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The win rate that is expected where both answers are equally long, with a 95% interval over prompts.

    A logistic regression of the preference on log(our length / their length), as AlpacaEval 2 does in spirit (Dubois
    et al. 2024, without its term for a prompt's difficulty, which a win rate over the same prompts cancels); its value
    at ratio 1. Turning both sides round gives 1 less the value.

    Args:
        won: of each comparison 1, 1/2 or 0.
        log_ratio: of each comparison, natural logarithm.
        groups: the prompt of each comparison; the bootstrap draws whole prompts.
    """
    y, x = np.asarray(won, dtype=np.float64), np.asarray(log_ratio, dtype=np.float64)
    keys = range(len(y)) if groups is None else groups
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    member = np.array([index[key] for key in keys])
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=num_resamples).astype(np.float64)
    drawn = expit(fit_logistic(y, x, counts[:, member], RIDGE)[:, 0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = expit(fit_logistic(y, x, np.ones((1, len(y))), RIDGE)[0, 0])
    return Estimate(value=float(value), ci=(float(low), float(high)), n=len(y))


def matched(
    won: Floats, log_ratio: Floats, groups: Sequence[Hashable], within: float = math.log(1.25)
) -> Estimate | None:
    """The win rate among the pairs whose lengths are within a quarter of each other; None: there are fewer than 10."""
    from alignment.intervals import bootstrap_mean

    kept = np.flatnonzero(np.abs(log_ratio) <= within).tolist()
    if len(kept) < 10:
        return None
    return bootstrap_mean(won[kept], [groups[index] for index in kept])


def vote_shares(margins: Sequence[Floats]) -> Floats:
    """The share of people's votes that reward models predict for one side: the mean over them of sigmoid(score
    difference), which is what their loss fits to votes.

    Args:
        margins: of each reward model its score differences, (N,).
    """
    return np.asarray(np.mean([expit(margin) for margin in margins], 0))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean over seeds with Student's 95% interval. None: one seed tells nothing of others."""
    count = len(values)
    if count < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    reach = t_quantile(count - 1) * error
    return Estimate(value=mean, ci=(mean - reach, mean + reach), n=count)
