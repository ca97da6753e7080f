"""The mathematics of PPO from human feedback: pure functions on tensors.

Every mask is bool, True = keep. B batch, T response; the losses take tensors of any one shape, (...). Sources: "N+" is
Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO"; "LHP" is openai/lm-human-preferences,
lm_human_preferences/train_policy.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignment.tensors import last_kept

MAX_LOG_RATIO = 20.0


class ScoreStats(NamedTuple):
    """Mean and standard deviation of scores; `(score - mean) / std` has mean 0 and standard deviation 1."""

    mean: float = 0.0
    std: float = 1.0

    def normalise(self, scores: Tensor) -> Tensor:
        return (scores - self.mean) / self.std


def penalise_missing_eos(scores: Tensor, ended: Tensor, stats: ScoreStats, missing_eos_penalty: float | None) -> Tensor:
    """Raw scores less the penalty of unfinished responses: (B,) each, `ended` bool -> (B,).

    Args:
        missing_eos_penalty: in standard deviations of `stats` (TRL has one in points); None: no penalty.
    """
    if missing_eos_penalty is None:
        return scores
    return scores - missing_eos_penalty * (~ended).to(scores.dtype) * stats.std


def shape_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: -kl_coef * kl, plus the score at the last kept token (EOS where there is one).

    The KL is k1 = logprobs - ref_logprobs, whose expected gradient is the KL's; k3 in this place has another optimum.
    The score is given at EOS itself: one slot later, as in LHP and TRL, the value after the end leaks into A_EOS.

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
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    gamma: float,
    gae_lambda: float,
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
    advantages = torch.where(response_mask, _discounted_sums(deltas, gamma * gae_lambda), 0.0)
    return advantages, advantages + values


def _discounted_sums(x: Tensor, discount: float) -> Tensor:
    """y[:, t] = x[:, t] + discount * y[:, t + 1]: (B, T) -> (B, T)."""
    sums = torch.zeros_like(x)
    running = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        running = x[:, t] + discount * running
        sums[:, t] = running
    return sums


def returns_to_go(rewards: Tensor, response_mask: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, the advantage of REINFORCE++ before it is whitened over the
    whole batch (Hu 2025, equation 8): (B, T) -> (B, T), 0 where masked."""
    sums = _discounted_sums(torch.where(response_mask, rewards, 0.0), gamma)
    return torch.where(response_mask, sums, 0.0)


def group_advantages(
    rewards: Tensor,
    response_mask: Tensor,
    estimator: Literal["rloo", "grpo", "dr_grpo", "reinforce++-baseline"],
    group_size: int,
) -> Tensor:
    """How much better than the other responses to its prompt a response is, for each of its tokens.

    `rloo`: its reward less the mean of the others' (Ahmadian et al. 2024, equation 8). `dr_grpo`: less the mean of all
    (Liu et al. 2025, section 3.2; the other half of Dr. GRPO, a constant in place of the response's length, is not
    here: the losses below are token means for every estimator). `reinforce++-baseline`: less the mean of all, to be
    whitened over the whole batch afterwards (Hu 2025). `grpo`: less the mean of all, over their standard deviation
    (Shao et al. 2024, equation 3; unbiased deviation + 1e-4, as TRL does it), which weighs prompts by how alike their
    responses are: the optimum is another one. The rewards of `grpo` must be scores alone: where all scores of a group
    are equal, the division would amplify a KL in them to the size of a real signal.

    Args:
        rewards: (B, T); a response's reward is their sum.
        response_mask: (B, T)
        group_size: responses to each prompt, which are neighbours; 2 or more.

    Returns:
        (B, T), 0 where masked.
    """
    assert group_size > 1 and len(rewards) % group_size == 0
    totals = torch.where(response_mask, rewards, 0.0).sum(1).view(-1, group_size)
    centered = totals - totals.mean(1, keepdim=True)
    if estimator == "rloo":
        centered = centered * (group_size / (group_size - 1))
    elif estimator == "grpo":
        centered = centered / (totals.std(1, keepdim=True) + 1e-4)
    return torch.where(response_mask, centered.reshape(-1, 1), 0.0)


def without_spread(scores: Tensor, group_size: int) -> Tensor:
    """True where the responses to a prompt all have one score, so that comparing them teaches nothing: (B,) -> bool
    (B / group_size,). Differences of 1e-6 of the scores' size are rounding."""
    groups = scores.double().view(-1, group_size)
    return groups.amax(1) - groups.amin(1) <= 1e-6 * groups.abs().amax(1)


