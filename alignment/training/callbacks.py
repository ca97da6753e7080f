"""Callbacks of a TRL trainer: the journal, the progress line, and a check for overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from alignment.distributed import heartbeat
from alignment.runs.journal import Level, Recorder
from alignment.terminal import ProgressLine, progress

RENAMES = {
    "train_loss": "train/mean_loss",
    "train_runtime": "time/train",
    "train_samples_per_second": "train/samples_per_second",
    "eval_runtime": "time/eval",
}
OMITTED = {
    "step", "total_flos", "num_input_tokens_seen", "train_steps_per_second", "train_tokens_per_second",
    "eval_samples_per_second", "eval_steps_per_second",
}  # fmt: skip
"""Logged values that add nothing to the other metrics."""


OVERFITTING = "overfitting"
RISE_THRESHOLD = 0.01
"""Relative rise over the minimum that counts as overfitting."""


def overfitting(history: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence if the held-out loss has risen above its minimum while the training loss fell, else None.

    Args:
        history: rows of a trainer's log with `step` and `loss` or `eval_loss`, the last of them an evaluation.
    """
    evaluated = [(row["step"], row["eval_loss"]) for row in history if math.isfinite(row.get("eval_loss", math.nan))]
    if len(evaluated) < 2 or "eval_loss" not in history[-1]:
        return None
    (step, now), steps = evaluated[-1], [step for step, _ in evaluated]
    best_step, best = min(evaluated[:-1], key=lambda pair: pair[1])

    def training_losses(last: int, since: int = -1) -> list[float]:
        """Training losses between the evaluation at step `last` and the one before."""
        first = max((earlier for earlier in steps if earlier < last), default=-1)
        so_far = [(row["step"], row["loss"]) for row in history if "loss" in row and row["step"] <= last]
        between = [loss for at, loss in so_far if at > first]
        # With fewer log lines than evaluations, the last line before counts.
        return between or [loss for at, loss in so_far[-1:] if at > since]

    before, after = training_losses(best_step), training_losses(step, since=best_step)
    if now <= best + RISE_THRESHOLD * abs(best) or not before or not after or not fmean(after) < fmean(before):
        return None
    return (
        f"the held-out loss is {now:.3f}, up from {best:.3f} at step {best_step}, while the training loss fell from "
        f"{fmean(before):.3f} to {fmean(after):.3f}: the model is overfitting; train for fewer epochs, or set "
        "training.load_best_model_at_end=true"
    )


class JournalCallback(TrainerCallback):
    """Writes a trainer's log to the journal (`train/loss`, `eval/loss`) and shows one progress line.

    Args:
        keeps_best: whether the model of the best evaluation is published, so that later overfitting does no harm.
    """

    def __init__(self, journal: Recorder, description: str, enabled: bool, keeps_best: bool) -> None:
        self._journal = journal
        self._description = description
        self._enabled = enabled
        self._overfitting_level: Level = "note" if keeps_best else "warning"
        self._stack = ExitStack()
        self._line: ProgressLine | None = None
        self._shown: dict[str, float] = {}
        self._predicted = 0
        """Batches done in the current evaluation."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._line = self._stack.enter_context(progress(self._description, state.max_steps, self._enabled))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the progress of an evaluation; `alignment.distributed.ticker` prints it if it takes long."""
        total = len(kwargs["eval_dataloader"])
        self._predicted = self._predicted % total + 1
        phase = f"the evaluation after step {state.global_step}, batch {self._predicted} of {total}"
        heartbeat.enter(phase, patient=state.global_step >= state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._line is not None:
            self._line.advance(1, **self._shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stack.close()
        self._line = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {}
        for name, value in (logs or {}).items():
            if name in OMITTED or not isinstance(value, (int, float)):
                continue
            renamed = RENAMES.get(name, name)
            if renamed.startswith("eval_"):
                renamed = "eval/" + renamed.removeprefix("eval_")
            is_whole = renamed.startswith(("train/", "eval/", "time/"))  # a head's accuracy is `accuracy/helpful`
            metrics[renamed if is_whole else f"train/{renamed}"] = float(value)
        self._journal.log(state.global_step, metrics)
        if "eval_loss" in (logs or {}):
            self._check_overfitting(state)
        self._shown = {name: float(value) for name, value in (logs or {}).items() if name in ("loss", "accuracy")}

    def _check_overfitting(self, state: TrainerState) -> None:
        """Update the overfitting finding from the log alone, which checkpoints hold, so a resumed run agrees."""
        earlier = [index for index, row in enumerate(state.log_history[:-1]) if "eval_loss" in row]
        before = overfitting(state.log_history[: earlier[-1] + 1]) if earlier else None
        now = overfitting(state.log_history)
        if now is not None and before is None:
            self._journal.finding(state.global_step, OVERFITTING, self._overfitting_level, now)
        elif now is None and before is not None:
            self._journal.cleared(state.global_step, OVERFITTING)


def attach(trainer: Trainer, journal: Recorder, description: str, keeps_best: bool = False) -> None:
    """Give a trainer the journal in place of its own printing and progress bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(JournalCallback(journal, description, trainer.is_world_process_zero(), keeps_best))
