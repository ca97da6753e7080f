"""Supervised fine-tuning: demonstrations in, a policy in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m sft configs/sft/demo.yaml

The loss is on the assistant's tokens through EOS. TRL's SFTTrainer trains; the rows reach it as token ids and labels,
so that training, sampling and PPO all see the one rendering of `alignment.templates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from alignment import adapters, callbacks, distributed, methods, trainers
from alignment.best_model import finished_model, keep_best, published_step
from alignment.config import SCRATCH, trainer_arguments
from alignment.models import ModelSource
from alignment.positions import check_length
from alignment.registry import Registry
from alignment.stage import write_bad_rows
from alignment.tracking import Journal
from sft.config import DEFAULTS, SFTStageConfig
from sft.data import EncodedData, encode_data, training_texts


class MethodTrainer(SFTTrainer):
    """`SFTTrainer` with what the method adds to the loss."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.model.training:
            return loss
        # The trainer divides by the tokens of the whole optimizer step, so each of its passes adds its share.
        return loss + methods.regularisation(self.model) / self.current_gradient_accumulation_steps


@dataclass(frozen=True)
class Prepared:
    """What a trainer is made of: the model to start from, the rows as token ids and labels, and the arguments."""

    seed: int
    registry: Registry
    start: trainers.Start
    data: EncodedData
    arguments: SFTConfig


def train(config: SFTStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the final metrics."""
    prepared = prepare(config)
    start = trainers.publish_base(config, prepared.registry, prepared.start, prepared.seed)
    prepared = replace(prepared, start=start)
    trainer = build_trainer(config, prepared)
    with trainers.open_journal(config, "sft") as journal:
        _note_data(journal, config, prepared)
        callbacks.attach(trainer, journal, f"sft {config.name}")
        journal.event("method", method=config.model.method, **methods.describe(trainer.model))
        best = keep_best(trainer, config.training, config.run_dir, journal)
        outcome = trainer.train()
        trainers.backend_event(journal, trainer)
        step = published_step(trainer, best)
        metrics = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if best is not None:
            metrics["best_step"] = step
        if len(prepared.data.eval):
            loss = _eval_loss(trainer, step)
            metrics |= {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50.0))}
        metrics |= methods.describe(trainer.model)
        with finished_model(trainer, best, config.run_dir) as folder:
            ref = publish(config, prepared, folder, metrics)
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


def prepare(config: SFTStageConfig) -> Prepared:
    """Read the data, find the model to start from, and encode the rows with its tokenizer; leaves nothing behind."""
    seed = trainer_arguments(SFTConfig, DEFAULTS, config.training).get("seed", 42)
    distributed.on_main_process(lambda: methods.check(config.model, distributed.launched_zero_stage()))
    distributed.start_processes()
    registry = trainers.open_registry(config)
    start = trainers.start_model(config, registry, training_texts(config.data))
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    folder = config.run_dir if config.run_dir.is_dir() else None
    data = encode_data(config.data, start.tokenizer, folder, show=distributed.is_main_process())
    no_eval = len(data.eval) == 0
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    arguments = trainers.make_arguments(SFTConfig, config, defaults, max_length=None, no_eval=no_eval)
    return Prepared(seed, registry, start, data, arguments)


def build_trainer(config: SFTStageConfig, prepared: Prepared) -> SFTTrainer:
    """Load the model and wrap it in the trainer."""
    set_seed(prepared.seed)
    policy = methods.load_trainable(prepared.start.source, prepared.start.tokenizer, config.model)
    with trainers.refused_arguments():
        trainer = MethodTrainer(
            model=policy,
            args=prepared.arguments,
            train_dataset=prepared.data.train,
            eval_dataset=prepared.data.eval if len(prepared.data.eval) else None,
            processing_class=prepared.start.tokenizer,
        )
    methods.attach(trainer, config.model)
    return trainer


def publish(config: SFTStageConfig, prepared: Prepared, folder: Path, metrics: Mapping[str, Any]) -> str:
    """Publish a saved model, or an adapter alone; returns its reference, on every process."""
    source = prepared.start.source
    base = methods.base_of(source, config.model)
    return distributed.on_main_process(
        lambda: (
            trainers.publish(
                config,
                prepared.registry,
                _only_model(folder, base),
                stage="sft",
                role="policy",
                parents=[source.parent("init")],
                base=base.as_base() if base else None,
                data=[mark for marks in prepared.data.fingerprints.values() for mark in marks],
                metrics=metrics,
                seed=prepared.seed,
            ).ref
        )
    )


def _eval_loss(trainer: SFTTrainer, step: int) -> float:
    """The held-out loss at a step: from the log, or of the model as it is now, which must then be that step's."""
    for row in trainer.state.log_history:
        if row["step"] == step and "eval_loss" in row:
            return float(row["eval_loss"])
    assert step == trainer.state.global_step
    return float(trainer.evaluate()["eval_loss"])


def _only_model(folder: Path, base: ModelSource | None) -> Path:
    """Remove the trainer's pickled arguments, which are no part of a model (the registry refuses pickles), and PEFT's
    card, which would stand in place of the registry's."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    if base:
        adapters.name_base(folder, base.label)
    return folder


def _note_data(journal: Journal, config: SFTStageConfig, prepared: Prepared) -> None:
    data = prepared.data
    if distributed.is_main_process():
        write_bad_rows(config.run_dir, data.bad, data.notes)
    journal.event("data", **data.fingerprints, bad=len(data.bad), too_long=data.left_out, notes=data.notes)


def plan(config: SFTStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
    merged = trainer_arguments(SFTConfig, DEFAULTS, config.training)
    source = None if config.model.name.startswith(SCRATCH) else prepared.start.source
    rows = {
        "train_rows": len(prepared.data.train),
        "eval_rows": len(prepared.data.eval),
        "bad_rows": len(prepared.data.bad),
        "too_long": prepared.data.left_out,
    }
    return rows | trainers.batch_plan(merged, world_size, source, config.model)
