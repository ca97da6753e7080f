"""Preflight check: `python -m reward CONFIG --overfit 32`. A model that cannot overfit a few pairs cannot learn.

The config is trained on its first pairs at a constant learning rate, until every pair is ordered correctly. Nothing is
published, and no run is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from alignment.config.arguments import BestModelArguments
from alignment.distributed import processes
from alignment.errors import ConfigError, UserError
from alignment.runs.journal import Journal
from alignment.training import callbacks
from reward.building import build_trainer
from reward.config import RewardStageConfig
from reward.prepare import make_arguments, prepare
from reward.questions import JudgedPair, Question

STEPS, EVERY = 400, 10


class PreflightError(UserError):
    """The model could not overfit the pairs."""


class OverfitSet(NamedTuple):
    """Questions with only the pairs to overfit."""

    questions: list[Question]
    pairs: int
    contradictions: int
    """Number of pairs that were skipped, because an earlier one has the opposite preference."""


def overfit(config: RewardStageConfig, count: int) -> str:
    """Overfit `count` pairs; returns the line to print.

    Raises:
        PreflightError: they are not all ordered correctly after 400 steps.
    """
    if config.reward.objective != "pairs":
        raise ConfigError(f"--overfit needs reward.objective=pairs, found reward.objective={config.reward.objective}")
    folder = processes.on_main_process(lambda: tempfile.mkdtemp(prefix="overfit-"))
    config = _bare(config, folder)
    try:
        prepared = prepare(config)
        chosen = first_pairs(prepared.train, count)
        if not chosen.pairs:
            raise PreflightError("--overfit: each usable pair is a tie, so there is nothing to learn; rate more pairs")
        arguments = make_arguments(config, no_eval=False)
        prepared = replace(prepared, train=chosen.questions, held_out=chosen.questions, arguments=arguments)
        trainer = build_trainer(config, prepared, Journal(config.run_dir, enabled=False))
        callbacks.attach(trainer, Journal(config.run_dir, enabled=False), f"overfit {config.name}")
        watch = _UntilAllRight()
        trainer.add_callback(watch)
        trainer.train()
    finally:
        processes.on_main_process(lambda: shutil.rmtree(folder, ignore_errors=True))
    if watch.accuracy < 1:
        raise _why_not(config, watch.accuracy, chosen)
    skipped = f" ({chosen.contradictions} that contradict them skipped)" if chosen.contradictions else ""
    return f"preflight: {chosen.pairs} pairs{skipped} overfitted in {trainer.state.global_step} steps; go ahead"


def first_pairs(questions: Sequence[Question], count: int) -> OverfitSet:
    """The first pairs that are not ties and contradict no earlier one."""
    chosen: list[Question] = []
    remaining, contradictions = count, 0
    for question in questions:
        sides: dict[tuple[int, int, int], bool] = {}
        pairs: list[JudgedPair] = []
        for pair in question.pairs:
            key = (pair.head, min(pair.first, pair.second), max(pair.first, pair.second))
            lower_is_better = (pair.target > 0.5) == (pair.first < pair.second)
            if pair.target == 0.5 or len(pairs) == remaining:
                continue
            if sides.setdefault(key, lower_is_better) == lower_is_better:
                pairs.append(pair)
            else:
                contradictions += 1
        remaining -= len(pairs)
        if pairs:
            chosen.append(replace(question, pairs=tuple(pairs)))
        if not remaining:
            break
    return OverfitSet(chosen, count - remaining, contradictions)


def _bare(config: RewardStageConfig, folder: str) -> RewardStageConfig:
    """The same config in a temporary folder, without its schedule and with regular evaluations."""
    dropped = {field.name for field in fields(BestModelArguments)} | {"lr_scheduler_kwargs", "eval_on_start"}
    training = {name: value for name, value in config.of_member().training.items() if name not in dropped} | {
        "max_steps": STEPS,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "steps",
        "eval_steps": EVERY,
        "logging_strategy": "no",
    }
    tracking = config.tracking.model_copy(update={"runs": folder, "wandb": "disabled"})
    return config.model_copy(update={"training": training, "tracking": tracking})


class _UntilAllRight(TrainerCallback):
    """Stops when an evaluation has accuracy 1, which is the same on all ranks."""

    def __init__(self) -> None:
        self.accuracy = 0.0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.accuracy = float(state.log_history[-1]["eval_accuracy"])
        control.should_training_stop |= self.accuracy == 1


def _why_not(config: RewardStageConfig, accuracy: float, chosen: OverfitSet) -> PreflightError:
    rate = config.training.get("learning_rate", "the default")
    return PreflightError(
        f"--overfit: {accuracy:.0%} of {chosen.pairs} pairs are ordered correctly after {STEPS} steps; usually "
        f"training.learning_rate ({rate}) is too low or far too high, data.max_length={config.data.max_length} or the "
        "template removes the difference between the answers, model.method trains too few weights, or "
        "the preferences between the answers to a prompt are cyclic"
    )
