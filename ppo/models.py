"""The four roles of PPO: policy, reference, value and reward, here as separate models.

Another way to hold them (one base with adapters) only has to build the same `Models`; nothing else looks inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config import ModelConfig
from alignment.ensembles import RewardEnsemble, is_ensemble, load_member, load_reward_model
from alignment.models import (
    ModelError,
    ModelSource,
    find_model,
    fit_embeddings,
    load_policy,
    load_tokenizer,
    response_logprobs,
)
from alignment.registry import Parent, Registry
from alignment.scalar_models import ScalarModel
from alignment.templates import Message, encode_conversation
from ppo.config import ModelsConfig

PROBE = (
    Message(
        role="user", content="Which of these do you read?\n 1, 2 and 3; 'quotes' - dashes \u2013 and \u00fcml\u00e4uts."
    ),
    Message(role="assistant", content="All of them,  spaces too."),
)


class PolicyAndValue(nn.Module):
    """What is trained, as one module: accelerate binds one DeepSpeed engine to an accelerator."""

    def __init__(self, policy: PreTrainedModel, value_model: ScalarModel) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_response: int,
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """logprobs, entropy (None unless asked for) and values of the last `num_response` tokens, (B, T) float32.

        values[:, t] is read at the token before t: it must not know what it is the value before.
        """
        logprobs, entropy = response_logprobs(
            self.policy, input_ids, attention_mask, num_response, temperature, with_entropy
        )
        values = self.value_model(input_ids, attention_mask)[:, -num_response - 1 : -1]
        return logprobs, entropy, values


@dataclass
class Models:
    """The roles, the policy's tokenizer, and where each model came from."""

    trained: PolicyAndValue
    ref_policy: PreTrainedModel
    reward_model: ScalarModel | RewardEnsemble
    tokenizer: PreTrainedTokenizerBase
    sources: dict[str, ModelSource]

    @property
    def policy(self) -> PreTrainedModel:
        return self.trained.policy

    def parents(self) -> list[Parent]:
        """Lineage entries of a policy trained from these."""
        return [source.parent(role) for role, source in self.sources.items()]


def find_models(config: ModelsConfig, registry: Registry) -> dict[str, ModelSource]:
    """Where each role's model is: init (the policy), reference, reward, value.

    Raises:
        RegistryError, ModelError: see `alignment.models.find_model`; members are to be combined of what has none.
    """
    policy = find_model(config.policy, registry, role="policy")
    reward = find_model(config.reward, registry, role="reward")
    if config.reward_ensemble is not None and not is_ensemble(reward):
        raise ModelError(
            f"model.reward_ensemble={config.reward_ensemble}: {reward.label} is a single reward model; take the key "
            "out, or name an ensemble (python -m reward ... training.members=3)"
        )
    return {
        "init": policy,
        "reference": find_model(config.reference, registry, role="policy") if config.reference else policy,
        "reward": reward,
        "value": find_model(config.value, registry, role="reward") if config.value else reward,
    }


def _options(config: ModelsConfig) -> ModelConfig:
    return ModelConfig(name=config.policy, trust_remote_code=config.trust_remote_code)


def load_policy_tokenizer(config: ModelsConfig, sources: dict[str, ModelSource]) -> PreTrainedTokenizerBase:
    """The policy's tokenizer.

    Raises:
        ModelError: the reference, reward or value model tokenizes or renders otherwise.
    """
    options = _options(config)
    tokenizer = load_tokenizer(sources["init"], options)
    for role in ("reference", "reward", "value"):
        _check_same_tokens(tokenizer, load_tokenizer(sources[role], options), sources["init"], role, sources[role])
    return tokenizer


def load_models(config: ModelsConfig, sources: dict[str, ModelSource]) -> Models:
    """Load four separate models.

    Every model stays in eval mode for good: with dropout the recomputed log-probabilities would differ from the
    sampled ones and the first ratio would not be 1.

    Raises:
        ModelError: the reward or value model tokenizes or renders otherwise than the policy; an encoder as value model.
    """
    options = _options(config)
    tokenizer = load_policy_tokenizer(config, sources)
    policy = load_policy(sources["init"], options)
    fit_embeddings(policy, tokenizer)
    value_model = load_member(sources["value"], 0, options)
    if value_model.is_encoder:
        raise ModelError(
            f"model.value: {sources['value'].label} is an encoder ({type(value_model.model).__name__}), which reads a "
            "text as a whole and gives no value before each token; name a decoder's reward model"
        )
    models = Models(
        trained=PolicyAndValue(policy, value_model),
        ref_policy=load_policy(sources["reference"], options),
        reward_model=load_reward_model(sources["reward"], options, **_combined(config)),
        tokenizer=tokenizer,
        sources=sources,
    )
    for frozen in (models.ref_policy, models.reward_model):
        frozen.requires_grad_(False).eval()
    models.trained.eval()
    return models


def _combined(config: ModelsConfig) -> dict[str, Any]:
    """How an ensemble combines its members' scores, as `load_reward_model` takes it."""
    if isinstance(config.reward_ensemble, float):
        return {"combine": "mean_minus_std", "std_coefficient": config.reward_ensemble}
    return {"combine": config.reward_ensemble or "mean"}


def _check_same_tokens(
    ours: PreTrainedTokenizerBase,
    theirs: PreTrainedTokenizerBase,
    our_source: ModelSource,
    role: str,
    source: ModelSource,
) -> None:
    """The reward, value and reference models read the policy's token ids, so those must mean the same to them."""
    rendered = [encode_conversation(tokenizer, PROBE) for tokenizer in (ours, theirs)]
    same_specials = (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    if rendered[0] != rendered[1] or not same_specials:
        raise ModelError(
            f"model.{role}: {source.label} has another tokenizer or chat template than the policy {our_source.label}; "
            f"train the {role} model from the same SFT model"
        )
