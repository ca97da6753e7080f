"""The plan of an SFT run that `--dry-run` prints: rows, batches, steps, and the memory of one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alignment.config.sections import SCRATCH, ScratchConfig
from alignment.memory.shapes import FoundConfig, config_of_source, scratch_config
from alignment.training.arguments import batch_plan, memory_plan
from sft.config import SFTStageConfig
from sft.prepare import PreparedSFT, prepare
from sft.workload import arguments, workload


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


def _shape(config: SFTStageConfig, prepared: PreparedSFT) -> FoundConfig:
    if config.model.name.startswith(SCRATCH):
        return scratch_config(config.model.scratch or ScratchConfig(), len(prepared.start.tokenizer))
    return config_of_source(prepared.start.source.config_path, config.model.trust_remote_code)


def _num_steps(merged: Mapping[str, Any], num_rows: int, batches: Mapping[str, Any]) -> int:
    """Number of optimizer steps of the run."""
    if merged.get("max_steps", -1) > 0:
        return int(merged["max_steps"])
    per_epoch = math.ceil(num_rows / (batches["per_device_batch"] * batches["processes"]))
    return math.ceil(merged.get("num_train_epochs", 3.0) * math.ceil(per_epoch / batches["accumulated"]))
