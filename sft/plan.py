"""Estimate the memory of an SFT run and print its plan (`--dry-run`, `alignment plan`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoConfig,
    PreTrainedConfig,
)
from trl import SFTConfig

from alignment.config.arguments import trainer_arguments
from alignment.config.sections import SCRATCH, ScratchConfig
from alignment.memory.shapes import ShapeFinder, sized
from alignment.memory.workload import Pass, Workload
from alignment.models.policies import scratch_shape
from alignment.training.arguments import batch_plan, memory_plan
from sft.config import DEFAULTS, SFTStageConfig
from sft.loss import LOGITS_AT_ONCE
from sft.prepare import PreparedSFT, prepare


def workload(config: SFTStageConfig, shape: PreTrainedConfig, bf16: bool) -> Workload:
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
    return trainer_arguments(SFTConfig, DEFAULTS, config.training)


def workloads(
    config: SFTStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """The workload for `alignment plan`."""
    model = config.model
    shape = finder.find("model.name", model.name, model.scratch, trust=model.trust_remote_code)
    return {model.method: workload(config, shape, bf16=True)}


def plan(config: SFTStageConfig, world_size: int) -> dict[str, Any]:
    """The plan that `--dry-run` prints."""
    prepared = prepare(config)
    merged = arguments(config)
    rows = {
        "train_rows": len(prepared.data.train),
        "eval_rows": len(prepared.data.eval),
        "bad_rows": len(prepared.data.bad),
        "too_long": prepared.data.left_out,
        "data_check": prepared.report.summary(),
    }
    batches = batch_plan(merged, world_size)
    steps = {"optimizer_steps": _num_steps(merged, len(prepared.data.train), batches)}
    bf16, scratch = prepared.arguments.bf16, config.model.name.startswith(SCRATCH)
    sources = {} if scratch else {"init": prepared.start.source}
    memory = memory_plan(lambda: workload(config, _shape(config, prepared), bf16), sources, world_size)
    return rows | batches | steps | memory


def _shape(config: SFTStageConfig, prepared: PreparedSFT) -> PreTrainedConfig:
    if config.model.name.startswith(SCRATCH):
        return scratch_shape(config.model.scratch or ScratchConfig(), len(prepared.start.tokenizer))
    trust = config.model.trust_remote_code
    return AutoConfig.from_pretrained(prepared.start.source.config_path, trust_remote_code=trust)


def _num_steps(merged: Mapping[str, Any], num_rows: int, batches: Mapping[str, Any]) -> int:
    """Number of optimizer steps of the run."""
    if merged.get("max_steps", -1) > 0:
        return int(merged["max_steps"])
    per_epoch = math.ceil(num_rows / (batches["per_device_batch"] * batches["processes"]))
    return math.ceil(merged.get("num_train_epochs", 3.0) * math.ceil(per_epoch / batches["accumulated"]))
