"""What an SFT run takes of a process's memory (`alignment.memory.plan`)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from trl import SFTConfig

from alignment.config.loading import trainer_arguments
from alignment.memory.plan import Pass, Workload
from alignment.memory.shapes import ShapeFinder, sized
from sft.config import DEFAULTS, SFTStageConfig
from sft.loss import LOGITS_AT_ONCE


def workload(config: SFTStageConfig, shape: PreTrainedConfig, bf16: bool) -> Workload:
    """A run whose rows are all as long as `data.max_length` allows, with a label on every token.

    Args:
        bf16: what `training.bf16` is by default.
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
    return trainer_arguments(SFTConfig, DEFAULTS, config.training)


def workloads(
    config: SFTStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """What `alignment plan` prints: the run as its config has it."""
    model = config.model
    shape = finder.find("model.name", model.name, model.scratch, trust=model.trust_remote_code)
    return {model.method: workload(config, shape, bf16=True)}
