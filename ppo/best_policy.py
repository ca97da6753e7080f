"""Which policy of a run is the one to publish."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.distributed import processes
from alignment.errors import ConfigError
from ppo.bounds import Bound
from ppo.config import TrainingConfig


def check_selection(training: TrainingConfig, num_held_out: int) -> None:
    """Refuse keys that choose among evaluations where there are none.

    Raises:
        ConfigError: names the key and what it needs.
    """
    patience = training.early_stopping_patience
    if patience is not None and not training.eval_steps:
        raise ConfigError("training.early_stopping_patience counts evaluations in between; set training.eval_steps")
    if patience is not None and not training.load_best_model_at_end:
        raise ConfigError(
            "training.early_stopping_patience stops after the best policy, which is then published; take "
            "training.load_best_model_at_end=false out"
        )
    if training.max_kl is not None and not training.load_best_model_at_end:
        raise ConfigError(
            "training.max_kl is for choosing the best policy; take training.load_best_model_at_end=false out"
        )
    if not num_held_out:
        for key in ("early_stopping_patience", "max_kl", "eval_steps"):
            if getattr(training, key):
                raise ConfigError(f"training.{key} needs held-out prompts; set data.eval or data.eval_share")


class BestPolicy:
    """Keeps the policy of the best evaluation: the highest score at a KL that is allowed and within the bounds of
    `rewards.constraints`, on the half of the held-out prompts that chooses. The best of several owes some of its lead
    to luck, so what is reported of it is on the other half.

    The start is a candidate too: a run that made nothing better publishes what it began with, and says so.
    """

    def __init__(self, training: TrainingConfig, run_dir: Path, bounds: Sequence[Bound] = ()) -> None:
        self._training, self._bounds, self.folder = training, tuple(bounds), run_dir / "best"
        self._file = self.folder / "policy.safetensors"
        self.step: int | None = None
        self.metrics: dict[str, float] | None = None
        """The metrics to report."""
        self._chosen_by: dict[str, float] | None = None
        self._worse = 0

    @property
    def wanted(self) -> bool:
        """True if the best policy is published, not the last."""
        return self._training.load_best_model_at_end

    def consider(
        self,
        step: int,
        choosing: Mapping[str, float],
        reported: Mapping[str, float],
        weights: Callable[[], Mapping[str, Tensor]],
    ) -> bool:
        """Take an evaluation into account; True if it is the best so far. The same on every rank, as its metrics are.

        Args:
            choosing, reported: its metrics on the half of the prompts that chooses, and on the other.
            weights: gives what is trained of the policy, by name, on the main process; called where the answer is yes.
        """
        if not self.wanted:
            return False
        if not self._better(choosing):
            self._worse += self.step is not None  # before there is a best one, none can be worse
            return False
        self.step, self._chosen_by, self.metrics, self._worse = step, dict(choosing), dict(reported), 0
        self._save(weights())
        return True

    def restate(self, choosing: Mapping[str, float], reported: Mapping[str, float]) -> None:
        """Replace the metrics of the best policy, where the cost of answers has changed since."""
        self._chosen_by, self.metrics = dict(choosing), dict(reported)

    def _better(self, metrics: Mapping[str, float]) -> bool:
        score, ceiling = _deciding(metrics), self._training.max_kl
        if not math.isfinite(score) or (ceiling is not None and not metrics["kl"] <= ceiling):
            return False
        if not all(bound.slack(metrics[f"reward/{bound.name}"]) >= 0 for bound in self._bounds):
            return False
        return self._chosen_by is None or score > _deciding(self._chosen_by)

    def _save(self, weights: Mapping[str, Tensor]) -> None:
        """By the main process, and whole or not at all: a run can be killed at any time."""
        if not processes.is_main_process():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        save_file(dict(weights), part)
        part.replace(self._file)

    @property
    def should_stop(self) -> bool:
        """True once as many evaluations in a row as `training.early_stopping_patience` were no better."""
        patience = self._training.early_stopping_patience
        return patience is not None and self._worse >= patience

    def weights(self) -> dict[str, Tensor] | None:
        """The weights that were kept, on the main process, which publishes; None elsewhere, or without any."""
        if self.step is None or not processes.is_main_process():
            return None
        return load_file(self._file)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "chosen_by": self._chosen_by, "figures": self.metrics, "worse": self._worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self._worse = state["step"], state["worse"]
        self._chosen_by, self.metrics = state["chosen_by"], state["figures"]


def _deciding(metrics: Mapping[str, float]) -> float:
    return metrics.get("held_out_score", metrics["score"])
