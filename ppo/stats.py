"""Statistics of a rollout for the journal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum
from alignment.tensors import masked_moments
from ppo.metrics import MetricSums
from ppo.rollout import Rollout
from ppo.targets import Targets

NO_VARIANCE = 1e-4
"""In normalised scores: a spread below a hundredth of their standard deviation is too small to learn from."""


def rollout_stats(rollout: Rollout, scores: Tensor, targets: Targets, kl_in_reward: bool) -> dict[str, float]:
    """Means over all processes' episodes: score and its parts, KL in nats per response, score less KL, entropy, length,
    fraction ended; and the fraction that the critic explains of the variance of what came after each token.

    It is not of the returns that the critic is trained on: with a lambda below 1 these hold the critic's own values,
    which would explain themselves.

    Args:
        scores: (B,) with what unfinished responses cost.
    """
    mask = rollout.response_mask
    kl_coef = targets.kl_coef if kl_in_reward else 0.0
    per_episode = {
        "rollout/score": scores,
        "rollout/kl": rollout.sampled_kl.sum(1),
        "rollout/reward": scores - kl_coef * rollout.sampled_kl.sum(1),
        "rollout/length": rollout.lengths,
        "rollout/ended": rollout.ended,
        **{f"reward/{name}": part for name, part in rollout.parts.items()},
    }
    sums = MetricSums()
    for name, column in per_episode.items():
        sums.add(name, column.double().sum(), len(rollout))
    assert rollout.entropy is not None
    sums.add("policy/entropy", torch.where(mask, rollout.entropy, 0.0).sum(), mask.sum())
    stats = sums.reduced().means()
    stats["rollout/kl_coef"] = targets.kl_coef
    stats |= _scatter(scores, rollout.lengths, stats["rollout/score"], stats["rollout/length"])
    if targets.critic is not None:
        explained = explained_variance(targets.critic.outcomes, targets.critic.old_values, mask)
        stats |= {} if explained is None else {"value/explained_variance": explained}
    return stats


def explained_variance(outcomes: Tensor, values: Tensor, mask: Tensor) -> float | None:
    """1 - mean squared error / variance of what came, over all processes' kept tokens: (B, T) each, on the scale of
    scores. An offset counts as an error, so below 0 the mean of what came would have been closer. None where all that
    came is the same, as where no answer ends: there is nothing to explain."""
    _, _, variance = masked_moments(outcomes, mask, all_reduce_sum)
    _, offset, spread = masked_moments(outcomes - values, mask, all_reduce_sum)
    return float(1 - (spread + offset**2) / variance) if variance > NO_VARIANCE else None


def _scatter(scores: Tensor, lengths: Tensor, mean_score: float, mean_length: float) -> dict[str, float]:
    """Spread of the scores (B,) of all processes' responses, and their correlation with the lengths (B,).

    The means are those over all processes, so their number changes nothing. There is no correlation where one of the
    two does not vary.
    """
    by_score, by_length = scores.double() - mean_score, lengths.double() - mean_length
    sums = torch.stack([by_score.square().sum(), by_length.square().sum(), (by_score * by_length).sum()])
    count = torch.full_like(sums[:1], len(scores))
    score_squares, length_squares, products, responses = all_reduce_sum(torch.cat([sums, count])).tolist()
    stats = {"rollout/score_std": math.sqrt(score_squares / responses)}
    if score_squares > 0 and length_squares > 0:
        stats["rollout/length_correlation"] = products / math.sqrt(score_squares * length_squares)
    return stats
