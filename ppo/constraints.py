"""Constrained PPO: maximise the score while the means of other components stay above their bounds.

The Lagrangian of max E[score] - kl_coef * KL subject to E[c] >= b is E[score] + l * (E[c] - b) - kl_coef * KL. For the
multiplier l at which the constraint holds, its maximum is the constrained optimum; the policy climbs it, and the
multiplier follows the constraint (Dai et al. 2023, "Safe RLHF", section 3.3: the multiplier in log space, and reward
and cost divided by 1 + l).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ppo.bounds import Bound
from ppo.components import Components
from ppo.controllers import RewardScaler, run_horizon

LIMIT = 7.0
"""A multiplier stays between e^-7 and e^7 standard deviations: what cannot be met must not drown the score for good."""
FULL_SPEED = 0.3
"""Standard deviations of a component: a mean that is so far from its bound, or farther, changes the multiplier by a
factor of e within the horizon."""


class Lagrangian:
    """The multipliers of a run's constraints.

    A multiplier is kept in standard deviations of the score per standard deviation of its component, both under the
    initial policy, so that its steps mean the same whatever the two are measured in. It starts at 1.

    Args:
        bounds: one of each constrained component.
        horizon: episodes over which a mean that is far from its bound multiplies by e.
    """

    def __init__(
        self, bounds: Sequence[Bound], components: Components, reward_scaler: RewardScaler, horizon: float
    ) -> None:
        self.bounds, self.horizon = tuple(bounds), horizon
        self._components, self._reward_scaler = components, reward_scaler
        self._logs = {bound.name: 0.0 for bound in self.bounds}

    @classmethod
    def for_run(
        cls, bounds: Sequence[Bound], components: Components, scaler: RewardScaler, batch_size: int, iterations: int
    ) -> Lagrangian | None:
        """That of a run of so many iterations of `batch_size` episodes; None without constraints."""
        return cls(bounds, components, scaler, run_horizon(batch_size, iterations)) if bounds else None

    def multiplier(self, name: str) -> float:
        """Points of the score that a point of a component is worth."""
        unit = self._reward_scaler.start.std / self._components.start(name).std
        return math.exp(self._logs[name]) * unit

    @property
    def scale(self) -> float:
        """By which score, constraints and KL are divided, so that a large multiplier does not make a large reward."""
        return 1.0 + sum(map(math.exp, self._logs.values()))

    def shape(self, scores: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """The scores and what the constraints add to them, in points of the score: (B,) -> (B,)."""
        for bound in self.bounds:
            scores = scores + self.multiplier(bound.name) * bound.sign * (parts[bound.name] - bound.at)
        return scores

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Each multiplier as it was used, and how far the component's mean is on the right side of its bound.

        Args:
            means: metrics of the rollout, of all processes, by their names in the journal.
        """
        named = {f"multiplier/{bound.name}": self.multiplier(bound.name) for bound in self.bounds}
        return named | {f"slack/{bound.name}": bound.slack(means[f"reward/{bound.name}"]) for bound in self.bounds}

    def update(self, means: Mapping[str, float], num_episodes: int) -> None:
        """Raise the multiplier of a constraint that is not met, and lower that of one that is.

        Args:
            means: as in `metrics`, over so many episodes.
        """
        for bound in self.bounds:
            mean = means[f"reward/{bound.name}"]
            assert math.isfinite(mean), mean
            missing = -bound.slack(mean) / (FULL_SPEED * self._components.start(bound.name).std)
            step = min(max(missing, -1.0), 1.0) * num_episodes / self.horizon
            self._logs[bound.name] = min(max(self._logs[bound.name] + step, -LIMIT), LIMIT)

    def is_at_limit(self, name: str) -> bool:
        """Whether a multiplier is as large as it may be."""
        return self._logs[name] >= LIMIT

    def state_dict(self) -> dict[str, Any]:
        return {"logs": dict(self._logs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logs.update({name: float(state["logs"][name]) for name in self._logs if name in state["logs"]})
