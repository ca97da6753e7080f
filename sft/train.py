"""Supervised fine-tuning: train a policy on demonstrations and publish it to the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m sft configs/sft/demo.yaml

The loss is on the assistant's tokens through EOS. The trainer is TRL's SFTTrainer with the optimizations of
`sft.trainer`. It receives token ids and labels, so training, sampling and PPO share the rendering of
`alignment.templates.rendering`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from alignment.config.arguments import BestModelArguments, CheckpointArguments
from alignment.config.sections import SCRATCH
from alignment.distributed import heartbeat, processes
from alignment.models import trainable
from alignment.models.sources import ModelSource
from alignment.runs import resume
from alignment.runs.journal import Journal
from alignment.runs.run import Run
from alignment.seeds import random_state, set_random_state
from alignment.training import callbacks, opening, publishing, start_model
from alignment.training.best_model import BestModel, finished_model, held_out_halves, keep_best, published_step
from alignment.training.data_check import DATA_WATCHED, note_findings, write_report
from alignment.training.stage import write_bad_rows
from sft.building import build_trainer, packs_rows
from sft.config import SFTStageConfig
from sft.data import IGNORED, row_groups
from sft.prepare import PreparedSFT, prepare
from sft.samples import write_samples
from sft.trainer import SFTTrainer


@dataclass(frozen=True)
class Halves:
    """Held-out rows that choose the best model during training, and those that report on it."""

    evaluated: datasets.Dataset
    reported: datasets.Dataset

    @classmethod
    def of(cls, config: SFTStageConfig, rows: datasets.Dataset) -> Halves:
        if not BestModelArguments.of(config.training).wanted:
            return cls(rows, rows)
        evaluated, reported = held_out_halves(config.training, row_groups(rows))
        return cls(rows.select(evaluated), rows.select(reported))


def train(config: SFTStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the final metrics."""
    start = resume.begin(config.run_dir)
    if published := publishing.published_before(config, "sft", opening.open_registry(config), start.run):
        return published
    prepared = prepare(config, start.run)
    initial = start_model.publish_base(config, prepared.registry, prepared.start, prepared.seed, start.run)
    publishing.pin_models(config, prepared.registry, start.run)
    prepared = replace(prepared, start=initial)
    halves = Halves.of(config, prepared.data.eval)
    trainer = build_trainer(config, replace(prepared, data=replace(prepared.data, eval=halves.evaluated)))
    shown, tokenizer = prepared.data.samples, prepared.start.tokenizer
    saving = CheckpointArguments.of(config.training)
    with opening.open_journal(config, "sft", start) as journal:
        fingerprints = prepared.data.fingerprints
        checkpoints = opening.open_checkpoints(config, start, journal, keep=saving.save_total_limit, data=fingerprints)
        _note_data(journal, config, prepared)
        callbacks.attach(trainer, journal, f"sft {config.name}", BestModelArguments.of(config.training).wanted)
        journal.event("method", method=config.model.method, **trainable.describe(trainer.model))
        journal.event("batches", packed=packs_rows(trainer))
        best = keep_best(trainer, config.training, config.run_dir, journal, lambda: trainer.loss_on(halves.reported))
        if start.checkpoint is None and not config.model.name.startswith(SCRATCH):
            write_samples(journal, 0, config, prepared.start.source, tokenizer, shown)
        trainer.use_checkpoints(checkpoints, saving.save_steps, start.checkpoint, best, journal)
        trainer.add_callback(MeasureStart(trainer, journal, halves))
        outcome = trainer.train_on()
        opening.backend_event(journal, trainer)
        step = published_step(trainer, best)
        metrics = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if best is not None:
            metrics["best_step"] = step
        if len(prepared.data.eval):
            metrics |= _evaluate(trainer, best, step, prepared.data.eval, halves) | _initial_loss(trainer, best, halves)
            if best is not None:  # the published model's metric replaces the one that chose it
                journal.log(step, {"eval/loss": metrics["eval_loss"]})
        metrics |= trainable.describe(trainer.model)
        heartbeat.enter("saving the model", patient=True)
        with finished_model(trainer, best, config.run_dir) as folder:
            base = trainable.base_of(prepared.start.source, config.model)
            finished = ModelSource(str(folder), base=base, trained=config.model if base else None)
            write_samples(journal, step, config, finished, tokenizer, shown)  # a published run has only to say so
            heartbeat.enter("publishing the model", patient=True)
            ref = publish(config, prepared, folder, metrics, start.run, journal)
        publishing.announce(journal, prepared.registry, ref, metrics)
    return {"model": ref, "metrics": metrics}


