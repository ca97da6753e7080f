"""Held-out answers of a policy in training as figures, and which policy of a run is the one to publish."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.intervals import choosing_half, win_rate
from ppo.config import TrainingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """One answer to each held-out prompt, in the prompts' order; the same on every process.

    Args:
        scores, held_out_scores: by what is trained for, and by `model.held_out_reward` (None without one); with what
            unfinished and overlong answers cost, each in its own judge's unit.
        raw_scores: what is trained for, without these costs.
        parts: what the raw scores are made of, by name.
        kl: from the reference, in nats per response.
        lengths: in tokens, with EOS.
    """

    scores: list[float]
    raw_scores: list[float]
    parts: dict[str, list[float]]
    held_out_scores: list[float] | None
    kl: list[float]
    lengths: list[float]
    ended: list[bool]
    texts: list[str]

    @property
    def deciding_scores(self) -> list[float]:
        """Those of the model that training never saw, if there is one."""
        return self.scores if self.held_out_scores is None else self.held_out_scores

    def only(self, rows: Sequence[int]) -> Judged:
        """The answers to some of the prompts."""

        def of(column: Sequence[T]) -> list[T]:
            return [column[row] for row in rows]

        held_out = None if self.held_out_scores is None else of(self.held_out_scores)
        parts = {name: of(column) for name, column in self.parts.items()}
        return Judged(
            of(self.scores), of(self.raw_scores), parts, held_out, of(self.kl), of(self.lengths), of(self.ended),
            of(self.texts),
        )  # fmt: skip


def figures(now: Judged, start: Judged | None, groups: Sequence[Hashable]) -> dict[str, float]:
    """Means, with standard errors over answers (`_se`) of the scores; and against the answers of the policy as it
    started the share that is better, ties one half, with a 95% interval over prompts.

    Args:
        groups: the prompt of each answer.
    """
    found = {"score": fmean(now.scores), "score_se": _standard_error(now.scores)}
    found |= {"raw_score": fmean(now.raw_scores), "raw_score_se": _standard_error(now.raw_scores)}
    if any(now.ended):
        found["finished_raw_score"] = fmean(
            score for score, ended in zip(now.raw_scores, now.ended, strict=True) if ended
        )
    for name, column in now.parts.items():
        found |= {f"reward/{name}": fmean(column), f"reward_se/{name}": _standard_error(column)}
    if now.held_out_scores is not None:
        found["held_out_score"] = fmean(now.held_out_scores)
    found |= {"kl": fmean(now.kl), "length": fmean(now.lengths), "ended": fmean(now.ended)}
    if start is not None:
        share = win_rate(now.deciding_scores, start.deciding_scores, groups)
        found |= {"win_rate": share["value"], "win_rate_low": share["ci"][0], "win_rate_high": share["ci"][1]}
    return found


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def halves(groups: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The answers that the best policy is chosen by, and those that its figures are reported on: see `choosing_half`.
    All of them for both where there is a single prompt."""
    chooses = choosing_half(groups)
    if all(chooses):
        return list(range(len(groups))), list(range(len(groups)))
    found = ([row for row, is_chooser in enumerate(chooses) if is_chooser == which] for which in (True, False))
    return next(found), next(found)


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
    """Keeps the policy of the best evaluation: the highest score at a KL that is allowed, on the half of the held-out
    prompts that chooses. The best of several owes some of its lead to luck, so what is reported of it is on the other
    half.

    The start is a candidate too: a run that made nothing better publishes what it began with, and says so.
    """

    def __init__(self, training: TrainingConfig, run_dir: Path) -> None:
        self._training, self.folder = training, run_dir / "best"
        self._file = self.folder / "policy.safetensors"
        self.step: int | None = None
        self.figures: dict[str, float] | None = None
        """The figures to report."""
        self._chosen_by: dict[str, float] | None = None
        self._worse = 0

    @property
    def wanted(self) -> bool:
        """Whether the best policy is published, and not the last."""
        return self._training.load_best_model_at_end

    def consider(
        self,
        step: int,
        found: Mapping[str, float],
        reported: Mapping[str, float],
        weights: Callable[[], Mapping[str, Tensor]],
    ) -> bool:
        """Look at an evaluation; whether it is the best so far. The same on every process, since the figures are.

        Args:
            found, reported: its figures on the half of the prompts that chooses, and on the other.
            weights: gives what is trained of the policy, by name, on the main process; called where the answer is yes.
        """
        if not self.wanted:
            return False
        if not self._better(found):
            self._worse += self.step is not None  # before there is a best one, none can be worse
            return False
        self.step, self._chosen_by, self.figures, self._worse = step, dict(found), dict(reported), 0
        self._save(weights())
        return True

    def restate(self, found: Mapping[str, float], reported: Mapping[str, float]) -> None:
        """The figures of the best policy, where what answers cost has changed since."""
        self._chosen_by, self.figures = dict(found), dict(reported)

    def _better(self, found: Mapping[str, float]) -> bool:
        score, ceiling = _deciding(found), self._training.max_kl
        if not math.isfinite(score) or (ceiling is not None and not found["kl"] <= ceiling):
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
        """Whether as many evaluations in a row as `training.early_stopping_patience` were no better."""
        patience = self._training.early_stopping_patience
        return patience is not None and self._worse >= patience

    def weights(self) -> dict[str, Tensor] | None:
        """What was kept, on the main process, which publishes; None elsewhere, or where nothing was."""
        if self.step is None or not processes.is_main_process():
            return None
        return load_file(self._file)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "chosen_by": self._chosen_by, "figures": self.figures, "worse": self._worse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self._worse = state["step"], state["worse"]
        self._chosen_by, self.figures = state["chosen_by"], state["figures"]


def _deciding(found: Mapping[str, float]) -> float:
    return found.get("held_out_score", found["score"])
