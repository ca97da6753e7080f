"""Losses of the reward stage: pure functions on tensors of n completions and p pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed(target: Tensor, epsilon: float) -> Tensor:
    """The target if each vote is wrong with probability `epsilon` (label smoothing); a tie stays 1/2."""
    return epsilon + (1 - 2 * epsilon) * target


def pair_loss(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    weight: Tensor,
    total_weight: Tensor | float,
    margin: Tensor | float = 0.0,
    center_coefficient: float = 0.0,
) -> Tensor:
    """Weighted cross entropy between the votes and sigmoid(first - second - margin), summed over pairs, divided by
    `total_weight`.

    target 1 is the Bradley-Terry loss -log sigmoid(first - second) of Stiennon et al. 2020, section 3.4; 1/2 is a tie,
    and other values are fractions of votes. The caller gives the denominator, so that it can be the weight of the whole
    optimizer batch: a mean of microbatch means would weight pairs unequally.

    Args:
        first, second: scores of the two completions, (p,), any float type; differences are taken in float32.
        target: probability that `first` is better, (p,), in [0, 1].
        weight: weight of each pair, (p,).
        total_weight: sum of the weights that the loss is divided by.
        margin: required lead of `first`, (p,), negative if `second` is preferred (Touvron et al. 2023,
            "Llama 2", section 3.2.2; `margin` in TRL).
        center_coefficient: coefficient of the mean of (first + second)^2, which keeps scores near 0
            (Eisenstein et al. 2023, section 3.2; `center_rewards_coefficient` in TRL).

    Returns:
        A scalar.
    """
    first, second, weight = first.float(), second.float(), weight.float()
    losses = F.binary_cross_entropy_with_logits(first - second - margin, target.float(), reduction="none")
    if center_coefficient:
        losses = losses + center_coefficient * (first + second) ** 2
    return (weight * losses).sum() / torch.as_tensor(total_weight, dtype=torch.float32, device=first.device)


def regression_loss(scores: Tensor, ratings: Tensor, weight: Tensor, total_weight: Tensor | float) -> Tensor:
    """Weighted squared error between scores and ratings, summed over completions, divided by `total_weight`.

    Args:
        scores: (n,), any float type.
        ratings: target of each score, (n,).
        weight: weight of each rating, (n,); 0 for a completion without ratings.

    Returns:
        A scalar.
    """
    errors = (scores.float() - ratings.float()) ** 2
    return (weight.float() * errors).sum() / torch.as_tensor(total_weight, dtype=torch.float32, device=scores.device)