class MeasureStart(TrainerCallback):
    """Held-out metrics of the initial model, at step 0, measured when training begins, because DeepSpeed has no
    engine before.

    Random states are restored, since a data loader draws from them, and a resumed run has the metrics in its
    checkpoint. So they do not change training.
    """

    def __init__(self, trainer: SFTTrainer, journal: Journal, halves: Halves) -> None:
        self._trainer, self._journal, self._halves = trainer, journal, halves

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        evaluated, reported = self._halves.evaluated, self._halves.reported
        if state.global_step or not len(evaluated):
            return
        state_before = random_state()
        loss, accuracy = self._trainer.loss_and_accuracy_on(evaluated)
        is_split = reported is not evaluated
        losses = {"evaluated": loss, "reported": self._trainer.loss_on(reported) if is_split else loss}
        self._trainer.start_losses = losses
        set_random_state(state_before)
        self._journal.log(0, {"eval/loss": loss, "eval/mean_token_accuracy": accuracy})


def publish(
    config: SFTStageConfig, prepared: PreparedSFT, folder: Path, metrics: Mapping[str, Any], run: Run, journal: Journal
) -> str:
    """Publish a saved model or adapter; returns its reference on every rank."""
    source = prepared.start.source
    base = trainable.base_of(source, config.model)
    return processes.on_main_process(
        lambda: (
            publishing.publish(
                config,
                prepared.registry,
                publishing.only_model(folder, base),
                stage="sft",
                role="policy",
                parents=[source.parent("init")],
                base=base.as_base() if base else None,
                data=[entry for entries in prepared.data.fingerprints.values() for entry in entries],
                metrics=metrics,
                seed=prepared.seed,
                run=run,
                journal=journal,
            ).ref
        )
    )


def _evaluate(
    trainer: SFTTrainer, best: BestModel | None, step: int, rows: datasets.Dataset, halves: Halves
) -> dict[str, Any]:
    """Loss and perplexity of the published model (of `step`), and the number of rows."""
    metrics: dict[str, Any] = {}
    if best is None:
        loss = _eval_loss(trainer, step)
    elif best.is_chosen:
        assert best.reported is not None
        metrics = {"best_of": best.evaluations, "choosing_rows": len(rows) - len(halves.reported)}
        loss, rows = best.reported, halves.reported
    else:  # only the last step was evaluated, or no loss was finite: nothing was chosen
        loss = trainer.loss_on(rows)
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50.0)), "eval_rows": len(rows)} | metrics


def _initial_loss(trainer: SFTTrainer, best: BestModel | None, halves: Halves) -> dict[str, float]:
    """The initial model's loss on the rows of `eval_loss`."""
    losses = trainer.start_losses
    if not losses:  # resumed from an older checkpoint without them
        return {}
    if best is None or best.is_chosen:
        return {"start_eval_loss": losses["evaluated" if best is None else "reported"]}
    tokens = {
        name: sum(label != IGNORED for labels in rows["labels"] for label in labels[1:])
        for name, rows in (("evaluated", halves.evaluated), ("reported", halves.reported))
    }
    if halves.reported is halves.evaluated:
        return {"start_eval_loss": losses["evaluated"]}
    return {"start_eval_loss": sum(losses[name] * tokens[name] for name in tokens) / sum(tokens.values())}


def _eval_loss(trainer: SFTTrainer, step: int) -> float:
    """The held-out loss at a step, from the log or, at the current step, from an evaluation."""
    for row in trainer.state.log_history:
        if row["step"] == step and "eval_loss" in row:
            return float(row["eval_loss"])
    assert step == trainer.state.global_step
    return float(trainer.evaluate()["eval_loss"])


def _note_data(journal: Journal, config: SFTStageConfig, prepared: PreparedSFT) -> None:
    data = prepared.data
    if processes.is_main_process():
        write_bad_rows(config.run_dir, data.bad, data.notes)
        write_report(config.run_dir, prepared.report)
    journal.event("data", **data.fingerprints, bad=len(data.bad), too_long=data.left_out, notes=data.notes)
    journal.event("data_check", **prepared.report.summary())
    journal.watching([*DATA_WATCHED, callbacks.OVERFITTING])
    note_findings(journal, prepared.report)
