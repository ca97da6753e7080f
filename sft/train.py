"""Supervised fine-tuning: demonstrations in, a policy in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m sft configs/sft/demo.yaml

The loss is on the assistant's tokens through EOS. TRL's SFTTrainer, made lean by `sft.trainer`, trains; the rows reach
it as token ids and labels, so that training, sampling and PPO all see the one rendering of
`alignment.templates.rendering`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from trl import SFTConfig

from alignment.config.arguments import BestModelArguments, CheckpointArguments
from alignment.config.sections import SCRATCH
from alignment.distributed import heartbeat, processes
from alignment.errors import ConfigError
from alignment.models import adapters, trainable
from alignment.models.adapters import without_adapter
from alignment.models.classifiers import why_no_scores
from alignment.models.packing import why_not_packed
from alignment.models.selfcheck import say
from alignment.models.sources import ModelSource, find_model
from alignment.runs import resume
from alignment.runs.journal import Journal
from alignment.runs.run import Run
from alignment.seeds import random_state, set_random_state
from alignment.training import callbacks, opening, publishing, start_model
from alignment.training.arguments import refused_arguments
from alignment.training.best_model import BestModel, finished_model, held_out_halves, keep_best, published_step
from alignment.training.data_check import DATA_WATCHED, note_findings, write_report
from alignment.training.stage import write_bad_rows
from sft.config import SFTStageConfig
from sft.data import IGNORED, row_groups
from sft.packing import PackingCollator, pack_attention
from sft.prepare import Prepared, prepare
from sft.samples import write_samples
from sft.selfcheck import SelfCheck
from sft.trainer import SFTTrainer


@dataclass(frozen=True)
class Halves:
    """Held-out rows that are evaluated in training, where they choose the best model, and those that report on it."""

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
    begun = resume.begin(config.run_dir)
    if published := publishing.published_before(config, publishing.open_registry(config), begun.run):
        return published
    prepared = prepare(config, begun.run)
    start = start_model.publish_base(config, prepared.registry, prepared.start, prepared.seed, begun.run)
    publishing.pin_models(config, prepared.registry, begun.run)
    prepared = replace(prepared, start=start)
    halves = Halves.of(config, prepared.data.eval)
    trainer = build_trainer(config, replace(prepared, data=replace(prepared.data, eval=halves.evaluated)))
    shown, tokenizer = prepared.data.shown, prepared.start.tokenizer
    saving = CheckpointArguments.of(config.training)
    with opening.open_journal(config, "sft", begun) as journal:
        fingerprints = prepared.data.fingerprints
        checkpoints = opening.open_checkpoints(config, begun, journal, keep=saving.save_total_limit, data=fingerprints)
        _note_data(journal, config, prepared)
        callbacks.attach(trainer, journal, f"sft {config.name}", BestModelArguments.of(config.training).wanted)
        journal.event("method", method=config.model.method, **trainable.describe(trainer.model))
        journal.event("batches", packed=_packs(trainer))
        best = keep_best(trainer, config.training, config.run_dir, journal, lambda: trainer.loss_on(halves.reported))
        if begun.checkpoint is None and not config.model.name.startswith(SCRATCH):
            write_samples(journal, 0, config, prepared.start.source, tokenizer, shown)
        trainer.use_checkpoints(checkpoints, saving.save_steps, begun.checkpoint, best, journal)
        trainer.add_callback(MeasureStart(trainer, journal, halves))
        outcome = trainer.train_on()
        opening.backend_event(journal, trainer)
        step = published_step(trainer, best)
        metrics = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if best is not None:
            metrics["best_step"] = step
        if len(prepared.data.eval):
            metrics |= _held_out(trainer, best, step, prepared.data.eval, halves) | _start(trainer, best, halves)
            if best is not None:  # the figure of the published model, in place of the one that chose it
                journal.log(step, {"eval/loss": metrics["eval_loss"]})
        metrics |= trainable.describe(trainer.model)
        heartbeat.enter("saving and publishing the model", patient=True)
        with finished_model(trainer, best, config.run_dir) as folder:
            ref = publish(config, prepared, folder, metrics, begun.run, journal)
        write_samples(journal, step, config, find_model(ref, prepared.registry, role="policy"), tokenizer, shown)
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


class MeasureStart(TrainerCallback):
    """Held-out figures of the model as it comes, at step 0. Not before training begins: DeepSpeed has no engine then.

    The random states are put back, since a data loader draws from them, and a run that is resumed has the figures from
    its checkpoint: what is trained is the same with them and without.
    """

    def __init__(self, trainer: SFTTrainer, journal: Journal, halves: Halves) -> None:
        self._trainer, self._journal, self._halves = trainer, journal, halves

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        evaluated, reported = self._halves.evaluated, self._halves.reported
        if state.global_step or not len(evaluated):
            return
        before = random_state()
        loss, accuracy = self._trainer.figures_on(evaluated)
        apart = reported is not evaluated
        losses = {"evaluated": loss, "reported": self._trainer.loss_on(reported) if apart else loss}
        self._trainer.start_losses = losses
        set_random_state(before)
        self._journal.log(0, {"eval/loss": loss, "eval/mean_token_accuracy": accuracy})


def build_trainer(config: SFTStageConfig, prepared: Prepared) -> SFTTrainer:
    """Load the model and wrap it in the trainer."""
    heartbeat.enter("loading the model", patient=True)
    set_seed(prepared.seed)
    policy = trainable.load_trainable(prepared.start.source, prepared.start.tokenizer, config.model)
    collator = _packing(config, prepared, policy)
    with refused_arguments():
        trainer = SFTTrainer(
            model=policy,
            args=prepared.arguments,
            train_dataset=prepared.data.train,
            eval_dataset=prepared.data.eval if len(prepared.data.eval) else None,
            data_collator=collator,
            processing_class=prepared.start.tokenizer,
            penalty=trainable.regularisation,
        )
    trainable.attach(trainer, config.model)
    if reason := why_no_scores(without_adapter(policy).config, config.model.trust_remote_code):
        say(f"sft: python -m reward will not start from this model: {reason}")
    SelfCheck(trainer, asked=bool(config.training.get("packing"))).attach()
    if not _packs(trainer) and "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    return trainer


def _packs(trainer: SFTTrainer) -> bool:
    return isinstance(trainer.data_collator, PackingCollator) and trainer.data_collator.packed


def _packing(config: SFTStageConfig, prepared: Prepared, policy: nn.Module) -> PackingCollator | None:
    """Pack the rows where that can be done, unless `training.packing` is false; if it is true, say why it cannot.

    Raises:
        ConfigError: packing is asked for and something stands against it.
    """
    asked = config.training.get("packing")
    if asked is False:
        return None
    model = without_adapter(policy)
    reason = why_not_packed(model, config.data.max_length)
    if balances_router(model, prepared.arguments):
        reason = (
            "its router's load-balancing loss needs padded rows (training.router_aux_loss_coef=0 trains without it)"
        )
    for name in ("neftune_noise_alpha", "pad_to_multiple_of", "torch_compile"):
        if getattr(prepared.arguments, name):
            reason = f"training.{name} is for padded rows"
    if reason is None:
        return pack_attention(model, prepared.start.tokenizer.pad_token_id)
    if asked:
        raise ConfigError(f"training.packing: rows of {type(model).__name__} cannot be packed: {reason}; leave it out")
    return None


def balances_router(model: PreTrainedModel, arguments: SFTConfig) -> bool:
    """Whether the loss has a term that spreads tokens over experts: a mixture of experts has, unless it is set to 0."""
    text_config, asked = model.config.get_text_config(), arguments.router_aux_loss_coef
    coefficient = getattr(text_config, "router_aux_loss_coef", 0.0) if asked is None else asked
    return hasattr(text_config, "output_router_logits") and bool(coefficient)


def publish(
    config: SFTStageConfig, prepared: Prepared, folder: Path, metrics: Mapping[str, Any], run: Run, journal: Journal
) -> str:
    """Publish a saved model, or an adapter alone; returns its reference, on every process."""
    source = prepared.start.source
    base = trainable.base_of(source, config.model)
    return processes.on_main_process(
        lambda: (
            publishing.publish(
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
                run=run,
                journal=journal,
            ).ref
        )
    )


def _held_out(
    trainer: SFTTrainer, best: BestModel | None, step: int, rows: datasets.Dataset, halves: Halves
) -> dict[str, Any]:
    """Loss and perplexity of the published model, of `step`, and the rows that they are of."""
    metrics: dict[str, Any] = {}
    if best is None:
        loss = _eval_loss(trainer, step)
    elif best.is_chosen:
        assert best.reported is not None
        metrics = {"best_of": best.evaluations, "choosing_rows": len(rows) - len(halves.reported)}
        loss, rows = best.reported, halves.reported
    else:  # one evaluation, of the last step, or none that gave a number: nothing was chosen
        loss = trainer.loss_on(rows)
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 50.0)), "eval_rows": len(rows)} | metrics


def _start(trainer: SFTTrainer, best: BestModel | None, halves: Halves) -> dict[str, float]:
    """The loss before the first step on the rows that `eval_loss` is of."""
    found = trainer.start_losses
    if not found:  # resumed from a checkpoint of before there were any
        return {}
    if best is None or best.is_chosen:
        return {"start_eval_loss": found["evaluated" if best is None else "reported"]}
    tokens = {
        name: sum(label != IGNORED for labels in rows["labels"] for label in labels[1:])
        for name, rows in (("evaluated", halves.evaluated), ("reported", halves.reported))
    }
    if halves.reported is halves.evaluated:
        return {"start_eval_loss": found["evaluated"]}
    return {"start_eval_loss": sum(found[name] * tokens[name] for name in tokens) / sum(tokens.values())}


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
    if processes.is_main_process():
        write_bad_rows(config.run_dir, data.bad, data.notes)
        write_report(config.run_dir, prepared.report)
    journal.event("data", **data.fingerprints, bad=len(data.bad), too_long=data.left_out, notes=data.notes)
    journal.event("data_check", **prepared.report.summary())
    journal.watching([*DATA_WATCHED, callbacks.OVERFITTING])
    note_findings(journal, prepared.report)
