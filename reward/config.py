"""The reward stage's config. `training` takes every argument of `trl.RewardConfig` by its own name."""

from alignment.config import TrainerConfig


class RewardStageConfig(TrainerConfig):
    """Sections: name, model, data, training, registry, tracking."""


DEFAULTS = {
    "gradient_checkpointing": False,
    # One epoch: pairs share prompts, and a second pass overfits (InstructGPT section 3.5; TRL has 3, and 1e-4 below).
    "num_train_epochs": 1,
    "learning_rate": 9e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "eval_strategy": "no",
}
