"""The mathematics of PPO from human feedback: pure functions on tensors.

Every mask is bool, True = keep. B batch, T response. Sources: "N+" is Huang et al. 2024, "The N+ Implementation
Details of RLHF with PPO"; "LHP" is openai/lm-human-preferences, lm_human_preferences/train_policy.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alignment.tensors import last_kept

MAX_LOG_RATIO = 20.0


def final_scores(scores: Tensor, ended: Tensor, missing_eos_score: float | None, missing_eos_penalty=None) -> Tensor:
    """Scores with those of unfinished responses replaced (LHP; N+ detail 23): (B,), (B,) bool -> (B,).

    Replaced, not lowered: a policy cannot make up for never stopping by saying what the reward model likes.
    """
    if missing_eos_score is None:
        return scores
    return torch.where(ended, scores, missing_eos_score)


def shape_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: -kl_coef * kl, plus the score at the last kept token (EOS where there is one).

    The KL is k1 = logprobs - ref_logprobs, whose expected gradient is the KL's; k3 in this place has another optimum.
    The score stands on EOS itself: one slot later, where LHP and TRL put it, the value after the end leaks into A_EOS.

    Args:
        scores: (B,)
        kl: (B, T)
        response_mask: (B, T), at least one True in each row.

    Returns:
        (B, T), 0 where masked.
    """
    rewards = torch.where(response_mask, -kl_coef * kl, 0.0)
    return rewards.scatter_add(1, last_kept(response_mask).unsqueeze(1), scores.to(rewards.dtype).unsqueeze(1))


def estimate_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, gae_lambda: float, value_gae_lambda=None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over each response.

    Values and rewards beyond the last kept token count as 0: a response that ends has no future.

    Args:
        rewards, values: (B, T); values[:, t] is the value before token t.
        response_mask: (B, T), each row a run of True from the first column on.

    Returns:
        advantages, not whitened, and returns = advantages + values; both (B, T), 0 where masked.
    """
    rewards = torch.where(response_mask, rewards, 0.0)
    values = torch.where(response_mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    advantages = torch.where(response_mask, advantages, 0.0)
    return advantages, advantages + values


class PolicyLoss(NamedTuple):
    """The loss, and sums over kept tokens for the statistics (to be divided by the same count)."""

    loss: Tensor
    ratio: Tensor
    approx_kl: Tensor
    clipped: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float, num_tokens: Tensor, clip_range_high=None, dual_clip=None, weights=None
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, equation 7), summed over kept tokens / `num_tokens`.

    The log-ratio is clamped to +-20 (OpenRLHF, verl): exp of a larger one is inf, and inf * 0 a NaN for all.
    approx_kl is Schulman's k3, (r - 1) - log r, averaged over tokens drawn from the old policy.

    Args:
        logprobs, old_logprobs, advantages, mask: (B, T)
        num_tokens: kept tokens of the whole optimizer batch on all processes, so that a token weighs the same
            whatever microbatch it is in.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = torch.where(mask, torch.maximum(unclipped, clipped), 0.0)
    with torch.no_grad():
        kl_sum = torch.where(mask, (ratio - 1) - log_ratio, 0.0).sum()
        clip_sum = (mask & (clipped > unclipped)).sum()
        ratio_sum = torch.where(mask, ratio, 0.0).sum()
    return PolicyLoss(losses.sum() / num_tokens, ratio_sum, kl_sum, clip_sum)


class ValueLoss(NamedTuple):
    """The loss, and the number of kept tokens at which the clipped error was the larger."""

    loss: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float, num_tokens: Tensor
) -> ValueLoss:
    """Half the larger of the squared errors with and without clipping values to old_values +- clip_range (LHP).

    Args:
        values, old_values, returns, mask: (B, T)
        num_tokens: as in `policy_loss`.
    """
    # Whatever stands in the padding, an inf or NaN there would reach the gradient as 0 * NaN.
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    losses = torch.where(mask, 0.5 * torch.maximum(plain, clipped), 0.0)
    with torch.no_grad():
        count = (mask & (clipped > plain)).sum()
    return ValueLoss(losses.sum() / num_tokens, count)


def overlong_penalty(lengths, max_new_tokens, buffer, penalty):
    if not buffer:
        return torch.zeros_like(lengths, dtype=torch.float32)
    over = (lengths - (max_new_tokens - buffer)).clamp(min=0)
    return -penalty * over / buffer


def group_advantages(rewards, response_mask, estimator, group_size):
    total = torch.where(response_mask, rewards, 0.0).sum(1).view(-1, group_size)
    adv = (total - total.mean(1, keepdim=True)) * group_size / (group_size - 1)
    return torch.where(response_mask, adv.reshape(-1, 1), 0.0)


def returns_to_go(rewards, response_mask, gamma):
    return estimate_advantages(rewards, torch.zeros_like(rewards), response_mask, gamma, 1.0)[0]


def kl_loss(logprobs, old, ref, mask, estimator, num_tokens):
    return torch.where(mask, 0.5 * (logprobs - ref) ** 2, 0.0).sum() / num_tokens


def importance_weights(old, sampled, mask, cap):
    return (old - sampled).exp().clamp(max=cap)
