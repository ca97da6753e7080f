"""What a PPO run takes of a process's memory (`alignment.memory.plan`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.memory.plan import Model, Pass, RolloutWorkload, Workload
from alignment.memory.shapes import ShapeFinder, frozen, sized
from alignment.models.classifiers import AnyClassifier
from alignment.models.forward import LOGITS_AT_ONCE
from ppo.config import PPOStageConfig, batch_plan
from ppo.loading import critic_kind, policy_options
from ppo.models import NO_GRADIENT

Shapes = Mapping[str, PreTrainedConfig]
"""Of each role: init (the policy), reference, and as far as there are any reward, held_out_reward and value."""
SCORERS = ("reward", "held_out_reward")


def workload(
    config: PPOStageConfig,
    shapes: Shapes,
    processes: int,
    members: Mapping[str, int] | None = None,
    gpu_memory: float = 0.0,
) -> Workload:
    """A run whose prompts and responses are all as long as they may be.

    Args:
        members: of a reward model that is an ensemble, by its role.
        gpu_memory: bytes of a GPU, of which a colocated vLLM takes a share.
    """
    vllm = config.rollout.vllm if config.rollout.engine == "vllm" else None
    rollout, training, length = config.rollout, config.training, config.data.max_length
    policy, critic, rest = _roles(config, shapes, members or {})
    episodes = batch_plan(config, processes).episodes
    minibatch = episodes // config.ppo.num_minibatches * length
    tokens = min(max(training.microbatch_tokens, length), minibatch)
    scored = min(max(NO_GRADIENT * training.microbatch_tokens, length), episodes * length)
    block = max(1, LOGITS_AT_ONCE // policy.shape.vocab_size)
    repeated, entropy = minibatch > tokens, config.ppo.entropy_coef > 0
    joined = length if rollout.num_generations > 1 else 0
    passes = [Pass(policy, tokens, min(tokens, block), repeated, joined, entropy)]
    if critic is not None and critic.layers:  # else its head is read from the policy's pass
        passes.append(Pass(critic, tokens, 0, repeated, joined))
    return Workload(
        models=(policy, *([critic] if critic else []), *rest),
        passes=tuple(passes),
        bf16=training.bf16,
        checkpointed=training.gradient_checkpointing,
        rollout=RolloutWorkload(
            rows=0 if vllm else min(rollout.generation_batch_size, episodes),
            prompt=length - rollout.max_new_tokens,
            response=rollout.max_new_tokens,
            scored=scored,
            logits=min(scored, block),
        ),
        own_loop=True,
        offload=config.model.offload,
        averaged=policy.trained if training.ema_decay is not None else 0,
        vllm=vllm.gpu_memory_utilization * gpu_memory if vllm and vllm.mode == "colocate" else 0.0,
        vllm_sleeps=bool(vllm and vllm.enable_sleep_mode),
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


def _scorer(config: PPOStageConfig, shape: PreTrainedConfig, role: str, policy: Model, members: int) -> list[Model]:
    """A reward model in float32; in shared mode the one that is trained against is an adapter and a head."""
    if config.model.mode == "shared" and role == "reward":
        count = policy.trained + policy.shape.hidden_size
        return [frozen(policy, parameters=count, in_engine=True)] * members
    whole = sized(shape, ModelConfig(name=role), AnyClassifier)
    return [frozen(whole)] * members


def _critic(config: PPOStageConfig, shapes: Shapes, policy: Model, options: ModelConfig) -> Model | None:
    if not config.ppo.has_critic:
        return None
    kind, hidden = critic_kind(config.model), policy.shape.hidden_size
    if kind == "separate":
        return sized(shapes["value"], ModelConfig(name="value"), AnyClassifier)
    if kind == "trunk":
        return Model(policy.shape, parameters=hidden, trained=hidden, gathered=hidden)
    if options.method not in ADAPTERS:
        options = options.model_copy(update={"method": "lora"})
    adapter = sized(shapes["init"], options)
    count = adapter.trained + hidden
    return Model(policy.shape, count, count, layers=policy.shape.num_layers, norms=False, gathered=adapter.gathered)


def find_shapes(config: PPOStageConfig, finder: ShapeFinder) -> dict[str, PreTrainedConfig]:
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
    """What `alignment plan` prints: the run as its config has it, then the other modes and critics."""
    shapes = find_shapes(config, finder)
    found = {_spoken(config): workload(config, shapes, processes, gpu_memory=gpu_memory)}
    for mode in ("separate", "shared"):
        for value in ("separate", "adapter", "trunk") if config.ppo.has_critic else (None,):
            other = _in_mode(config, mode, value)
            if value == "separate" and "value" not in shapes:
                continue
            found.setdefault(_spoken(other), workload(other, shapes, processes, gpu_memory=gpu_memory))
    return found


def _in_mode(config: PPOStageConfig, mode: str, value: str | None) -> PPOStageConfig:
    changes: dict[str, Any] = {"mode": mode, "value": value}
    if mode == "shared":
        changes |= {"offload": False, "reference": None}
        changes["method"] = None if config.model.method == "full" else config.model.method
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def _spoken(config: PPOStageConfig) -> str:
    critic = f"critic {critic_kind(config.model)}" if config.ppo.has_critic else "no critic"
    return f"{config.model.mode}, {policy_options(config.model).method}, {critic}"
