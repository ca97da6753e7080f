"""The suite's services inside a TRL trainer: the journal and the progress line."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from alignment.terminal import ProgressLine, progress
from alignment.tracking import Journal

RENAMES = {"total_flos": None, "train_loss": "train/mean_loss", "step": None}


class JournalCallback(TrainerCallback):
    """Writes what a trainer logs to the journal (`train/loss`, `eval/loss`) and shows one progress line."""

    def __init__(self, journal: Journal, description: str, enabled: bool) -> None:
        self._journal = journal
        self._description = description
        self._enabled = enabled
        self._stack = ExitStack()
        self._line: ProgressLine | None = None
        self._shown: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._line = self._stack.enter_context(progress(self._description, state.max_steps, self._enabled))

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
            renamed = RENAMES.get(name, name)
            if renamed is None or not isinstance(value, (int, float)):
                continue
            if renamed.startswith("eval_"):
                renamed = "eval/" + renamed.removeprefix("eval_")
            metrics[renamed if "/" in renamed else f"train/{renamed}"] = float(value)
        self._journal.log(state.global_step, metrics)
        self._shown = {name: float(value) for name, value in (logs or {}).items() if name in ("loss", "accuracy")}


def attach(trainer: Trainer, journal: Journal, description: str) -> None:
    """Give a trainer the journal in place of its own printing and progress bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(JournalCallback(journal, description, trainer.is_world_process_zero()))
