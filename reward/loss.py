"""The pair loss: a pure function on tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pair_loss(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    weight: Tensor,
    total_weight: Tensor | float,
    center_coefficient: float = 0.0,
) -> Tensor:
    """Weighted cross entropy between the votes and sigmoid(first - second), summed over pairs / `total_weight`.

    target 1 is the Bradley-Terry loss -log sigmoid(first - second) of Stiennon et al. 2020, section 3.4; 1/2 is a tie,
    and a share of votes stands in between. The denominator is the caller's, so that it can be the weight of the whole
    optimizer batch: a mean of microbatch means would weight a pair by the company it is in.

    Args:
        first, second: scores of the two completions, (B,), any float type; differences are taken in float32.
        target: probability that `first` is the better one, (B,), in [0, 1].
        weight: how much each pair counts (its number of votes), (B,).
        total_weight: sum of the weights that the loss is divided by.
        center_coefficient: adds this times the mean of (first + second)^2, which keeps scores near 0
            (Eisenstein et al. 2023, section 3.2; `center_rewards_coefficient` in TRL).

    Returns:
        A scalar.
    """
    first, second, weight = first.float(), second.float(), weight.float()
    losses = F.binary_cross_entropy_with_logits(first - second, target.float(), reduction="none")
    if center_coefficient:
        losses = losses + center_coefficient * (first + second) ** 2
    return (weight * losses).sum() / torch.as_tensor(total_weight, dtype=torch.float32, device=first.device)
