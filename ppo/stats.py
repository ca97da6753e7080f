"""What the journal says of a rollout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum
from alignment.tensors import masked_moments
from ppo.rollout import Rollout
from ppo.update import Targets

NO_VARIANCE = 1e-4
"""In the unit of scores: a hundredth of their standard deviation is nothing to learn."""


def rollout_stats(rollout: Rollout, scores: Tensor, targets: Targets, kl_in_reward: bool) -> dict[str, float]:
    """Means over all processes' episodes: score and its parts, KL in nats per response, score less KL, entropy, length,
    share ended; and the share that the critic explains of the variance of what came after each token.

    Not of the returns that it is trained on: with a lambda below 1 these hold the critic's own values, which would
    explain themselves.

    Args:
        scores: (B,) with what long and unfinished responses cost.
    """
    mask = rollout.response_mask
    kl_coef = targets.kl_coef if kl_in_reward else 0.0
    per_episode = {
        "rollout/score": scores,
        "rollout/kl": rollout.kl.sum(1),
        "rollout/reward": scores - kl_coef * rollout.kl.sum(1),
        "rollout/length": rollout.lengths,
        "rollout/ended": rollout.ended,
        **{f"reward/{name}": part for name, part in rollout.parts.items()},
    }
    counts = torch.tensor([len(rollout), int(mask.sum())], device=mask.device).double()
    entropy = torch.where(mask, rollout.entropy, 0.0).sum().double()
    own = torch.stack([*(column.double().sum() for column in per_episode.values()), entropy])
    *sums, entropy_sum, episodes, tokens = all_reduce_sum(torch.cat([own, counts])).tolist()
    stats = {name: value / episodes for name, value in zip(per_episode, sums, strict=True)}
    stats |= {"policy/entropy": entropy_sum / tokens, "rollout/kl_coef": targets.kl_coef}
    stats |= _scatter(scores, rollout.lengths, stats["rollout/score"], stats["rollout/length"])
    if targets.critic is not None:
        explained = explained_variance(targets.critic.outcomes, targets.critic.old_values, mask)
        stats |= {} if explained is None else {"value/explained_variance": explained}
    return stats


def explained_variance(outcomes: Tensor, values: Tensor, mask: Tensor) -> float | None:
    """1 - mean squared error / variance of what came, over all processes' kept tokens: (B, T) each, in the unit of
    scores. An offset counts as an error, so below 0 the mean of what came would have been closer. None where all that
    came is the same, as where no answer ends: there is nothing to explain."""
    _, _, variance = masked_moments(outcomes, mask, all_reduce_sum)
    _, offset, spread = masked_moments(outcomes - values, mask, all_reduce_sum)
    return float(1 - (spread + offset**2) / variance) if variance > NO_VARIANCE else None


def _scatter(scores: Tensor, lengths: Tensor, mean_score: float, mean_length: float) -> dict[str, float]:
    """How the scores (B,) of all processes' responses spread, and go with their lengths (B,). The means are those over
    all, so that the number of processes changes nothing. No correlation where one of the two does not differ."""
    by_score, by_length = scores.double() - mean_score, lengths.double() - mean_length
    own = torch.stack([by_score.square().sum(), by_length.square().sum(), (by_score * by_length).sum()])
    count = torch.full_like(own[:1], len(scores))
    score_squares, length_squares, products, responses = all_reduce_sum(torch.cat([own, count])).tolist()
    found = {"rollout/score_std": math.sqrt(score_squares / responses)}
    if score_squares > 0 and length_squares > 0:
        found["rollout/length_correlation"] = products / math.sqrt(score_squares * length_squares)
    return found
