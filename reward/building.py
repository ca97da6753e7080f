"""Build the reward model's trainer and choose the layout of its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, set_seed

from alignment.config.arguments import PackingArguments
from alignment.distributed import one_reader, zero3
from alignment.distributed.processes import say
from alignment.errors import ConfigError
from alignment.models import trainable
from alignment.runs.journal import Recorder
from alignment.training import methods as training_methods
from alignment.training.arguments import refused_arguments
from reward.batches import Layout, QuestionCollator, choose_batch_layout
from reward.config import RewardStageConfig
from reward.prepare import PreparedReward, initial_model
from reward.trainer import QuestionTrainer

PADDED_ROWS = ("neftune_noise_alpha", "pad_to_multiple_of", "torch_compile")


def build_trainer(config: RewardStageConfig, prepared: PreparedReward, journal: Recorder) -> QuestionTrainer:
    """Load the model and wrap it in the trainer; the layout of batches is journaled."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    with one_reader.reading_once():
        model = trainable.apply_method(initial_model(config, prepared), config.model)
    layout, reason = layout_for(config, prepared, model)
    with refused_arguments():
        trainer = QuestionTrainer(
            model=model,
            args=prepared.arguments,
            settings=config.reward,
            collate=QuestionCollator(layout, tokenizer.pad_token_id, prepared.arguments.pad_to_multiple_of or 1),
            train=prepared.train,
            held_out=prepared.held_out,
            probe=prepared.probe,
            processing_class=tokenizer,
        )
    training_methods.attach(trainer, config.model)

    def check() -> None:
        failure = trainer.verify_layout()
        note_layout(config, prepared, reason or failure, journal)

    if zero3.is_partitioned(trainer.model) or trainer.is_fsdp_enabled:  # unsharded they may not fit the device
        trainer.add_callback(_OnTrainBegin(check))
    else:
        trainer.model.to(prepared.arguments.device)
        check()
    return trainer


class _OnTrainBegin(TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._call()


def note_layout(config: RewardStageConfig, prepared: PreparedReward, padded: str | None, journal: Recorder) -> None:
    """Journal the layout; padded rows are grouped by length unless the user sets another order.

    Args:
        padded: the reason why rows are padded; None: they are not.

    Raises:
        ConfigError: training.packing is true, and rows cannot be packed.
    """
    journal.event("batches", layout="padded" if padded else "packed", reason=padded)
    if padded is None:
        return
    if PackingArguments.of(config.training).packing:
        raise ConfigError(f"training.packing: {padded}; remove the key, and rows are padded")
    if "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    say(f"reward: each prompt is computed once for each completion: {padded}")


def layout_for(config: RewardStageConfig, prepared: PreparedReward, model: nn.Module) -> tuple[Layout, str | None]:
    """The layout of batches, and the reason if it is `padded`."""
    reasons = ["training.packing=false"] if PackingArguments.of(config.training).packing is False else []
    reasons += [f"training.{name} needs padded rows" for name in PADDED_ROWS if getattr(prepared.arguments, name)]
    longest = max(max(question.lengths) for question in (*prepared.train, *prepared.held_out))
    return ("padded", reasons[0]) if reasons else choose_batch_layout(model, longest)
