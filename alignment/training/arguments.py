"""TRL's arguments for a run, and the plan of its batches and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from transformers.training_args import TrainingArguments

from alignment.config.arguments import BestModelArguments, CheckpointArguments, trainer_arguments
from alignment.config.sections import ADAPTERS, TrainerConfig
from alignment.distributed import processes
from alignment.distributed.launch_files import check_against_config
from alignment.errors import ConfigError, UserError
from alignment.memory.plan import DDP, Strategy, Workload, estimate, in_gb
from alignment.memory.shapes import UnknownShape
from alignment.models.policies import num_parameters
from alignment.models.sources import ModelSource

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


def make_arguments(
    cls: type[ArgumentsT], config: TrainerConfig, defaults: Mapping[str, Any], *, no_eval: bool, **owned: Any
) -> ArgumentsT:
    """Build a TRL config from the `training` section over a stage's defaults, with what the suite owns on top.

    `no_eval` says that nothing is held out, so that there is nothing to evaluate on in between.
    """
    merged = trainer_arguments(cls, defaults, config.training)
    trains_weights = config.model.method not in ADAPTERS  # an adapter is float32 beside weights of any type
    if config.model.dtype == "bfloat16" and trains_weights and not processes.under_deepspeed():
        raise ConfigError(
            "model.dtype=bfloat16 would train rounded weights, on which small updates are lost; set training.bf16=true "
            "for bfloat16 arithmetic on float32 weights, or launch with a DeepSpeed config, which keeps float32 copies"
        )
    on_cpu = processes.on_cpu()
    merged.setdefault("bf16", processes.bf16_by_default())
    if no_eval:
        merged["eval_strategy"] = "no"
    _take_out_best_model(merged, no_eval)
    processes.start_processes()
    with refused_arguments():
        arguments = cls(
            **merged,
            **owned,
            output_dir=str(config.run_dir),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=on_cpu,
            remove_unused_columns=False,
        )
    check_against_config(
        bf16=arguments.bf16,
        accumulation=arguments.gradient_accumulation_steps,
        max_grad_norm=arguments.max_grad_norm,
    )
    return arguments


def _take_out_best_model(merged: dict[str, Any], no_eval: bool) -> None:
    """`alignment.training.best_model` reads these from the config; transformers would ask for checkpoints."""
    best = BestModelArguments.of(merged)
    if best.early_stopping_patience is None and best.early_stopping_threshold:
        raise ConfigError(
            "training.early_stopping_threshold is only for training.early_stopping_patience; set that too"
        )
    if best.early_stopping_patience is not None and not best.wanted:
        raise ConfigError(
            "training.early_stopping_patience stops after the best model, which is then published; "
            "take training.load_best_model_at_end=false out"
        )
    if best.wanted:
        key = "load_best_model_at_end" if best.early_stopping_patience is None else "early_stopping_patience"
        if no_eval:
            raise ConfigError(f"training.{key} needs held-out rows; set data.eval or data.eval_share")
        if merged.get("eval_strategy", "no") == "no":
            raise ConfigError(
                f"training.{key} needs evaluations in between; set training.eval_strategy=epoch, or =steps with "
                "training.eval_steps"
            )
    for field in (*fields(BestModelArguments), *fields(CheckpointArguments)):
        merged.pop(field.name, None)


@contextmanager
def refused_arguments() -> Iterator[None]:
    """What a TRL config or trainer says against its arguments, as one line about the `training` section."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def batch_plan(merged: Mapping[str, Any], world_size: int) -> dict[str, int]:
    """What is global, per device and accumulated.

    Args:
        merged: trainer arguments with the stage's defaults underneath.
    """
    per_device = int(merged.get("per_device_train_batch_size", 8))
    accumulated = int(merged.get("gradient_accumulation_steps", 1))
    return {
        "processes": world_size,
        "per_device_batch": per_device,
        "accumulated": accumulated,
        "global_batch": per_device * accumulated * world_size,
    }


def memory_plan(make: Callable[[], Workload], sources: Mapping[str, ModelSource], world_size: int) -> dict[str, Any]:
    """Parameters, and the memory of one process as it was launched (`alignment.memory.plan`), for `--dry-run`.

    Args:
        make: the run; it may say that it does not know the architecture.
        sources: models whose files are looked at.

    Raises:
        ModelError: a damaged file.
    """
    counts = {
        role: num_parameters(source.config_path if source.base else source.path) for role, source in sources.items()
    }
    try:
        work = make()
    except UnknownShape as error:
        return {"parameters": counts, "memory_gb_per_process": str(error)}
    stage = processes.launched_zero_stage()
    strategy = Strategy(f"zero{stage}", stage, processes.launched_offload()) if stage else DDP
    found = estimate(work, strategy, world_size, on_gpu=not processes.on_cpu())
    return {
        "parameters": counts,
        "trained_parameters": sum(model.trained for model in work.models),
        "memory_gb_per_process": in_gb(found),
    }
