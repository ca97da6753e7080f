"""Supervised fine-tuning: demonstrations in, a policy in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m sft configs/sft/demo.yaml

The loss is on the assistant's tokens through EOS. TRL's SFTTrainer trains; the rows reach it as token ids and labels,
so that training, sampling and PPO all see the one rendering of `alignment.templates`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from alignment import adapters, callbacks, distributed, methods, trainers
from alignment.config import SCRATCH, trainer_arguments
from alignment.data import Demonstration, Records, to_demonstration, train_and_eval
from alignment.models import ModelSource
from alignment.positions import check_length
from alignment.registry import Registry
from alignment.stage import write_bad_rows
from alignment.tracking import Journal
from sft.config import DEFAULTS, SFTStageConfig
from sft.data import encode_demonstrations


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
    train_set: Records[Demonstration]
    eval_set: Records[Demonstration]
    train_rows: datasets.Dataset
    eval_rows: datasets.Dataset
    left_out: int
    """Training rows whose response alone is longer than `data.max_length`."""
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
        outcome = trainer.train()
        trainers.backend_event(journal, trainer)
        metrics = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if len(prepared.eval_rows):
            loss = _last_eval_loss(trainer)
            metrics |= {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50.0))}
        metrics |= methods.describe(trainer.model)
        ref = publish(config, prepared, trainer, metrics)
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


def prepare(config: SFTStageConfig) -> Prepared:
    """Read the data, find the model to start from, and encode the rows with its tokenizer; writes nothing."""
    seed = trainer_arguments(SFTConfig, DEFAULTS, config.training).get("seed", 42)
    distributed.on_main_process(lambda: methods.check(config.model, distributed.launched_zero_stage()))
    distributed.start_processes()
    registry = trainers.open_registry(config)
    train_set, eval_set = train_and_eval(config.data, to_demonstration, seed)
    texts = (message[part] for row in train_set.items for message in row.messages for part in ("role", "content"))
    start = trainers.start_model(config, registry, texts)
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    train_rows, left_out = encode_demonstrations(train_set.items, start.tokenizer, config.data.max_length)
    eval_rows, _ = encode_demonstrations(eval_set.items, start.tokenizer, config.data.max_length)
    no_eval = len(eval_rows) == 0
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    arguments = trainers.make_arguments(SFTConfig, config, defaults, max_length=None, no_eval=no_eval)
    return Prepared(seed, registry, start, train_set, eval_set, train_rows, eval_rows, left_out, arguments)


def build_trainer(config: SFTStageConfig, prepared: Prepared) -> SFTTrainer:
    """Load the model and wrap it in the trainer."""
    set_seed(prepared.seed)
    policy = methods.load_trainable(prepared.start.source, prepared.start.tokenizer, config.model)
    with trainers.refused_arguments():
        trainer = MethodTrainer(
            model=policy,
            args=prepared.arguments,
            train_dataset=prepared.train_rows,
            eval_dataset=prepared.eval_rows if len(prepared.eval_rows) else None,
            processing_class=prepared.start.tokenizer,
        )
    methods.attach(trainer, config.model)
    return trainer


def publish(config: SFTStageConfig, prepared: Prepared, trainer: SFTTrainer, metrics: Mapping[str, Any]) -> str:
    """Save the trained model, or the adapter alone, and publish it; returns its reference, on every process."""
    source = prepared.start.source
    base = methods.base_of(source, config.model)
    with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
        trainer.save_model(folder)  # every process takes part: ZeRO-3 gathers
        return distributed.on_main_process(
            lambda: (
                trainers.publish(
                    config,
                    prepared.registry,
                    _only_model(Path(folder), base),
                    stage="sft",
                    role="policy",
                    parents=[source.parent("init")],
                    base=base.as_base() if base else None,
                    data=[prepared.train_set.fingerprint],
                    metrics=metrics,
                    seed=prepared.seed,
                ).ref
            )
        )


def _last_eval_loss(trainer: SFTTrainer) -> float:
    """The held-out loss of the finished model; an evaluation at the last step need not be repeated."""
    state = trainer.state
    for row in state.log_history:
        if row["step"] == state.global_step and "eval_loss" in row:
            return float(row["eval_loss"])
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
    train_set, eval_set = prepared.train_set, prepared.eval_set
    if distributed.is_main_process():
        write_bad_rows(config.run_dir, [*train_set.bad, *eval_set.bad])
    journal.event(
        "data",
        train=train_set.fingerprint,
        eval=eval_set.fingerprint,
        bad=len(train_set.bad),
        too_long=prepared.left_out,
    )


def plan(config: SFTStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
    merged = trainer_arguments(SFTConfig, DEFAULTS, config.training)
    source = None if config.model.name.startswith(SCRATCH) else prepared.start.source
    rows = {
        "train_rows": len(prepared.train_rows),
        "eval_rows": len(prepared.eval_rows),
        "bad_rows": len(prepared.train_set.bad),
        "too_long": prepared.left_out,
    }
    return rows | trainers.batch_plan(merged, world_size, source, config.model)
