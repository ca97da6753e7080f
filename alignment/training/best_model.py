"""Publishing the model of the best evaluation, and early stopping.

The best of several evaluations owes part of its lead to luck. So half of the held-out prompts choose it, and its
metrics are reported on the other half (`held_out_halves`); a run with a single evaluation reports on all.

Names and meanings are those of transformers. Its own `load_best_model_at_end` writes full checkpoints with the
optimizer; here only the model is kept, in `RUN/best`, and published from there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from alignment.config.arguments import BestModelArguments
from alignment.distributed import processes
from alignment.errors import ConfigError
from alignment.intervals import choosing_half
from alignment.runs.journal import Recorder


class BestModel(TrainerCallback):
    """Saves the model at each new best evaluation; every rank takes part, because ZeRO-3 gathers.

    The metrics of an evaluation are the same on all ranks, so all ranks decide alike.

    Args:
        report: measures the model in memory on the reporting half; called on every rank at each new best evaluation,
            because that model is no longer in memory when the training is over.
    """

    def __init__(
        self,
        trainer: Trainer,
        arguments: BestModelArguments,
        folder: Path,
        journal: Recorder,
        report: Callable[[], float] | None = None,
    ) -> None:
        self._trainer = trainer
        self._arguments = arguments
        self._journal = journal
        self._metric = "eval_" + (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
        greater_is_better = trainer.args.greater_is_better
        if greater_is_better is None:
            greater_is_better = not self._metric.endswith("loss")
        self._sign = 1.0 if greater_is_better else -1.0
        self._best: float | None = None
        self._failures = 0
        self._report = report
        self.folder = folder
        self.step: int | None = None
        """Optimizer step of the best evaluation; None while no evaluation gave a number."""
        self.evaluations = 0
        """Evaluations among which the best one is chosen."""
        self.reported: float | None = None
        """The value of `report` for the best model."""

    @property
    def is_chosen(self) -> bool:
        """Whether the best model was chosen among several."""
        return self.step is not None and self.evaluations > 1

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        value = self._metric_value(state)
        lead = None if self._best is None else self._sign * (value - self._best)
        # As in transformers' EarlyStoppingCallback, any gain is a new best, but only a large one resets the patience.
        if value == value and (lead is None or lead > self._arguments.early_stopping_threshold):
            self._failures = 0
        else:
            self._failures += 1
        self.evaluations += 1
        if value == value and (lead is None or lead > 0):
            self._best, self.step = value, state.global_step
            self._save()
            self.reported = None if self._report is None else self._report()
            self._journal.event("best", step=self.step, **{self._metric: value})
        patience = self._arguments.early_stopping_patience
        if patience is not None and self._failures >= patience and not control.should_training_stop:
            control.should_training_stop = True
            self._journal.event("stopped_early", step=state.global_step, evaluations_without_a_best=self._failures)

    def _save(self) -> None:
        """Save into a new folder that replaces the old one, since checkpoints hold links to the old files."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        if processes.is_main_process():
            shutil.rmtree(part, ignore_errors=True)
        processes.wait_for_everyone()
        self._trainer.save_model(str(part))
        if processes.is_main_process():
            (part / "training_args.bin").unlink(missing_ok=True)  # it is a pickle
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self._best, "failures": self._failures, "step": self.step,
            "evaluations": self.evaluations, "reported": self.reported,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._failures, self.step = state["best"], state["failures"], state["step"]
        self.evaluations, self.reported = state["evaluations"], state["reported"]

    def _metric_value(self, state: TrainerState) -> float:
        """The metric from the log, the only place where TRL's trainers put their own metrics, such as accuracy."""
        row = state.log_history[-1] if state.log_history else {}
        if self._metric not in row:
            known = ", ".join(sorted(name.removeprefix("eval_") for name in row if name.startswith("eval_")))
            metric = self._metric.removeprefix("eval_")
            raise ConfigError(
                f"training.metric_for_best_model={metric}: an evaluation gives no such metric; there are {known}"
            )
        return float(row[self._metric])


def held_out_halves(training: dict[str, Any], prompts: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Indices of the held-out rows that choose the best model, and of those that it is reported on.

    Both are all rows if the `training` section keeps no best model, or if all rows share one prompt.

    Args:
        prompts: a key that identifies the prompt of each row.
    """
    everything = list(range(len(prompts)))
    if not BestModelArguments.of(training).wanted or len(set(prompts)) < 2:
        return everything, everything
    chooses = choosing_half(prompts)
    return [row for row in everything if chooses[row]], [row for row in everything if not chooses[row]]


def keep_best(
    trainer: Trainer,
    training: dict[str, Any],
    run_dir: Path,
    journal: Recorder,
    report: Callable[[], float] | None = None,
) -> BestModel | None:
    """Have a trainer keep its best model if the `training` section asks for it; `report` as in `BestModel`."""
    arguments = BestModelArguments.of(training)
    if not arguments.wanted:
        return None
    best = BestModel(trainer, arguments, run_dir / "best", journal, report)
    trainer.add_callback(best)
    return best


def published_step(trainer: Trainer, best: BestModel | None) -> int:
    """The optimizer step of the published model.

    Call it when the training is over. The last model is evaluated if it was not, because it may be the best.
    """
    last = int(trainer.state.global_step)
    if best is None:
        return last
    if not any("eval_loss" in row and row["step"] == last for row in trainer.state.log_history):
        trainer.evaluate()
    return last if best.step is None else best.step


@contextmanager
def finished_model(trainer: Trainer, best: BestModel | None, run_dir: Path) -> Iterator[Path]:
    """A folder with the model to publish, on every rank: the best one if one was kept, else the trainer's."""
    if best is not None and best.step is not None:
        yield best.folder
        if processes.is_main_process():
            shutil.rmtree(best.folder)
    else:
        with tempfile.TemporaryDirectory(dir=run_dir) as folder:
            trainer.save_model(folder)
            yield Path(folder)
