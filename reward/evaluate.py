"""How well a reward model agrees with held-out ratings, beside the baselines that expose a shortcut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from alignment.data import Comparison
from alignment.evaluation import Estimate, bootstrap_mean
from reward.questions import Question


def vote_accuracy(comparisons: Sequence[Comparison], first_is_better: Callable[[int], float]) -> Estimate | None:
    """Share of the votes (ties left out) that an ordering agrees with, with an interval over prompt groups.

    Args:
        first_is_better: for the index of a comparison 1.0, 0.0, or 0.5 where the ordering cannot tell.

    Returns:
        None where every vote is a tie.
    """
    values, groups, weights = [], [], []
    for index, row in enumerate(comparisons):
        votes = row.count("first") + row.count("second")
        if votes:
            share = row.count("first") / votes
            better = first_is_better(index)
            values.append(better * share + (1 - better) * (1 - share))
            groups.append(row.group)
            weights.append(votes)
    if not values:
        return None
    return Estimate(**{**bootstrap_mean(values, groups, weights), "n": int(sum(weights))})


def order(a: float, b: float) -> float:
    """1 if a is larger, 0 if b is, 1/2 if they are equal."""
    return 1.0 if a > b else 0.0 if a < b else 0.5


def report(questions: Sequence[Question], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Held-out accuracy and log-loss, beside what always preferring the longer answer would reach.

    `n` counts votes. Human pairs rarely allow more than about 0.80; far above it, suspect leakage or a shortcut.
    """
    pairs = [(pair, row, one.lengths) for one, row in zip(questions, scores, strict=True) for pair in one.pairs]
    comparisons = [pair.comparison for pair, _, _ in pairs]
    deltas = [row[pair.first] - row[pair.second] for pair, row, _ in pairs]
    longer = [lengths[pair.first] - lengths[pair.second] for pair, _, lengths in pairs]
    losses = [
        -row.target * _log_sigmoid(delta) - (1 - row.target) * _log_sigmoid(-delta)
        for row, delta in zip(comparisons, deltas, strict=True)
    ]
    log_loss = bootstrap_mean(losses, [row.group for row in comparisons], [row.weight for row in comparisons])
    return {
        "accuracy": vote_accuracy(comparisons, lambda index: order(deltas[index], 0)),
        "log_loss": log_loss,
        "length_baseline": vote_accuracy(comparisons, lambda index: order(longer[index], 0)),
    }


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))
