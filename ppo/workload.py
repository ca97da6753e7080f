"""The memory of one process of a PPO run, for `alignment plan` and `--dry-run`; it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.memory.plan import SAMPLING_BYTES
from alignment.memory.shapes import FoundConfig, ShapeFinder, frozen, sized
from alignment.memory.workload import ColocatedVLLM, Model, Pass, RolloutWorkload, Workload
from alignment.models.blocks import LOGITS_AT_ONCE
from ppo.batch_plan import NO_GRADIENT, batch_plan
from ppo.config import PPOStageConfig
from ppo.options import critic_kind, policy_options

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    Shapes = Mapping[str, FoundConfig] | Mapping[str, PreTrainedConfig]
    """Configs of models by role: init (the policy), reference, and as far as there are any reward, held_out_reward and
    value."""
SCORERS = ("reward", "held_out_reward")


def workload(
    config: PPOStageConfig,
    shapes: Shapes,
    processes: int,
    members: Mapping[str, int] | None = None,
    gpu_memory: float = 0.0,
) -> Workload:
    """A run whose prompts and responses are all as long as they may be; `training.bf16` is on by default, as on a GPU.

    Args:
        members: of a reward model that is an ensemble, by its role.
        gpu_memory: bytes of a GPU, of which a colocated vLLM takes a share.
    """
    rollout, training, length = config.rollout, config.training, config.data.max_length
    policy, critic, rest = _roles(config, shapes, members or {})
    episodes = batch_plan(config, processes).episodes
    minibatch = episodes // config.ppo.num_minibatches * length
    tokens = min(max(training.microbatch_tokens, length), minibatch)
    scored = min(max(NO_GRADIENT * training.microbatch_tokens, length), episodes * length)
    block = max(1, LOGITS_AT_ONCE // policy.shape.vocab_size)
    repeated = minibatch > tokens
    joined = length if rollout.num_generations > 1 else 0
    passes = [Pass(policy, tokens, min(tokens, block), repeated, joined)]
    if critic is not None and critic.layers:  # else its head is read from the policy's pass
        passes.append(Pass(critic, tokens, 0, repeated, joined))
    return Workload(
        models=(policy, *([critic] if critic else []), *rest),
        passes=tuple(passes),
        bf16=training.bf16 is not False,
        checkpointed=training.gradient_checkpointing,
        rollout=RolloutWorkload(
            rows=0 if rollout.vllm is not None else min(rollout.generation_batch_size, episodes),
            prompt=length - rollout.max_new_tokens,
            response=rollout.max_new_tokens,
            scored=scored,
            logits=min(scored, block),
        ),
        own_loop=True,
        offload=config.model.offload,
        averaged=policy.trained if training.ema_decay is not None else 0,
        vllm=_vllm(config, policy, episodes, gpu_memory),
    )


VLLM_TOKENS = 4096
"""Tokens of one pass of a colocated vLLM, as TRL starts it."""


def _vllm(config: PPOStageConfig, policy: Model, episodes: int, gpu_memory: float) -> ColocatedVLLM | None:
    """A colocated vLLM, which divides weights and attention heads over the GPUs that share a copy."""
    rollout, vllm, shape = config.rollout, config.rollout.vllm, policy.shape
    if vllm is None or vllm.mode == "server":
        return None
    together = vllm.tensor_parallel_size
    width = 4 if (vllm.dtype or ("float32" if config.training.bf16 is False else "bfloat16")) == "float32" else 2
    rows = min(rollout.generation_batch_size, episodes) * together
    part = replace(shape, num_kv_heads=max(1, shape.num_kv_heads // together))
    return ColocatedVLLM(
        share=vllm.gpu_memory_utilization * gpu_memory,
        weights=policy.gathered * width / together,
        working=VLLM_TOKENS * shape.passing_bytes(width) / together + rows * shape.vocab_size * SAMPLING_BYTES,
        row=config.data.max_length * part.cache_bytes(width),
        rows=rows,
    )


def _roles(
    config: PPOStageConfig, shapes: Shapes, members: Mapping[str, int]
) -> tuple[Model, Model | None, list[Model]]:
    """The policy, the critic, and what is not trained."""
    model, options = config.model, policy_options(config.model)
    policy = sized(shapes["init"], options)
    adapted = options.method in ADAPTERS
    rest: list[Model] = []
    if model.mode == "separate" and (not adapted or model.reference is not None):
        whole = sized(shapes["reference"], ModelConfig(name=model.policy))
        kind = critic_kind(model) if config.ppo.has_critic else None
        rest.append(frozen(whole, in_engine=kind == "adapter", follows_engine=True))
    for role in SCORERS:
        if role in shapes:
            rest += _scorer(config, shapes[role], role, policy, members.get(role, 1))
    return policy, _critic(config, shapes, policy, options), rest


def _scorer(
    config: PPOStageConfig, shape: FoundConfig | PreTrainedConfig, role: str, policy: Model, members: int
) -> list[Model]:
    """A reward model, its body in bfloat16 where training is; in shared mode the one that is trained against is an
    adapter and a head."""
    if config.model.mode == "shared" and role == "reward":
        count = policy.trained + policy.shape.hidden_size
        return [frozen(policy, parameters=count, in_engine=True)] * members
    whole = sized(shape, ModelConfig(name=role), scalar=True)
    return [frozen(whole, frozen_bytes=4.0 if config.training.bf16 is False else 2.0)] * members


def _critic(config: PPOStageConfig, shapes: Shapes, policy: Model, options: ModelConfig) -> Model | None:
    if not config.ppo.has_critic:
        return None
    kind, hidden = critic_kind(config.model), policy.shape.hidden_size
    if kind == "separate":
        return sized(shapes["value"], ModelConfig(name="value"), scalar=True)
    if kind == "trunk":
        return Model(policy.shape, parameters=hidden, trained=hidden, gathered=hidden)
    if options.method not in ADAPTERS:
        options = options.model_copy(update={"method": "lora"})
    adapter = sized(shapes["init"], options)
    count = adapter.trained + hidden
    return Model(policy.shape, count, count, layers=policy.shape.num_layers, norms=False, gathered=adapter.gathered)


def find_shapes(config: PPOStageConfig, finder: ShapeFinder) -> dict[str, FoundConfig]:
    """The shapes of the models that a config names."""
    model, trust = config.model, config.model.trust_remote_code
    names: dict[str, Any] = {
        "init": ("model.policy", model.policy),
        "reference": ("model.reference", model.reference) if model.reference else ("model.policy", model.policy),
        "reward": ("model.reward", model.reward),
        "held_out_reward": ("model.held_out_reward", model.held_out_reward),
        "value": ("model.value_init", model.value_init) if model.value_init else ("model.reward", model.reward),
    }
    return {role: finder.find(key, name, trust=trust) for role, (key, name) in names.items() if name}


def workloads(
    config: PPOStageConfig, finder: ShapeFinder, processes: int, gpu_memory: float = 0.0
) -> dict[str, Workload]:
    """The workloads that `alignment plan` prints: the run as its config has it, then the other modes and critics."""
    shapes = find_shapes(config, finder)
    workloads_by_name = {_variant_name(config): workload(config, shapes, processes, gpu_memory=gpu_memory)}
    for mode in ("separate", "shared"):
        for value in ("separate", "adapter", "trunk") if config.ppo.has_critic else (None,):
            other = _in_mode(config, mode, value)
            if value == "separate" and "value" not in shapes:
                continue
            workloads_by_name.setdefault(
                _variant_name(other), workload(other, shapes, processes, gpu_memory=gpu_memory)
            )
    return workloads_by_name


def _in_mode(config: PPOStageConfig, mode: str, value: str | None) -> PPOStageConfig:
    changes: dict[str, Any] = {"mode": mode, "value": value}
    if mode == "shared":
        changes |= {"offload": False, "reference": None}
        changes["method"] = None if config.model.method == "full" else config.model.method
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def _variant_name(config: PPOStageConfig) -> str:
    critic = f"critic {critic_kind(config.model)}" if config.ppo.has_critic else "no critic"
    return f"{config.model.mode}, {policy_options(config.model).method}, {critic}"
