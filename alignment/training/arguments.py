"""TRL's arguments for a run, and the plan of its batches and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from alignment.config.arguments import SHARED_ARGUMENTS, BestModelArguments, trainer_arguments
from alignment.config.sections import ADAPTERS, TrainerConfig
from alignment.distributed import processes
from alignment.distributed.launch_files import check_against_config
from alignment.errors import ConfigError, UserError
from alignment.memory.plan import DDP, FSDP2, Buckets, Strategy, estimate, in_gb
from alignment.memory.shapes import UnknownShape
from alignment.memory.workload import Workload
from alignment.models.sources import ModelSource, num_parameters

if TYPE_CHECKING:
    from transformers.training_args import TrainingArguments

FSDP_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers whose state is sharded as the weights are, which checkpoints under FSDP2 rely on."""
ArgumentsT = TypeVar("ArgumentsT", bound="TrainingArguments")


def make_arguments(
    cls: type[ArgumentsT], config: TrainerConfig, defaults: Mapping[str, Any], *, no_eval: bool, **owned: Any
) -> ArgumentsT:
    """Build a TRL config from the `training` section over a stage's defaults.

    Args:
        no_eval: whether there are no held-out rows, so that no evaluation can run during training.
        owned: arguments that the suite sets itself.
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
    check_best_model_arguments(merged, no_eval)
    for field in itertools.chain.from_iterable(map(fields, SHARED_ARGUMENTS)):  # TRL's class would act on its own
        merged.pop(field.name, None)
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
    if processes.under_fsdp():
        check_under_fsdp(arguments)
    check_against_config(
        bf16=arguments.bf16,
        accumulation=arguments.gradient_accumulation_steps,
        max_grad_norm=arguments.max_grad_norm,
    )
    return arguments


def check_under_fsdp(arguments: TrainingArguments) -> None:
    """Refuse arguments that do not work on sharded weights."""
    optimizer = arguments.optim.value
    if optimizer not in FSDP_OPTIMIZERS:
        raise ConfigError(
            f"training.optim={optimizer} is not supported under FSDP2; choose one of {', '.join(FSDP_OPTIMIZERS)}, or "
            "launch with configs/accelerate/zero3.yaml"
        )
    for name in ("fp16", "torch_compile"):
        if getattr(arguments, name):
            raise ConfigError(f"training.{name} is not supported under FSDP2; remove it")


def check_best_model_arguments(merged: Mapping[str, Any], no_eval: bool) -> None:
    """Check the arguments that `alignment.training.best_model` handles in place of transformers."""
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


@contextmanager
def refused_arguments() -> Iterator[None]:
    """Turn an error of a TRL config or trainer about its arguments into one line about the `training` section."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def batch_plan(merged: Mapping[str, Any], world_size: int) -> dict[str, int]:
    """Batch sizes: global, per device, and accumulated.

    Args:
        merged: trainer arguments over the stage's defaults.
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
    """Parameter counts, and the memory of one process of this launch (`alignment.memory.plan`), for `--dry-run`.

    Args:
        make: builds the workload; it may raise UnknownShape.
        sources: models whose parameters are counted, by role.

    Raises:
        ModelError: a file is damaged.
    """
    counts = {
        role: num_parameters(source.config_path if source.base else source.path) for role, source in sources.items()
    }
    try:
        work = make()
    except UnknownShape as error:
        return {"parameters": counts, "memory_gb_per_process": str(error)}
    stage = processes.launched_zero_stage()
    # PPO's loop has several models, so that nothing fills in "auto" there.
    sizes = processes.launched_buckets(None if work.own_loop else work.models[0].shape.hidden_size)
    strategy = Strategy(f"zero{stage}", stage, processes.launched_offload(), Buckets(**sizes)) if stage else DDP
    if processes.under_fsdp():
        strategy = FSDP2
    memory = estimate(work, strategy, world_size, on_gpu=not processes.on_cpu())
    return {
        "parameters": counts,
        "trained_parameters": sum(model.trained for model in work.models),
        "memory_gb_per_process": in_gb(memory),
    }