class PolicyLoss(NamedTuple):
    """The loss, and sums over kept tokens for the statistics (to be divided by the same count)."""

    loss: Tensor
    ratio_sum: Tensor
    kl_sum: Tensor
    num_clipped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: tuple[float, float],
    num_tokens: Tensor | float,
    *,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, equation 7), summed over kept tokens / `num_tokens`.

    The log-ratio is clamped to +-20 (OpenRLHF, verl): exp of a larger one is inf, and inf * 0 a NaN for all.
    kl_sum is of Schulman's k3, (r - 1) - log r, over tokens drawn from the old policy.

    Args:
        logprobs, old_logprobs, advantages, mask: (...)
        clip_range: lower and upper side of the clip, which may differ (Yu et al. 2025, DAPO, equation 10).
        num_tokens: kept tokens of the whole optimizer batch on all processes, so that a token weighs the same
            whatever microbatch it is in.
        weights: (...), constant factors of each token's loss, see `truncated_importance_weights`.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    low, high = clip_range
    plain_losses = -advantages * ratio
    clipped_losses = -advantages * ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(plain_losses, clipped_losses)
    if weights is not None:
        losses = losses * weights
    losses = torch.where(mask, losses, 0.0)
    with torch.no_grad():
        kl_sum = torch.where(mask, (ratio - 1) - log_ratio, 0.0).sum()
        num_clipped = (mask & (clipped_losses > plain_losses)).sum()
        ratio_sum = torch.where(mask, ratio, 0.0).sum()
    return PolicyLoss(losses.sum() / num_tokens, ratio_sum, kl_sum, num_clipped)


IMPORTANCE_CAP = 2.0
"""Cap of an importance weight: one token that the sampler thought unlikely must not outweigh the others."""


def truncated_importance_weights(
    old_logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor, cap: float = IMPORTANCE_CAP
) -> Tensor:
    """min(policy / sampler, cap) at each token, for responses that another model than the policy sampled (truncated
    importance sampling, Ionides 2008): (...), 1 where masked. Such another model is an inference engine, which rounds,
    and the policy before the last update, with `old_logprobs` of the one after it (Hilton et al. 2022)."""
    log_ratio = torch.where(mask, old_logprobs - sampled_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp().clamp(max=cap)


def kl_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    num_tokens: Tensor | float,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """The KL from the reference as a loss term: the k2 estimator, summed over kept tokens / `num_tokens` (Schulman
    2020, "Approximating KL divergence").

    With d = logprobs - ref_logprobs, k2 = d^2 / 2 has the gradient d * grad(logprobs), whose expectation under the
    policy is the gradient of the KL at that token. k3 = exp(-d) - 1 + d has (1 - exp(-d)) * grad(logprobs): the
    gradient of the KL the other way round, KL(reference || policy). k1 = d has grad(logprobs), of expectation 0. Each
    token counts by its detached ratio to the policy that sampled it, so that the expectations hold after the first
    step too; `weights` are as in `policy_loss`. A token's effect on the KL of later tokens is in no gradient: for that
    the KL belongs in the reward.
    """
    log_ratio = torch.where(mask, logprobs.detach() - old_logprobs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_ratio_to_ref = torch.where(mask, logprobs - ref_logprobs, 0.0)
    losses = log_ratio.exp() * 0.5 * log_ratio_to_ref**2
    if weights is not None:
        losses = losses * weights
    return torch.where(mask, losses, 0.0).sum() / num_tokens


class ValueLoss(NamedTuple):
    """The loss, and the number of kept tokens at which the clipped error was the larger."""

    loss: Tensor
    num_clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float, num_tokens: Tensor | float
) -> ValueLoss:
    """Half the larger of the squared errors with and without clipping values to old_values +- clip_range (LHP).

    Args:
        values, old_values, returns, mask: (...)
        num_tokens: as in `policy_loss`.
    """
    # Whatever stands in the padding, an inf or NaN there would reach the gradient as 0 * NaN.
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain_errors, clipped_errors = (values - returns) ** 2, (near - returns) ** 2
    losses = torch.where(mask, 0.5 * torch.maximum(plain_errors, clipped_errors), 0.0)
    with torch.no_grad():
        num_clipped = (mask & (clipped_errors > plain_errors)).sum()
    return ValueLoss(losses.sum() / num_tokens, num_clipped)
