"""The memory of one process of a reward run, for `alignment plan` and `--dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignment.config.arguments import PackingArguments, trainer_arguments
from alignment.memory import kept
from alignment.memory.shapes import FoundConfig, ShapeFinder, sized
from alignment.memory.workload import Pass, Workload
from reward.config import DEFAULTS, RewardStageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

COMPLETIONS = 2
"""Completions of a question: pairs. A ranking has proportionally more tokens."""


def workload(config: RewardStageConfig, shape: FoundConfig | PreTrainedConfig, bf16: bool) -> Workload:
    """The workload of pairs whose sides have `data.max_length` tokens and share almost nothing.

    Args:
        bf16: default of `training.bf16`.
    """
    merged = arguments(config)
    model = sized(shape, config.model, scalar=True)
    tokens = int(merged.get("per_device_train_batch_size", 8)) * COMPLETIONS * config.data.max_length
    repeated = int(merged.get("gradient_accumulation_steps", 1)) > 1
    joined = 0 if PackingArguments.of(config.training).packing is False else config.data.max_length
    return Workload(
        models=(model,),
        passes=(Pass(model, tokens, 0, repeated, joined),),
        bf16=bool(merged.get("bf16", bf16)) or config.model.dtype == "bfloat16",
        checkpointed=bool(merged["gradient_checkpointing"]),
    )


def arguments(config: RewardStageConfig) -> dict[str, Any]:
    """The trainer's arguments over the stage's defaults."""
    return trainer_arguments(kept.trl_arguments("RewardConfig"), DEFAULTS, config.of_member().training)


def workloads(
    config: RewardStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """The workload for `alignment plan`."""
    model = config.model
    shape = finder.find("model.name", model.name, trust=model.trust_remote_code)
    return {model.method: workload(config, shape, bf16=True)}
