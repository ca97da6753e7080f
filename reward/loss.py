"""The losses of the reward stage: pure functions on tensors. n completions, p pairs of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed(target: Tensor, epsilon: float) -> Tensor:
    """The probability that remains when each vote is mistaken with probability `epsilon`; a tie stays 1/2."""
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
    and a share of votes stands in between. The denominator is the caller's, so that it can be the weight of the whole
    optimizer batch: a mean of microbatch means would weight a pair by the company it is in.

    Args:
        first, second: scores of the two completions, (p,), any float type; differences are taken in float32.
        target: probability that `first` is the better one, (p,), in [0, 1].
        weight: how much each pair counts, (p,).
        total_weight: sum of the weights that the loss is divided by.
        margin: by how much `first` should be ahead, (p,), negative where `second` is preferred (Touvron et al. 2023,
            "Llama 2", section 3.2.2; `margin` in TRL).
        center_coefficient: adds this times the mean of (first + second)^2, which keeps scores near 0
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
        ratings: what each score is drawn to, (n,).
        weight: how much each rating counts, (n,); 0 where a completion has none.

    Returns:
        A scalar.
    """
    errors = (scores.float() - ratings.float()) ** 2
    return (weight.float() * errors).sum() / torch.as_tensor(total_weight, dtype=torch.float32, device=scores.device)
