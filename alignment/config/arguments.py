"""`training` of SFT and reward: TRL's own argument names, checked, with the suite's defaults underneath."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Self

from alignment.errors import ConfigError

OWNED_ARGUMENTS = {
    "output_dir": "the run folder is <tracking.runs>/<name>, set by `name` and `tracking.runs`",
    "run_name": "use `name`",
    "report_to": "use `tracking.wandb`",
    "project": "set WANDB_PROJECT in the environment",
    "push_to_hub": "models are published to the registry",
    "hub_model_id": "models are published to the registry",
    "hub_token": "set HF_TOKEN in the environment",
    "use_cpu": "the GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "disable_tqdm": "progress is the suite's own line",
    "deepspeed": "choose an accelerate config: accelerate launch --config_file configs/accelerate/zero2.yaml",
    "fsdp": "choose an accelerate config: accelerate launch --config_file configs/accelerate/fsdp2.yaml",
    "fsdp_config": "choose an accelerate config",
    "accelerator_config": "choose an accelerate config",
    "model_init_kwargs": "use the `model` section",
    "trust_remote_code": "use `model.trust_remote_code`",
    "chat_template_path": "use `model.template`",
    "eos_token": "use `model.eos_token`",
    "pad_token": "use `model.pad_token`",
    "max_length": "use `data.max_length`",
    "resume_from_checkpoint": "pass --resume auto on the command line",
    "save_strategy": "checkpoints are saved every training.save_steps steps",
    "save_only_model": "a checkpoint holds all that a run needs to go on",
    "remove_unused_columns": "the columns are the suite's own",
    "skip_memory_metrics": "not supported by the journal",
    "dataset_text_field": "use `data.columns`",
    "dataset_kwargs": "the rows reach the trainer as token ids",
    "truncation_mode": "use `data.max_length`; a long prompt is trimmed as a chat",
    "completion_only_loss": "the loss is on the assistant's tokens",
    "assistant_only_loss": "the loss is on the assistant's tokens",
    "padding_free": "use `training.packing`",
    "eval_packing": "held-out rows are packed where the others are",
    "packing_strategy": "rows are packed whole and never attend to each other, as they would under `wrapped`",
    "use_liger_kernel": "the loss is in blocks already, without a kernel of another package",
    "liger_kernel_config": "the loss is in blocks already, without a kernel of another package",
}


@dataclasses.dataclass(frozen=True)
class BestModelArguments:
    """What `training` takes of transformers beside the arguments of a config class."""

    load_best_model_at_end: bool | None = None
    """Publish the model of the best evaluation (`metric_for_best_model`, else the lowest loss) in place of the last
    one. None: where `early_stopping_patience` is set."""
    early_stopping_patience: int | None = None
    """Stop after so many evaluations in a row that are no better than the best one before."""
    early_stopping_threshold: float = 0.0
    """By how much an evaluation must beat the best one before it to count as better."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
        return cls(**{field.name: training[field.name] for field in dataclasses.fields(cls) if field.name in training})

    @property
    def wanted(self) -> bool:
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end


@dataclasses.dataclass(frozen=True)
class CheckpointArguments:
    """What `training` takes for checkpoints, by transformers' names; `alignment.runs.checkpoint` saves them."""

    save_steps: int = 500
    """Steps between two checkpoints; 0 saves none."""
    save_total_limit: int = 2
    """How many of the newest are kept, 2 or more: one may turn out to be damaged."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
        return cls(**{field.name: training[field.name] for field in dataclasses.fields(cls) if field.name in training})


@dataclasses.dataclass(frozen=True)
class PackingArguments:
    """What `training` takes for the layout of batches, in all stages."""

    packing: bool | None = None
    """Rows without padding, a prompt computed once for its answers; no row attends to another. None: where the model
    can, else a line says why not. True: a model that cannot is refused."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Those in a `training` section."""
        return cls(training.get("packing"))


ABOUT = {
    "learning_rate": "The peak learning rate. An adapter method brings its own default (docs/guides/methods.md).",
    "lr_scheduler_type": "How the learning rate falls after the warm-up: `linear`, `cosine`, `constant`, ...",
    "warmup_steps": "Steps in which the learning rate rises from 0; below 1 a fraction of all steps.",
    "num_train_epochs": "Passes over the training rows. `max_steps` overrides it.",
    "logging_steps": "Optimizer steps between two lines of `metrics.jsonl`.",
    "logging_nan_inf_filter": "TRL's default replaces a NaN loss in the log by the last good one; here it is shown.",
    "eval_strategy": "When the held-out rows are evaluated: `no`, `epoch`, or `steps` with `eval_steps`.",
    "gradient_checkpointing": "Compute activations again in the backward pass: less memory, more time.",
}
"""What the arguments mean for which a stage has a default of its own."""


SHARED_ARGUMENTS = (BestModelArguments, CheckpointArguments, PackingArguments)


