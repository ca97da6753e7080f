"""The plan of a reward run that `--dry-run` prints: pairs, batches, and the memory of one process."""

from __future__ import annotations

from typing import Any

from alignment.memory.shapes import config_of_source
from alignment.training.arguments import batch_plan, memory_plan
from reward.config import EnsembleArguments, RewardStageConfig
from reward.prepare import prepare
from reward.workload import arguments, workload


def plan(config: RewardStageConfig, world_size: int) -> dict[str, Any]:
    """The plan that `--dry-run` prints."""
    prepared = prepare(config)
    train, held_out = prepared.num_pairs
    rows = {
        "members": EnsembleArguments.of(config.training).members,
        "train_questions": len(prepared.train),
        "train_pairs": train,
        "eval_pairs": held_out,
        "bad_rows": len(prepared.train_set.bad),
        **prepared.left_out,
        **prepared.normalization.summary(),
        "data_check": prepared.report.summary(),
    }
    source, bf16 = prepared.start.source, prepared.arguments.bf16
    shape = config_of_source(source.config_path, config.model.trust_remote_code)
    memory = memory_plan(lambda: workload(config, shape, bf16), {"init": source}, world_size)
    return rows | batch_plan(arguments(config), world_size) | memory
