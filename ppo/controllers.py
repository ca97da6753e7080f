"""What changes slowly over a run and is no model: the KL coefficient, and the scale of the rewards."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from alignment.tensors import Reduce, masked_moments, one_process

MAX_ERROR = 0.2
SPREAD = 1e-8
"""A standard deviation that is no more than this is rounding, and no scale."""


class KLController:
    """The KL coefficient: fixed or, with a target, adapted in proportion to how far the KL is from it (Ziegler et al.
    2019, section 2.2; lm-human-preferences, AdaptiveKLController).

    Args:
        target: KL that is aimed at, in nats per response; None keeps the coefficient.
        horizon: episodes over which an error of 20% or more multiplies the coefficient by about e^0.2.
    """

    def __init__(self, kl_coef: float, target: float | None, horizon: float) -> None:
        self.value, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Take the KL of so many episodes into account, nats per response."""
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
    """Scores on a scale of their own: by the running standard deviation, or by the mean and the standard deviation of
    the first call, those of the policy as it starts (lm-human-preferences normalises so before training; trlX `ref`);
    where these are all one, of those up to the first call in which they differ. Until then there is no scale, and they
    stay as they are.

    Args:
        mode: None leaves scores as they are.
        clip: cut to +-clip afterwards.
    """

    def __init__(self, mode: Literal["running", "reference"] | None, clip: float | None) -> None:
        self.mode, self.clip = mode, clip
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def __call__(self, scores: Tensor, reduce: Reduce = one_process) -> Tensor:
        """(B,) -> (B,). The scores of all processes count."""
        assert torch.isfinite(scores).all()
        if self.mode == "running" or (self.mode == "reference" and self._std <= SPREAD):
            self._add(scores, reduce)
        if self.mode is not None and self._std > SPREAD:
            scores = (scores - (self.mean if self.mode == "reference" else 0.0)) / self._std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)

    @property
    def _std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count >= 2 else 0.0

    def _add(self, scores: Tensor, reduce: Reduce) -> None:
        """Join the moments of a batch to those so far (Chan, Golub and LeVeque 1983, equation 1.5)."""
        count, mean, variance = (
            float(x) for x in masked_moments(scores, torch.ones_like(scores, dtype=torch.bool), reduce)
        )
        total, apart = self.count + count, mean - self.mean
        self.squares += variance * count + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = (float(state[name]) for name in ("count", "mean", "squares"))
