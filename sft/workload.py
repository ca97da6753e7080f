"""The memory of one process of an SFT run, for `alignment plan` and `--dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignment.config.arguments import trainer_arguments
from alignment.memory import kept
from alignment.memory.shapes import FoundConfig, ShapeFinder, sized
from alignment.memory.workload import Pass, Workload
from sft.config import DEFAULTS, LOGITS_AT_ONCE, SFTStageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def workload(config: SFTStageConfig, shape: FoundConfig | PreTrainedConfig, bf16: bool) -> Workload:
    """The workload of rows with `data.max_length` tokens, with a label on every token.

    Args:
        bf16: default of `training.bf16`.
    """
    merged = arguments(config)
    model = sized(shape, config.model)
    tokens = int(merged.get("per_device_train_batch_size", 8)) * config.data.max_length
    logits = min(tokens, max(1, LOGITS_AT_ONCE // model.shape.vocab_size))
    repeated = int(merged.get("gradient_accumulation_steps", 1)) > 1
    return Workload(
        models=(model,),
        passes=(Pass(model, tokens, logits, repeated),),
        bf16=bool(merged.get("bf16", bf16)) or config.model.dtype == "bfloat16",
        checkpointed=bool(merged["gradient_checkpointing"]),
    )


def arguments(config: SFTStageConfig) -> dict[str, Any]:
    """The trainer's arguments over the stage's defaults."""
    return trainer_arguments(kept.trl_arguments("SFTConfig"), DEFAULTS, config.training)


def workloads(
    config: SFTStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """The workload for `alignment plan`."""
    model = config.model
    shape = finder.find("model.name", model.name, model.scratch, trust=model.trust_remote_code)
    return {model.method: workload(config, shape, bf16=True)}
