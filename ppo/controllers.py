"""State that changes slowly over a run: the KL coefficient, and the mean and standard deviation of the scores.

They are applied elsewhere: `ppo.targets.TargetBuilder` normalises the scores, subtracts the KL (`shape_rewards` of
`ppo.algorithm`) and the penalty of unfinished responses (`penalise_missing_eos`), or gives `ppo.update` the coefficient
of a KL in the loss (`kl_loss`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor

from alignment.tensors import Reduce, masked_moments, one_process
from ppo.algorithm import ScoreStats

MAX_ERROR = 0.2
HORIZON = 10_000
"""Episodes over which the KL coefficient adapts in a long run (lm-human-preferences); in a short one a sixth of its
episodes, so that there is time to come near the target."""
SPREAD, ROUNDING = 1e-8, 1e-6
"""A standard deviation that is no more than this, or than this share of the mean, is rounding and no scale."""


def run_horizon(batch_size: int, iterations: int) -> float:
    """Episodes over which what adapts does so, in a run of so many iterations of `batch_size` episodes."""
    return max(batch_size, min(HORIZON, batch_size * iterations / 6))


class KLController:
    """The KL coefficient: fixed or, with a target, adapted in proportion to how far the KL is from it (Ziegler et al.
    2019, section 2.2; lm-human-preferences, AdaptiveKLController).

    Args:
        target: KL that is aimed at, in nats per response; None keeps the coefficient.
        horizon: episodes over which an error of 20% or more multiplies the coefficient by about e^0.2.
    """

    def __init__(self, kl_coef: float, target: float | None, horizon: float) -> None:
        self.value, self.target, self.horizon = kl_coef, target, horizon

    @classmethod
    def for_run(cls, kl_coef: float, target: float | None, batch_size: int, iterations: int) -> Self:
        """The controller of a run of so many iterations of `batch_size` episodes."""
        return cls(kl_coef, target, run_horizon(batch_size, iterations))

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt to the mean KL of so many episodes, in nats per response."""
        assert math.isfinite(kl), kl
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.value *= 1 + error * num_episodes / self.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.target is not None:  # a fixed one is the config's, which may have been changed
            self.value = float(state["value"])


class RewardScaler:
    """Normalises scores, by the mean and standard deviation of the first scores, which are those of the policy as it
    starts (lm-human-preferences normalises so before training; trlX `ref`), or of all scores so far. Where the first
    scores are all equal, of the scores up to the first call in which they differ; until then the deviation counts as 1.

    Args:
        mode: None leaves scores as they are.
    """

    def __init__(self, mode: Literal["running", "reference"] | None) -> None:
        self.mode = mode
        self._start, self._all = _Moments(), _Moments()

    def observe(self, scores: Tensor, reduce: Reduce = one_process) -> None:
        """Take a rollout's scores into account, (B,), before the penalty of unfinished responses; those of all
        processes count."""
        assert torch.isfinite(scores).all()
        if not self._start.spread:
            self._start.add(scores, reduce)
        if self.mode == "running":
            self._all.add(scores, reduce)

    @property
    def start(self) -> ScoreStats:
        """Statistics of the scores of the initial policy, in every mode."""
        return self._start.stats

    @property
    def penalty_stats(self) -> ScoreStats:
        """By which unfinished responses are penalised: it stays the same over a run, so that evaluations compare."""
        return ScoreStats() if self.mode is None else self._start.stats

    @property
    def stats(self) -> ScoreStats:
        """By which the scores that policy and critic are trained on are normalised."""
        return self._all.stats if self.mode == "running" else self.penalty_stats

    def __call__(self, scores: Tensor) -> Tensor:
        """Normalised scores: (B,) -> (B,)."""
        return self.stats.normalise(scores)

    def state_dict(self) -> dict[str, Any]:
        return {"start": vars(self._start), "all": vars(self._all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self._start).update(state["start"])
        vars(self._all).update(state["all"])


class _Moments:
    """Count, mean and sum of squared deviations of the scores so far."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def add(self, scores: Tensor, reduce: Reduce) -> None:
        """Join the moments of a batch to those so far (Chan, Golub and LeVeque 1983, equation 1.5)."""
        count, mean, variance = (
            float(x) for x in masked_moments(scores, torch.ones_like(scores, dtype=torch.bool), reduce)
        )
        total, shift = self.count + count, mean - self.mean
        self.squares += variance * count + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def spread(self) -> float:
        """The standard deviation; 0 where it is rounding."""
        std = math.sqrt(self.squares / self.count) if self.count >= 2 else 0.0
        return std if std > max(SPREAD, ROUNDING * abs(self.mean)) else 0.0

    @property
    def stats(self) -> ScoreStats:
        return ScoreStats(self.mean, self.spread or 1.0)