@dataclasses.dataclass(frozen=True)
class TrainerSection:
    """What the `training` section of a stage takes: the arguments of a TRL config class, and some beside them."""

    trl_class: str
    """Its name in `trl`, which is imported only when it is needed."""
    defaults: Mapping[str, Any]
    """The stage's own defaults; all others are TRL's."""
    beside: tuple[type, ...] = SHARED_ARGUMENTS
    """Dataclasses of arguments that the class does not have, or that the suite reads in its place."""

    def trl_fields(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of each argument that TRL's class takes and the suite does not own; imports TRL."""
        import trl

        cls = getattr(trl, self.trl_class)
        hints = typing.get_type_hints(cls)
        return {
            field.name: (hints[field.name], _default(field))
            for field in dataclasses.fields(cls)
            if field.init and field.name not in OWNED_ARGUMENTS
        }


_SIMPLE: dict[str, Any] = {
    "bool": bool, "int": int, "float": (int, float), "str": str, "NoneType": types.NoneType, "dict": dict, "list": list,
}  # fmt: skip


class ArgumentType(typing.NamedTuple):
    """What a value of an argument may be."""

    names: list[str] | None
    """Names in `_SIMPLE`; None: an unusual type, which is left to the class."""
    text: str
    """The type as errors write it."""

    @classmethod
    def of(cls, hint: Any) -> ArgumentType:
        """Read a type hint."""
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        names = [str(getattr(option, "__name__", option)) for option in options]
        text = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
        plain = all(isinstance(option, type) and name in _SIMPLE for name, option in zip(names, options, strict=True))
        return cls(names if plain else None, text)

    def fits(self, value: Any) -> bool:
        """Whether a YAML value can stand where a dataclass field has this type."""
        if self.names is None:
            return True
        if isinstance(value, bool):
            return "bool" in self.names
        return any(isinstance(value, _SIMPLE[name]) for name in self.names)


@dataclasses.dataclass(frozen=True)
class ArgumentTypes:
    """What the arguments of a config class may be, without the class, which may take seconds to import."""

    class_name: str
    types: dict[str, ArgumentType]

    @classmethod
    def of(cls, config_class: type) -> Self:
        """Read the fields of a dataclass."""
        hints = typing.get_type_hints(config_class)
        fields = dataclasses.fields(config_class)
        return cls(config_class.__name__, {f.name: ArgumentType.of(hints[f.name]) for f in fields if f.init})


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


# The least that makes sense, where the trainers would stop with a traceback, or train nothing and say nothing.
LEAST = {
    "seed": 0,
    "data_seed": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "early_stopping_patience": 1,
    "early_stopping_threshold": 0,
    "members": 1,
    "save_steps": 0,
    "save_total_limit": 2,
}


def trainer_arguments(
    cls: type | ArgumentTypes,
    defaults: Mapping[str, Any],
    training: Mapping[str, Any],
    owned: Mapping[str, str] = OWNED_ARGUMENTS,
    section: str = "training",
    beside: Sequence[type] = (),
) -> dict[str, Any]:
    """Merge a config's `training` section over a stage's defaults, checked against the fields of a TRL config class;
    those of a trainer take `SHARED_ARGUMENTS` too.

    Args:
        cls: the dataclass, for example `trl.SFTConfig`, or what its arguments may be.
        defaults: the stage's own defaults; each must be a field of `cls`.
        training: the user's values.
        owned: arguments that the suite sets itself, with what to write instead.
        section: where the user wrote them, for errors.
        beside: dataclasses of a stage's own, whose fields are taken too.

    Raises:
        ConfigError: an unknown argument (with the nearest one), one that the suite owns, or a value of another type.
    """
    known = cls if isinstance(cls, ArgumentTypes) else ArgumentTypes.of(cls)
    more = (*SHARED_ARGUMENTS, *beside) if "load_best_model_at_end" in known.types else beside
    fields = dict(known.types)
    for each in more:
        fields |= ArgumentTypes.of(each).types
    assert set(defaults) <= set(fields), sorted(set(defaults) - set(fields))
    for key, value in training.items():
        if key in owned:
            raise ConfigError(f"{section}.{key} is set by the suite: {owned[key]}")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean '{section}.{near[0]}'?" if near else ""
            raise ConfigError(f"unknown key '{section}.{key}': {known.class_name} has no such argument{hint}")
        if not fields[key].fits(value):
            raise ConfigError(f"{section}.{key}: expected {fields[key].text}, found {value!r}")
        if key in LEAST and value is not None and not value >= LEAST[key]:  # so that NaN fails too
            raise ConfigError(f"{section}.{key}: expected {LEAST[key]} or more, found {value!r}")
        if key.endswith("seed") and value is not None and value >= 2**32:
            raise ConfigError(f"{section}.{key}: expected less than 2**32, found {value!r}")
        if (key == "num_train_epochs" and value <= 0) or (key == "max_steps" and value < 1 and value != -1):
            raise ConfigError(f"{section}.{key}: expected more than 0, found {value!r}: nothing would be trained")
    return {**defaults, **training}
