"""From the config's names to the roles: finding each model, checking that they fit together, and loading them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.sections import ModelConfig
from alignment.distributed import zero3
from alignment.errors import ConfigError, ModelError
from alignment.models import trainable
from alignment.models.ensembles import RewardEnsemble, load_reward_model
from alignment.models.forward import switch_off_dropout
from alignment.models.lengths import positions
from alignment.models.policies import load_base, load_policy
from alignment.models.reward_files import is_ensemble, member_name, num_members, saved_heads
from alignment.models.same_tokenizer import same_tokens
from alignment.models.scalar import ScalarModel, collapse
from alignment.models.shared_base import add_adapter, add_reward_adapter
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings, load_tokenizer, vocabulary_of
from ppo.batch_plan import NO_GRADIENT
from ppo.config import PPOStageConfig
from ppo.critic import (
    add_critic_adapter,
    load_separate_critic,
    new_head,
    not_on_trunk,
    reward_adapter_critic,
)
from ppo.models import Models, settle
from ppo.options import (
    POLICY,
    REFERENCE,
    REWARD,
    combination,
    critic_kind,
    how_to_load,
    policy_options,
    scorer_options,
)
from ppo.reward_model import RewardModel
from ppo.roles import PolicyAndValue, Role, pack_if_possible
from ppo.sources import base_digest, load_policy_tokenizer, shared_base, weights_of_heads


class Assembly(NamedTuple):
    """The roles, however they are held, and the base of the policy's adapter (None: it is a whole model)."""

    policy: Role
    reference: Role
    critic: Role | None
    reward: RewardModel | None
    base: ModelSource | None


def load_models(
    config: PPOStageConfig, sources: dict[str, ModelSource], tokenizer: PreTrainedTokenizerBase | None = None
) -> Models:
    """Load every role; `tokenizer` as `load_policy_tokenizer` gives it, where it has been loaded before.

    Each model stays in eval mode for good: with dropout the recomputed log-probabilities would differ from the sampled
    ones and the first ratio would not be 1.

    Raises:
        ModelError, ConfigError, AdapterError: models that do not fit together.
    """
    tokenizer = tokenizer or load_policy_tokenizer(config, sources)
    assemble = _shared if config.model.mode == "shared" else _separate
    policy, reference, critic, reward, base = assemble(config, sources, tokenizer)
    held_out = None
    if "held_out_reward" in sources:
        weights = weights_of_heads(config.model, sources["held_out_reward"], "held_out_reward")
        held_out = load_scorer(sources["held_out_reward"], tokenizer, scorer_options(config), weights)
        settle(held_out.bodies(), config, frozen=True)
    trained = PolicyAndValue(policy, critic)
    if trained.on_trunk and policy.layers is None:
        raise ModelError(not_on_trunk(policy))
    for role in (policy, reference):
        role.vocabulary = vocabulary_of(tokenizer)
    if critic is not None and _rows(critic.base) < vocabulary_of(tokenizer):
        raise ModelError(
            f"model.value: {sources['value'].label} has {_rows(critic.base)} tokens, fewer than the policy's tokenizer "
            "has; train it from the same SFT model, or set model.value=trunk"
        )
    models = Models(trained, reference, reward, held_out, tokenizer, sources, base=base, offloaded=config.model.offload)
    finalize_models(models, config)
    return models


def finalize_models(models: Models, config: PPOStageConfig) -> None:
    """Settle what holds for all models: layout, no dropout, checkpointing, and that nothing else is trained."""
    training, longest = config.training, config.data.max_length
    roles = [role for role in (*models.trained.roles, models.reference) if role is not None]
    if training.packing is not False:
        reason = pack_if_possible(roles, longest)
        if reason and training.packing:
            raise ConfigError(f"training.packing: {reason}; leave it out")
        models.packed = reason is None
    for scorer in models.scorers():
        scorer.max_tokens = NO_GRADIENT * training.microbatch_tokens
        scorer.packed = training.packing is not False and pack_if_possible(scorer.members, longest) is None
    for role in roles:
        role.checkpointed = training.gradient_checkpointing
    for module in (models.trained, *models.frozen()):
        module.eval()
        switch_off_dropout(module)
    for module in models.frozen():
        module.requires_grad_(False)


def _separate(config: PPOStageConfig, sources: dict[str, ModelSource], tokenizer: PreTrainedTokenizerBase) -> Assembly:
    """Each role a model of its own; but where an adapter is trained, its base is the reference too."""
    model, options = config.model, policy_options(config.model)
    init = sources["init"]
    trained = trainable.load_trainable(init, tokenizer, options)
    settle([trained], config, frozen=False)
    base = trainable.base_of(init, options)
    if isinstance(trained, PeftModel):
        policy = Role(trained, POLICY)
        reference = Role(trained, None)
        if trainable.continues(init, options):
            add_adapter(trained, REFERENCE, init.path, trainable=False)
            reference = Role(trained, REFERENCE)
    else:
        policy = reference = Role(trained)
    if model.reference is not None or base is None:
        reference = Role(load_policy(sources["reference"], how_to_load(model)))
        fit_embeddings(reference.base, tokenizer)
        reference.model.requires_grad_(False)
        if critic_kind(model) != "adapter":  # a new adapter may be made from the weights as they were read
            settle([reference.model], config, frozen=True)
    critic = None
    if config.ppo.has_critic:
        kind = critic_kind(model)
        if kind == "trunk":
            critic = Role(policy.model, policy.adapter, new_head(policy))
        elif kind == "separate":
            critic = load_separate_critic(sources["value"], model)
            settle([critic.model], config, frozen=False)
        else:
            reference, critic = add_critic_adapter(reference, model, sources)
    reward = None
    if "reward" in sources:
        reward = load_scorer(sources["reward"], tokenizer, scorer_options(config), **combination(model))
        settle(reward.bodies(), config, frozen=True)
    return Assembly(policy, reference, critic, reward, base)


