"""From a rollout to training targets: shaped rewards, advantages, returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum
from alignment.tensors import whiten
from ppo.algorithm import (
    ScoreStats,
    estimate_advantages,
    group_advantages,
    penalise_missing_eos,
    returns_to_go,
    shape_rewards,
)
from ppo.config import PPOStageConfig
from ppo.constraints import Lagrangian
from ppo.controllers import KLController, RewardScaler
from ppo.roles import Role
from ppo.rollout import Rollout

GAMMA = 1.0
"""Rewards are not discounted: a response is short, and what counts is its score."""


@dataclass(frozen=True)
class CriticTargets:
    """Training targets of the critic; (B, T), normalised as it is trained.

    Args:
        old_values: at the rollout.
        returns: the targets.
        outcomes: the sum of rewards that came from each token on, which returns are with a lambda of 1.
        head_stats: normalise the outputs of the critic's head: those of a head that was trained before are scores,
            those of a head that starts at 0 are normalised already.
    """

    old_values: Tensor
    returns: Tensor
    outcomes: Tensor
    head_stats: ScoreStats


@dataclass(frozen=True)
class Targets:
    """Training targets of a rollout.

    Args:
        advantages: (B, T)
        kl_coef: as it is configured or adapted.
        critic: None without one.
        loss_kl_coef: for a KL in the loss, on the scale of the advantages.
    """

    advantages: Tensor
    kl_coef: float
    critic: CriticTargets | None = None
    loss_kl_coef: float = 0.0


class TargetBuilder:
    """Turns the scores and the KL of a rollout into rewards, and those into advantages and returns.

    Args:
        critic: None without one.
        lagrangian: None without constraints.
    """

    def __init__(
        self,
        config: PPOStageConfig,
        critic: Role | None,
        reward_scaler: RewardScaler,
        kl_controller: KLController,
        lagrangian: Lagrangian | None = None,
    ) -> None:
        self.config, self.critic, self.kl_controller = config, critic, kl_controller
        self.reward_scaler, self.lagrangian = reward_scaler, lagrangian

    @property
    def stats(self) -> ScoreStats:
        """By which the scores that policy and critic are trained on are normalised, with what constraints add."""
        stats = self.reward_scaler.stats
        return stats if self.lagrangian is None else stats._replace(std=stats.std * self.lagrangian.scale)

    def with_penalty(self, scores: Tensor, ended: Tensor, stats: ScoreStats) -> Tensor:
        """Scores of any model, (B,), less the penalty of unfinished responses, in standard deviations of `stats`."""
        return penalise_missing_eos(scores, ended, stats, self.config.rewards.missing_eos_penalty)

    def scores(self, rollout: Rollout) -> Tensor:
        """The scores of a rollout less the penalty of unfinished responses: (B,)."""
        return self.with_penalty(rollout.scores, rollout.ended, self.reward_scaler.penalty_stats)

    def constrained_scores(self, rollout: Rollout) -> Tensor:
        """The same with what the constraints add to them: (B,)."""
        scores = self.scores(rollout)
        return scores if self.lagrangian is None else self.lagrangian.shape(scores, rollout.parts)

    def rewards(self, rollout: Rollout) -> Tensor:
        """Normalised reward of each token: (B, T). Score and KL are divided by the same standard deviation, since
        normalisation must not change the optimum."""
        stats, in_reward = self.stats, self.config.ppo.kl_in == "reward"
        scores = stats.normalise(self.constrained_scores(rollout))
        kl_coef = self.kl_controller.value / stats.std if in_reward else 0.0
        return shape_rewards(scores, rollout.kl, rollout.response_mask, kl_coef)

    def build(self, rollout: Rollout, rewards: Tensor) -> Targets:
        """Advantages and returns of a rollout with these rewards, (B, T)."""
        ppo, mask = self.config.ppo, rollout.response_mask
        critic = None
        if ppo.advantage_estimator == "gae":
            critic = self.critic_targets(rollout, rewards)
            advantages, _ = estimate_advantages(rewards, critic.old_values, mask, GAMMA, ppo.gae_lambda)
        elif ppo.advantage_estimator == "reinforce++":
            advantages = returns_to_go(rewards, mask, GAMMA)
        else:
            advantages = group_advantages(rewards, mask, ppo.advantage_estimator, self.config.rollout.num_generations)
        # grpo scales within its groups, dr_grpo scales nothing.
        whitened = ppo.advantage_estimator not in ("grpo", "dr_grpo")
        if whitened:
            advantages = whiten(advantages, mask, reduce=all_reduce_sum)
        kl_coef = self.kl_controller.value
        # A KL in the loss must have the scale of the advantages beside it.
        in_points = not whitened and ppo.advantage_estimator != "grpo"
        return Targets(advantages, kl_coef, critic, kl_coef / self.stats.std if in_points else kl_coef)

    def critic_targets(self, rollout: Rollout, rewards: Tensor, gae_lambda: float | None = None) -> CriticTargets:
        """The critic's targets for a rollout with these rewards, (B, T)."""
        ppo, mask, role = self.config.ppo, rollout.response_mask, self.critic
        assert role is not None
        stats, scale = self.stats, role.head_scale
        stats = ScoreStats() if scale is None else ScoreStats(stats.mean / scale, stats.std / scale)
        values = torch.where(mask, stats.normalise(rollout.old_values), 0.0)
        gae_lambda = ppo.gae_lambda if gae_lambda is None else gae_lambda
        _, returns = estimate_advantages(rewards, values, mask, GAMMA, gae_lambda)
        return CriticTargets(values, returns, returns_to_go(rewards, mask, GAMMA), stats)
