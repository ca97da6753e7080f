"""How well a reward model agrees with held-out ratings, beside the baselines that expose a shortcut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from alignment.data import Comparison
from alignment.evaluation import Estimate, bootstrap_mean
from alignment.scalar_models import ScalarModel
from alignment.tensors import pad_rows
from reward.data import EncodedComparison


@torch.no_grad()
def score_pairs(
    model: ScalarModel, encoded: Sequence[EncodedComparison], pad_token_id: int, batch_size: int = 64
) -> list[tuple[float, float]]:
    """Scores of both completions of each pair, in order; rows of similar length share a batch."""
    model.eval()
    device = next(model.parameters()).device
    rows = [ids for row in encoded for ids in (row.first_ids, row.second_ids)]
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = [0.0] * len(rows)
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        ids, mask = pad_rows([rows[index] for index in batch], pad_token_id, "right")
        for index, score in zip(batch, model.score(ids.to(device), mask.to(device)).tolist(), strict=True):
            scores[index] = score
    return list(zip(scores[0::2], scores[1::2], strict=True))


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


def report(encoded: Sequence[EncodedComparison], scores: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Held-out accuracy and log-loss, beside what always preferring the longer answer would reach.

    `n` counts votes. Human pairs rarely allow more than about 0.80; far above it, suspect leakage or a shortcut.
    """
    comparisons = [row.comparison for row in encoded]
    lengths = [(len(row.first_ids), len(row.second_ids)) for row in encoded]
    accuracy = vote_accuracy(comparisons, lambda index: order(*scores[index]))
    longer = vote_accuracy(comparisons, lambda index: order(*lengths[index]))
    losses = [
        -row.target * _log_sigmoid(first - second) - (1 - row.target) * _log_sigmoid(second - first)
        for row, (first, second) in zip(comparisons, scores, strict=True)
    ]
    log_loss = bootstrap_mean(losses, [row.group for row in comparisons], [row.weight for row in comparisons])
    return {"accuracy": accuracy, "log_loss": log_loss, "length_baseline": longer}


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))