def _shared(config: PPOStageConfig, sources: dict[str, ModelSource], tokenizer: PreTrainedTokenizerBase) -> Assembly:
    """One frozen base with an adapter for each role."""
    model, reward = config.model, sources.get("reward")
    init, options = sources["init"], policy_options(model)
    if base_digest(init) == base_digest(shared_base(sources)):
        whole = load_policy(init, options)
        fit_embeddings(whole, tokenizer)
        adapted = add_adapter(whole, POLICY, trainable.adapter_config(whole, options), trainable=True)
        reference, base = Role(adapted, None), init
    else:
        assert init.base is not None and init.trained is not None
        trusted = init.trained.model_copy(update={"trust_remote_code": model.trust_remote_code})
        adapted = add_adapter(load_base(init, trusted), POLICY, init.path, trainable=True)
        add_adapter(adapted, REFERENCE, init.path, trainable=False)
        reference, base = Role(adapted, REFERENCE), init.base
    policy = Role(adapted, POLICY)
    critic = None
    if config.ppo.has_critic:
        kind = critic_kind(model)
        if kind == "trunk":
            critic = Role(adapted, POLICY, new_head(policy))
        elif kind == "separate":
            critic = load_separate_critic(sources["value"], model)
        else:
            critic = reward_adapter_critic(adapted, sources["value"], model)
    if reward is None:
        return Assembly(policy, reference, critic, None, base)
    members = []
    for number in range(num_members(reward)):
        name = f"{REWARD}-{number}"
        _, head = add_reward_adapter(adapted, name, reward, trainable=False, member=number)
        members.append(Role(adapted, name, head))
    ensemble = RewardEnsemble([], len(members), **combination(model)) if is_ensemble(reward) else None
    return Assembly(policy, reference, critic, RewardModel(members, ensemble, heads=saved_heads(reward)), base)


def _rows(model: PreTrainedModel) -> int:
    """Tokens that a model can embed."""
    return int(model.get_input_embeddings().num_embeddings)


def load_scorer(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    options: ModelConfig,
    weights: Sequence[float] = (),
    **combine: Any,
) -> RewardModel:
    """A reward model or ensemble, which reads the policy's tokens if it has the same ones, else the text.

    Args:
        weights: of several heads in one score; empty: each has its own.
    """
    loaded = load_reward_model(source, options, several_heads=True, **combine)
    if weights:
        assert isinstance(loaded, ScalarModel)
        collapse(loaded, weights)
    scorer_tokenizer = load_tokenizer(source, options)
    # One tokenizer does not make one vocabulary: tokens added to the policy's are unknown to a reward model before it.
    own = not same_tokens(tokenizer, scorer_tokenizer) or token_limit(loaded) < vocabulary_of(tokenizer)
    scorer = text_scorer(source, loaded, scorer_tokenizer, options) if own else token_scorer(loaded)
    for body in scorer.bodies():
        zero3.cast(body, getattr(torch, options.dtype))  # shards are loaded in float32
    return scorer


def token_limit(loaded: ScalarModel | RewardEnsemble) -> int:
    """The token ids that a reward model can read; 0 for an encoder, which reads the whole text through its own head."""
    first = loaded if isinstance(loaded, ScalarModel) else loaded.member(0)
    return 0 if first.is_encoder else _rows(first.model)


def text_scorer(
    source: ModelSource, loaded: ScalarModel | RewardEnsemble, tokenizer: PreTrainedTokenizerBase, options: ModelConfig
) -> RewardModel:
    """A loaded reward model as one that reads texts, through its own tokenizer."""
    limit = positions(source.config_path, options.trust_remote_code)
    max_positions = limit[0] if limit is not None and not limit[1] else None
    heads = loaded.heads if isinstance(loaded, ScalarModel) else ()
    return RewardModel(text_model=loaded, tokenizer=tokenizer, max_positions=max_positions, heads=heads)


def token_scorer(loaded: ScalarModel | RewardEnsemble) -> RewardModel:
    """A loaded reward model as one that reads the policy's tokens."""
    if isinstance(loaded, ScalarModel):
        return RewardModel([Role(loaded.model, head=loaded.model.score)], heads=loaded.heads)
    return RewardModel(ensemble_roles(loaded), loaded)


def ensemble_roles(ensemble: RewardEnsemble) -> list[Role]:
    """A role for each member; of members that are adapters the one body with another adapter and head."""
    (adapted,) = ensemble._adapted
    if adapted is None:
        members = [ensemble.member(number) for number in range(ensemble.size)]
        return [Role(member.model, head=member.model.score) for member in members]
    heads = ensemble.member(0).model.score.modules_to_save
    return [Role(adapted, member_name(number), heads[member_name(number)]) for number in range(ensemble.size)]
