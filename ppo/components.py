"""The components of the score (heads of the reward model, functions, services): their scales and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alignment.tensors import Reduce, one_process
from ppo.algorithm import ScoreStats
from ppo.config import RewardsConfig
from ppo.controllers import RewardScaler
from ppo.reward_sources import weighted


class Components:
    """Adds components by their weights; one without weight is logged, or constrained.

    Args:
        weights: of every component, by its name.
        config: with `normalize=each`, each is normalised before the sum by the mean and standard deviation of its own
            first scores, which are those of the initial policy. (GDPO, Liu et al. 2026, normalises each within the
            responses to a prompt; this is one scale for a run, so that its scores compare.)
    """

    def __init__(self, weights: Mapping[str, float], config: RewardsConfig) -> None:
        self.weights = {name: weight for name, weight in weights.items() if weight}
        scaled = self.weights if config.normalize == "each" else {}
        self._each = set(scaled)
        self._scalers = {name: RewardScaler("reference") for name in dict.fromkeys([*scaled, *config.constraints])}

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The score of each response: (B,) each -> (B,)."""
        return weighted({name: self._scaled(name, parts[name]) for name in self.weights}, self.weights)

    def observe(self, parts: Mapping[str, Tensor], reduce: Reduce = one_process) -> None:
        """Take a rollout's scores into account, (B,) each; those of all processes count."""
        for name, scaler in self._scalers.items():
            scaler.observe(parts[name], reduce)

    def start(self, name: str) -> ScoreStats:
        """Statistics of a constrained component under the initial policy."""
        return self._scalers[name].start

    def _scaled(self, name: str, part: Tensor) -> Tensor:
        return self._scalers[name](part.float()) if name in self._each else part

    def state_dict(self) -> dict[str, Any]:
        return {name: scaler.state_dict() for name, scaler in self._scalers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, scaler in self._scalers.items():
            scaler.load_state_dict(state[name])
