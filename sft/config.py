"""The SFT stage's config. `training` takes every argument of `trl.SFTConfig` by its own name."""

from __future__ import annotations

from typing import ClassVar

from alignment.config.arguments import TrainerSection
from alignment.config.sections import TrainerConfig

LOGITS_AT_ONCE = 2**25
"""Logits of one block of the loss: 128 MiB of float32."""
DEFAULTS = {
    # TRL's default recomputes activations to save memory; users who need that can turn it on.
    "gradient_checkpointing": False,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 2,
    "logging_steps": 10,
    # True replaces a NaN loss in the log by the last finite one, which hides a diverged run.
    "logging_nan_inf_filter": False,
    "eval_strategy": "epoch",
}


class SFTStageConfig(TrainerConfig):
    """Sections: name, model, data, training, registry, tracking."""

    trainer: ClassVar[TrainerSection] = TrainerSection("SFTConfig", DEFAULTS)
