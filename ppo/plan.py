"""The plan of a PPO run: its batches, and the memory of one process (`alignment.memory.plan`)."""

from __future__ import annotations

from typing import Any

from alignment.distributed import processes
from alignment.memory.shapes import config_of_source
from alignment.models.reward_files import num_members
from alignment.reports.judges import reward_parts
from alignment.training import arguments, opening
from ppo.batch_plan import batch_plan
from ppo.config import PPOStageConfig
from ppo.prepare import check_config, prepare
from ppo.reward_sources import load_sources
from ppo.workload import workload


def plan(config: PPOStageConfig, world_size: int) -> dict[str, Any]:
    """The plan that `--dry-run` prints beside the config."""
    config = config.with_bf16(processes.bf16_by_default)
    check_config(config)
    sizes = batch_plan(config, world_size)
    prepared = prepare(config, opening.open_registry(config))
    sources = prepared.sources
    load_sources(
        config.rewards, [prompt for prompt, _ in prepared.prompts], [prompt for prompt, _ in prepared.held_out],
        [answer.prompt for answer in prepared.answers.items], heads=config.model.reward_weights,
    )  # fmt: skip
    trust = config.model.trust_remote_code
    shapes = {role: config_of_source(source.config_path, trust) for role, source in sources.items()}
    shared = config.model.mode == "shared"
    members = {  # elsewhere those that are adapters are on one body
        role: num_members(source)
        for role, source in sources.items()
        if source.base is None or (shared and role == "reward")
    }
    return {
        "train_prompts": len(prepared.prompts),
        "eval_prompts": len(prepared.eval_set.items),
        "ptx_rows": len(prepared.ptx.rows),
        "value_pretrain_answers": len(prepared.answers.items),
        "bad_rows": len(prepared.bad),
        "too_long": prepared.too_long["too_long"],
        "data_check": prepared.report.summary(),
        **_objective(config),
        "processes": world_size,
        "episodes_per_iteration": config.rollout.batch_size,
        "episodes_per_device": sizes.episodes,
        "prompts_per_device": sizes.prompts,
        "minibatch": sizes.minibatch,
        "microbatch_tokens": config.training.microbatch_tokens,
        "optimizer_steps": config.training.max_steps * config.ppo.num_epochs * config.ppo.num_minibatches,
        **arguments.memory_plan(lambda: workload(config, shapes, world_size, members), sources, world_size),
    }


def _objective(config: PPOStageConfig) -> dict[str, Any]:
    """What is maximised and what is bounded, where there is more than one score."""
    weights = {name: weight for name, _, weight in reward_parts(config.model_dump())}
    plan = {"score": weights} if len(weights) > 1 else {}
    return plan | ({"constraints": {bound.name: bound.text for bound in config.rewards.bounds}} if config.rewards.bounds
                   else {})  # fmt: skip
