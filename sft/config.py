"""The SFT stage's config. `training` takes every argument of `trl.SFTConfig` by its own name."""

from alignment.config.sections import TrainerConfig


class SFTStageConfig(TrainerConfig):
    """Sections: name, model, data, training, registry, tracking.

    `training.packing` lays the rows of a batch end to end, without attention between them (`sft.packing`). It is on
    where the model allows it; false pads rows of like length; true refuses a model that does not allow it.
    """


DEFAULTS = {
    # TRL's own default computes everything twice to save memory; a user who needs that asks for it.
    "gradient_checkpointing": False,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 2,
    "logging_steps": 10,
    # True replaces a NaN loss in the log by the last good one, and a broken run looks healthy.
    "logging_nan_inf_filter": False,
    "eval_strategy": "epoch",
}
