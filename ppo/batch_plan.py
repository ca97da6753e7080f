"""How one rollout divides over processes, prompts and optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignment.errors import ConfigError
from ppo.config import PPOStageConfig

NO_GRADIENT = 4
"""A pass without gradients keeps no activations and takes so many times the tokens of one with."""


@dataclass(frozen=True)
class BatchPlan:
    """How the episodes of an iteration divide."""

    episodes: int
    """On each process."""
    prompts: int
    """On each process."""
    minibatch: int
    """Episodes of one optimizer step, over all processes."""


def batch_plan(config: PPOStageConfig, world_size: int) -> BatchPlan:
    """Divide one rollout over processes, prompts and optimizer steps.

    Raises:
        ConfigError: something does not divide; it names the keys and the nearest sizes that work.
    """
    total, generations, count = config.rollout.batch_size, config.rollout.num_generations, config.ppo.num_minibatches
    # A prompt's responses stay on one process; each process has an equal part of every minibatch.
    step = math.lcm(world_size * generations, world_size * count)
    if total % step:
        lower, upper = total // step * step, (total // step + 1) * step
        nearest = f"{lower} or {upper}" if lower else str(upper)
        raise ConfigError(
            f"rollout.batch_size={total} does not divide into {world_size} processes, "
            f"rollout.num_generations={generations} and ppo.num_minibatches={count}; use {nearest}"
        )
    episodes = total // world_size
    return BatchPlan(episodes=episodes, prompts=episodes // generations, minibatch=total // count)


def check_copies(config: PPOStageConfig, world_size: int) -> None:
    """Refuse processes that do not divide into copies of a colocated vLLM. A dry run, of one process, goes without.

    Raises:
        ConfigError: names the key, and the nearest size that works.
    """
    together = 1 if config.rollout.vllm is None else config.rollout.vllm.tensor_parallel_size
    if world_size % together:
        raise ConfigError(
            f"rollout.vllm.tensor_parallel_size={together} does not divide the {world_size} processes; use "
            f"{math.gcd(together, world_size)}, or another number of processes"
        )
