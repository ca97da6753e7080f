"""The critic's model: a model of its own, an adapter or a head, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from alignment.errors import ModelError
from alignment.models import trainable
from alignment.models.classifiers import body_width
from alignment.models.ensembles import load_member
from alignment.models.reward_files import write_score_bias
from alignment.models.scalar import ScoreHead, collapse
from alignment.models.shared_base import add_adapter, add_reward_adapter, save_adapter
from alignment.models.sources import ModelSource
from ppo.algorithm import ScoreStats
from ppo.config import ModelsConfig
from ppo.models import Models
from ppo.options import REFERENCE, VALUE, critic_options, how_to_load
from ppo.roles import Role
from ppo.sources import base_digest, weights_of_heads


def new_head(role: Role) -> ScoreHead:
    """A head whose values are 0 until it has learned: any other start would be noise in the first advantages."""
    head = ScoreHead(body_width(role.base.config))
    torch.nn.init.zeros_(head.weight)
    return head


def load_separate_critic(source: ModelSource, config: ModelsConfig) -> Role:
    """A critic that is a model of its own, from a reward model (of several heads from their weighted sum, which is one
    head too) or an earlier critic."""
    scalar = load_member(source, 0, how_to_load(config))
    if weights := weights_of_heads(config, source, "value_init" if config.value_init else "reward"):
        collapse(scalar, weights)
    if scalar.is_encoder:
        raise ModelError(
            f"model.value_init: {source.label} is an encoder ({type(scalar.model).__name__}), which reads a text as a "
            "whole and gives no value before each token; name a decoder's reward model, or set model.value=trunk"
        )
    return Role(scalar.model, head=scalar.model.score).rescale_head()


def add_critic_adapter(reference: Role, config: ModelsConfig, sources: Mapping[str, ModelSource]) -> tuple[Role, Role]:
    """An adapter on the weights that are frozen anyway, those of the reference, and the reference beside it: a new one,
    or that of `model.value_init`."""
    if config.value_init is not None:
        source, below = sources["value"], frozen_below(reference, sources)
        if source.base is None or base_digest(source.base) != base_digest(below):
            raise ModelError(
                f"model.value_init: {source.label} is no adapter on {below.label}, which the critic is to go on; take "
                "value_init out, or set model.value=separate"
            )
        critic = reward_adapter_critic(reference.model, source, config)
        return Role(critic.model, reference.adapter), critic
    options = critic_options(config)
    adapted = add_adapter(reference.model, VALUE, trainable.adapter_config(reference.base, options), trainable=True)
    return Role(adapted, reference.adapter), Role(adapted, VALUE, new_head(reference))


def reward_adapter_critic(model: PeftModel | PreTrainedModel, source: ModelSource, config: ModelsConfig) -> Role:
    """A critic that goes on from a reward model's adapter, or an earlier critic's, on the weights below."""
    adapted, head = add_reward_adapter(model, VALUE, source, trainable=True)
    if weights := weights_of_heads(config, source, "value_init" if config.value_init else "reward"):
        head = head.weighted(weights)
    return Role(adapted, VALUE, head).rescale_head()


def not_on_trunk(policy: Role) -> str:
    """The error where a critic is to be a head on a policy that is not simply a body and a head."""
    return (
        f"model.value=trunk: the logits of {type(policy.base).__name__} are not its head's output alone (scaled, "
        "capped, a head of several layers, or with an adapter in the head); use model.value=separate"
    )


def frozen_below(reference: Role, sources: Mapping[str, ModelSource]) -> ModelSource:
    """The whole model that an adapter beside the reference is on: the reference, or its base."""
    source = sources["reference"]
    is_adapter = reference.adapter == REFERENCE and source.base is not None
    return source.base if is_adapter and source.base is not None else source


def save_critic(models: Models, folder: Path, weights: Mapping[str, Tensor], stats: ScoreStats) -> ModelSource | None:
    """Write the critic as a reward model is published, so that its values are scores as they are.

    Args:
        weights: the state dict of what was trained.
        stats: by which the scores were normalised that a new head has learned.

    Returns:
        What it is an adapter on; None for a whole model.
    """
    role = models.critic
    assert role is not None and isinstance(role.head, ScoreHead) and not models.trained.on_trunk
    whole = role.adapter is None
    head = weights["value_model.score.weight" if whole else "value_head.weight"].float()
    scale = stats.std if role.head_scale is None else role.head_scale
    assert not isinstance(role.head.score_bias, list)
    head, bias = head * scale, role.head.score_bias * scale
    if role.head_scale is None:  # it has learned normalised scores
        bias -= stats.mean
    if whole:
        state = {
            name.removeprefix("value_model."): each for name, each in weights.items() if name.startswith("value_model.")
        }
        role.base.config.score_bias = bias
        role.base.save_pretrained(folder, state_dict=state | {"score.weight": head})
        return None
    state = _below("policy." if role.model is models.policy.model else "value_model.", weights)
    assert isinstance(role.model, PeftModel) and role.adapter is not None
    save_adapter(role.model, role.adapter, folder, state, head=head)
    write_score_bias(folder, bias)
    return models.base if role.model is models.policy.model else frozen_below(models.reference, models.sources)


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
