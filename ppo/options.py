"""The `model` section as the shared floor takes it: options of the policy, of the critic and of the other models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignment.config.sections import ADAPTERS, ModelConfig
from ppo.config import ModelsConfig, PPOStageConfig

if TYPE_CHECKING:
    from alignment.models.sources import ModelSource

POLICY, REFERENCE, VALUE, REWARD = "default", "reference", "value", "reward"
"""Names of adapters; the policy's is PEFT's own default, so that it is saved as any other adapter is."""


def critic_kind(config: ModelsConfig) -> str:
    """How the critic is held: `separate`, `adapter` or `trunk`."""
    return config.value or ("adapter" if config.mode == "shared" else "separate")


def policy_options(config: ModelsConfig) -> ModelConfig:
    """The part of the policy that is trained, as `alignment.models.methods` takes it."""
    method = config.method or ("lora" if config.mode == "shared" else "full")
    return ModelConfig(
        name=config.policy,
        template=config.template,
        eos_token=config.eos_token,
        method=method,
        adapter=config.adapter,
        trust_remote_code=config.trust_remote_code,
    )


def how_to_load(config: ModelsConfig) -> ModelConfig:
    """Any of the models of which nothing, or all, is trained."""
    return ModelConfig(name=config.policy, trust_remote_code=config.trust_remote_code)


def scorer_options(config: PPOStageConfig) -> ModelConfig:
    """A reward model: its body in bfloat16 where training computes in that, its head in float32."""
    dtype = "bfloat16" if config.training.bf16 else "float32"
    return how_to_load(config.model).model_copy(update={"dtype": dtype})


def with_trained_method(config: PPOStageConfig, source: ModelSource, base: ModelSource | None) -> PPOStageConfig:
    """The config with the method that the policy was really trained by: an adapter's version is loaded by that.

    Args:
        source: the policy that was started from.
        base: the base of its adapter; None: it is a whole model.
    """
    used = policy_options(config.model) if base in (None, source) else source.trained
    assert used is not None
    model = config.model.model_copy(update={"method": used.method, "adapter": used.adapter})
    return config.model_copy(update={"model": model})


def critic_options(config: ModelsConfig) -> ModelConfig:
    """How a critic that is an adapter is trained: as the policy where that is one, else by LoRA."""
    options = policy_options(config)
    return options if options.method in ADAPTERS else options.model_copy(update={"method": "lora"})


def combination(config: ModelsConfig) -> dict[str, Any]:
    """How an ensemble combines its members' scores, as `load_reward_model` takes it."""
    if isinstance(config.reward_ensemble, float):
        return {"combine": "mean_minus_std", "std_coefficient": config.reward_ensemble}
    return {"combine": config.reward_ensemble or "mean"}
