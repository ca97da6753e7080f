"""The trainer of a reward model, and how its batches are laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, set_seed

from alignment.distributed import zero3
from alignment.models import trainable
from alignment.models.selfcheck import say
from alignment.runs.journal import Journal
from alignment.training.arguments import refused_arguments
from reward.batches import Layout, QuestionCollator, choose_layout
from reward.config import RewardStageConfig
from reward.prepare import Prepared, untrained
from reward.trainer import QuestionTrainer

PADDED_ROWS = ("neftune_noise_alpha", "pad_to_multiple_of", "torch_compile")


def build_trainer(config: RewardStageConfig, prepared: Prepared, journal: Journal) -> QuestionTrainer:
    """Load the model and wrap it in the trainer; how its batches are laid out is written down."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    model = trainable.apply_method(untrained(config, prepared), config.model)
    layout, reason = lay_out(config, prepared, model)
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
    trainable.attach(trainer, config.model)

    def check() -> None:
        found = trainer.check()
        note_layout(config, prepared, reason or found, journal)

    if zero3.is_partitioned(trainer.model):  # only its engine can put the weights together
        trainer.add_callback(_AtTheStart(check))
    else:
        trainer.model.to(prepared.arguments.device)
        check()
    return trainer


class _AtTheStart(TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._call()


def note_layout(config: RewardStageConfig, prepared: Prepared, padded: str | None, journal: Journal) -> None:
    """Write the layout down; padded rows of like length come together unless the user wants another order.

    Args:
        padded: why rows are padded; None: they are not.
    """
    journal.event("batches", layout="padded" if padded else "shared_prefix", reason=padded)
    if padded is None:
        return
    if "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    say(f"reward: each prompt is computed once for each completion: {padded}")


def lay_out(config: RewardStageConfig, prepared: Prepared, model: nn.Module) -> tuple[Layout, str | None]:
    """How batches are laid out, and why their rows are padded where they are."""
    against = ["reward.shared_prefix=off"] if config.reward.shared_prefix == "off" else []
    against += [f"training.{name} is for padded rows" for name in PADDED_ROWS if getattr(prepared.arguments, name)]
    longest = max(max(question.lengths) for question in (*prepared.train, *prepared.held_out))
    return ("padded", against[0]) if against else choose_layout(model, longest)
