"""Estimate the memory of a reward run and print its plan (`--dry-run`, `alignment plan`)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from trl import RewardConfig

from alignment.config.arguments import PackingArguments, trainer_arguments
from alignment.memory.shapes import ShapeFinder, sized
from alignment.memory.workload import Pass, Workload
from alignment.models.classifiers import AnyClassifier
from alignment.training.arguments import batch_plan, memory_plan
from reward.config import DEFAULTS, EnsembleArguments, RewardStageConfig
from reward.prepare import prepare

COMPLETIONS = 2
"""Completions of a question: pairs. A ranking has proportionally more tokens."""


def workload(config: RewardStageConfig, shape: PreTrainedConfig, bf16: bool) -> Workload:
    """The workload of pairs whose sides have `data.max_length` tokens and share almost nothing.

    Args:
        bf16: default of `training.bf16`.
    """
    merged = arguments(config)
    model = sized(shape, config.model, AnyClassifier)
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
    return trainer_arguments(RewardConfig, DEFAULTS, config.of_member().training)


def workloads(
    config: RewardStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """The workload for `alignment plan`."""
    model = config.model
    shape = finder.find("model.name", model.name, trust=model.trust_remote_code)
    return {model.method: workload(config, shape, bf16=True)}


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
    shape = AutoConfig.from_pretrained(source.config_path, trust_remote_code=config.model.trust_remote_code)
    memory = memory_plan(lambda: workload(config, shape, bf16), {"init": source}, world_size)
    return rows | batch_plan(arguments(config), world_size) | memory
