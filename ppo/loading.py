"""From the config's names to the roles: finding each model, checking that they fit together, and loading them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.errors import ConfigError, ModelError
from alignment.generation.sampling import vocabulary_of
from alignment.models import methods
from alignment.models.classifiers import body_width
from alignment.models.ensembles import (
    RewardEnsemble,
    is_ensemble,
    load_member,
    load_reward_model,
    member_name,
    num_members,
)
from alignment.models.forward import switch_off_dropout
from alignment.models.lengths import positions
from alignment.models.policies import load_base, load_policy
from alignment.models.scalar import ScalarModel, ScoreHead
from alignment.models.shared_base import add_adapter, add_reward_adapter
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import fit_embeddings, load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import Message, TemplateError, encode_conversation
from ppo.config import ModelsConfig, PPOStageConfig
from ppo.models import NO_GRADIENT, Models, PolicyAndValue, RewardModel, Role, choose_layout

PROBE = (
    Message(
        role="user", content="Which of these do you read?\n 1, 2 and 3; 'quotes' - dashes \u2013 and \u00fcml\u00e4uts."
    ),
    Message(role="assistant", content="All of them,  spaces too."),
)
POLICY, REFERENCE, VALUE, REWARD = "default", "reference", "value", "reward"
"""Names of adapters; the policy's is PEFT's own default, so that it is saved as any other adapter is."""


def find_models(config: PPOStageConfig, registry: Registry) -> dict[str, ModelSource]:
    """Where each role's model is: init (the policy), reference, and as far as there are any reward, value and
    held_out_reward.

    Raises:
        RegistryError, ModelError: see `alignment.models.sources.find_model`; members are to be combined of what has
        none. ConfigError: keys that do not go together.
    """
    model = config.model
    policy = find_model(model.policy, registry, role="policy")
    sources = {"init": policy}
    sources["reference"] = find_model(model.reference, registry, role="policy") if model.reference else policy
    if model.reward:
        sources["reward"] = find_model(model.reward, registry, role="reward")
    if model.held_out_reward:
        sources["held_out_reward"] = find_model(model.held_out_reward, registry, role="reward")
    if config.ppo.has_critic and critic_kind(model) != "trunk":
        if model.value_init:
            sources["value"] = find_model(model.value_init, registry, role=("value", "reward"))
        elif "reward" in sources:
            sources["value"] = sources["reward"]
        else:
            raise ConfigError(
                f"model.value={critic_kind(model)} starts from a reward model or a critic, and there is none; set "
                "model.value_init, or model.value=trunk"
            )
    elif model.value_init:
        raise ConfigError("model.value_init is for a critic of its own or an adapter; take it out")
    if model.reward_ensemble is not None and not ("reward" in sources and is_ensemble(sources["reward"])):
        found = sources["reward"].label + " is a single reward model" if "reward" in sources else "there is no reward"
        raise ModelError(
            f"model.reward_ensemble={model.reward_ensemble}: {found}; take the key out, or name an ensemble "
            "(python -m reward ... training.members=3)"
        )
    return sources


def critic_kind(config: ModelsConfig) -> str:
    return config.value or ("adapter" if config.mode == "shared" else "separate")


def policy_options(config: ModelsConfig) -> ModelConfig:
    """What of the policy is trained, as `alignment.models.methods` takes it."""
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


def as_trained(config: PPOStageConfig, source: ModelSource, base: ModelSource | None) -> PPOStageConfig:
    """The config with the method that the policy was really trained by: an adapter's version is loaded by that.

    Args:
        source: the policy that was started from.
        base: what its adapter goes on; None: it is a whole model.
    """
    used = policy_options(config.model) if base in (None, source) else source.trained
    assert used is not None
    model = config.model.model_copy(update={"method": used.method, "adapter": used.adapter})
    return config.model_copy(update={"model": model})


def load_policy_tokenizer(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, once it is known that the roles fit together.

    Raises:
        ModelError: the reference or value model tokenizes or renders otherwise; roles that are to share a base do not;
            a role has no chat template.
        ConfigError: keys that a shared base has no use for.
    """
    tokenizer = load_tokenizer(sources["init"], policy_options(config.model))
    if config.model.mode == "shared":
        _check_shared(config, sources, tokenizer)
    for role in ("reward", "held_out_reward"):
        if role in sources:
            _role_tokenizer(config, sources, role)  # before any model is loaded
    for role in ("reference", "value"):
        if role in sources and not same_tokens(tokenizer, _role_tokenizer(config, sources, role)):
            label, other = sources["init"].label, sources[role].label
            more = "" if role == "reference" else ", or set model.value=trunk"
            raise ModelError(
                f"model.{role}: {other} has another tokenizer or chat template than the policy {label}; train it from "
                f"the same SFT model{more}"
            )
    return tokenizer


def _role_tokenizer(config: PPOStageConfig, sources: Mapping[str, ModelSource], role: str) -> PreTrainedTokenizerBase:
    """The tokenizer of another role than the policy; the config's template and EOS are those of the policy alone."""
    source = sources[role]
    options = policy_options(config.model) if source == sources["init"] else how_to_load(config.model)
    try:
        return load_tokenizer(source, options)
    except TemplateError as error:
        raise ModelError(
            f"model.{role}: {source.label} has no chat template; give it one by `alignment models import {source.path} "
            "NAME --template chatml`, and name that"
        ) from error


def same_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether token ids of one mean the same to the other. Padding does not matter: a reward model has its own."""
    return encode_conversation(ours, PROBE) == encode_conversation(theirs, PROBE)


class Assembly(NamedTuple):
    """The roles, however they are held, and what the policy's adapter goes on (None: it is a whole model)."""

    policy: Role
    reference: Role
    critic: Role | None
    reward: RewardModel | None
    base: ModelSource | None


def load_models(config: PPOStageConfig, sources: dict[str, ModelSource]) -> Models:
    """Load every role.

    Each model stays in eval mode for good: with dropout the recomputed log-probabilities would differ from the sampled
    ones and the first ratio would not be 1.

    Raises:
        ModelError, ConfigError, AdapterError: models that do not fit together.
    """
    tokenizer = load_policy_tokenizer(config, sources)
    assemble = _shared if config.model.mode == "shared" else _separate
    policy, reference, critic, reward, base = assemble(config, sources, tokenizer)
    held_out = None
    if "held_out_reward" in sources:
        held_out = load_scorer(sources["held_out_reward"], tokenizer, how_to_load(config.model))
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
    settle(models, config)
    return models


def not_on_trunk(policy: Role) -> str:
    """What to say where a critic is to be a head on a policy that is not simply a body and a head."""
    return (
        f"model.value=trunk: the logits of {type(policy.base).__name__} are not its head's output alone (scaled, "
        "capped, a head of several layers, or with an adapter in the head); use model.value=separate"
    )


def settle(models: Models, config: PPOStageConfig) -> None:
    """What holds for all models alike: their layout, no dropout, checkpointing, and that nothing else is trained."""
    training, longest = config.training, config.data.max_length
    roles = [role for role in (*models.trained.roles, models.reference) if role is not None]
    if training.packing is not False:
        reason = choose_layout(roles, longest)
        if reason and training.packing:
            raise ConfigError(f"training.packing: {reason}; leave it out")
        models.packed = reason is None
    for scorer in models.scorers():
        scorer.max_tokens = NO_GRADIENT * training.microbatch_tokens
        scorer.packed = training.packing is not False and choose_layout(scorer.members, longest) is None
    for role in roles:
        role.checkpointed = training.gradient_checkpointing
    for module in (models.trained, *models.frozen()):
        module.eval()
        switch_off_dropout(module)
    for module in models.frozen():
        module.requires_grad_(False)


def _separate(config: PPOStageConfig, sources: dict[str, ModelSource], tokenizer: PreTrainedTokenizerBase) -> Assembly:
    """Each role a model of its own; but where an adapter is trained, what it goes on is the reference too."""
    model, options = config.model, policy_options(config.model)
    init = sources["init"]
    trained = methods.load_trainable(init, tokenizer, options)
    base = methods.base_of(init, options)
    if isinstance(trained, PeftModel):
        policy = Role(trained, POLICY)
        reference = Role(trained, None)
        if methods.continues(init, options):
            add_adapter(trained, REFERENCE, init.path, trainable=False)
            reference = Role(trained, REFERENCE)
    else:
        policy = reference = Role(trained)
    if model.reference is not None or base is None:
        reference = Role(load_policy(sources["reference"], how_to_load(model)))
        fit_embeddings(reference.base, tokenizer)
        reference.model.requires_grad_(False)
    critic = None
    if config.ppo.has_critic:
        kind = critic_kind(model)
        if kind == "trunk":
            critic = Role(policy.model, policy.adapter, new_head(policy))
        elif kind == "separate":
            critic = _separate_critic(sources["value"], how_to_load(model))
        else:
            reference, critic = _adapter_beside(reference, model, sources)
    reward = None
    if "reward" in sources:
        reward = load_scorer(sources["reward"], tokenizer, how_to_load(model), **combination(model))
    return Assembly(policy, reference, critic, reward, base)


def _adapter_beside(reference: Role, config: ModelsConfig, sources: Mapping[str, ModelSource]) -> tuple[Role, Role]:
    """An adapter on the weights that are frozen anyway, those of the reference, and the reference beside it: a new one,
    or that of `model.value_init`."""
    if config.value_init is not None:
        source, below = sources["value"], frozen_below(reference, sources)
        if source.base is None or digest(source.base) != digest(below):
            raise ModelError(
                f"model.value_init: {source.label} is no adapter on {below.label}, which the critic is to go on; take "
                "value_init out, or set model.value=separate"
            )
        adapted, head = add_reward_adapter(reference.model, VALUE, source, trainable=True)
        return Role(adapted, reference.adapter), Role(adapted, VALUE, head).rescale_head()
    options = critic_options(config)
    adapted = add_adapter(reference.model, VALUE, methods.adapter_config(reference.base, options), trainable=True)
    return Role(adapted, reference.adapter), Role(adapted, VALUE, new_head(reference))


def critic_options(config: ModelsConfig) -> ModelConfig:
    """How a critic that is an adapter is trained: as the policy where that is one, else by LoRA."""
    options = policy_options(config)
    return options if options.method in ADAPTERS else options.model_copy(update={"method": "lora"})


def frozen_below(reference: Role, sources: Mapping[str, ModelSource]) -> ModelSource:
    """The whole model that an adapter beside the reference goes on: the reference, or what that is an adapter on."""
    source = sources["reference"]
    is_adapter = reference.adapter == REFERENCE and source.base is not None
    return source.base if is_adapter and source.base is not None else source


def _shared(config: PPOStageConfig, sources: dict[str, ModelSource], tokenizer: PreTrainedTokenizerBase) -> Assembly:
    """One frozen base with an adapter for each role."""
    model, reward = config.model, sources.get("reward")
    init, options = sources["init"], policy_options(model)
    if digest(init) == digest(_shared_base(sources)):
        whole = load_policy(init, options)
        fit_embeddings(whole, tokenizer)
        adapted = add_adapter(whole, POLICY, methods.adapter_config(whole, options), trainable=True)
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
            critic = _separate_critic(sources["value"], how_to_load(model))
        else:
            _, head = add_reward_adapter(adapted, VALUE, sources["value"], trainable=True)
            critic = Role(adapted, VALUE, head).rescale_head()
    if reward is None:
        return Assembly(policy, reference, critic, None, base)
    members = []
    for number in range(num_members(reward)):
        name = f"{REWARD}-{number}"
        _, head = add_reward_adapter(adapted, name, reward, trainable=False, member=number)
        members.append(Role(adapted, name, head))
    ensemble = RewardEnsemble([], len(members), **combination(model)) if is_ensemble(reward) else None
    return Assembly(policy, reference, critic, RewardModel(members, ensemble), base)


def _shared_base(sources: Mapping[str, ModelSource]) -> ModelSource:
    """What all adapters are on: the reward model's base; without a reward model the policy's, or the policy itself."""
    reward, init = sources.get("reward"), sources["init"]
    base = init.base if reward is None else reward.base
    return init if base is None else base


def _check_shared(
    config: PPOStageConfig, sources: Mapping[str, ModelSource], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse roles that are not adapters on one base.

    Raises:
        ModelError, ConfigError: says which base each has, and what to do.
    """
    model, reward, init = config.model, sources.get("reward"), sources["init"]
    separate = "or hold them apart (model.mode=separate)"
    if reward is not None and reward.base is None:
        raise ModelError(
            f"model.mode=shared: {reward.label} is a whole model; name one that is an adapter on the policy's base "
            f"(python -m reward ... model.name={model.policy} model.method=lora), {separate}"
        )
    base = _shared_base(sources)
    continued = init.base is not None and digest(init.base) == digest(base)
    if digest(init) != digest(base) and not continued:
        assert reward is not None
        raise ModelError(
            f"model.mode=shared: {reward.label} is an adapter on {base.label}, which is neither {init.label} "
            f"nor what that goes on; train a reward model on {init.label}, {separate}"
        )
    used = init.trained if continued else policy_options(model)
    if reward is not None and used and reward.trained and used.quantized != reward.trained.quantized:
        raise ModelError(
            f"model.mode=shared: of {reward.label} and the policy one is trained on 4-bit weights and the other is "
            f"not; use model.method=qlora for both or for neither, {separate}"
        )
    for role in ("reward", "value"):
        source = sources.get(role)
        if source is None or (role == "value" and critic_kind(model) != "adapter"):
            continue
        if source.base is None or digest(source.base) != digest(base):
            raise ModelError(f"model.value_init: {source.label} is no adapter on {base.label}; {separate}")
        if not same_tokens(tokenizer, load_tokenizer(source, how_to_load(model))):
            raise ModelError(
                f"model.mode=shared: {source.label} has another vocabulary or chat template than {init.label}; all "
                f"roles read the same tokens: train it from {init.label}, {separate}"
            )
    if model.reference is not None:
        raise ConfigError(
            "model.reference: in shared mode the reference is the policy as it starts; take the key out, " + separate
        )
    if model.offload:
        raise ConfigError("model.offload: in shared mode the frozen roles are the policy's own base; take it out")
    if policy_options(model).method == "full":
        raise ConfigError(f"model.method=full trains the base that all roles share; use model.method=lora, {separate}")
    if continued and (model.adapter or model.method not in (None, init.trained and init.trained.method)):
        raise ConfigError(f"model.method: {init.label} is an adapter, which is trained on; take method and adapter out")


def digest(source: ModelSource) -> str | None:
    """Of a model as a base."""
    return source.as_base().digest


def new_head(role: Role) -> ScoreHead:
    """A head whose values are 0 until it has learned: any other start would be noise in the first advantages."""
    head = ScoreHead(body_width(role.base.config))
    torch.nn.init.zeros_(head.weight)
    return head


def _separate_critic(source: ModelSource, options: ModelConfig) -> Role:
    scalar = load_member(source, 0, options)
    if scalar.is_encoder:
        raise ModelError(
            f"model.value_init: {source.label} is an encoder ({type(scalar.model).__name__}), which reads a text as a "
            "whole and gives no value before each token; name a decoder's reward model, or set model.value=trunk"
        )
    return Role(scalar.model, head=scalar.model.score).rescale_head()


def _rows(model: PreTrainedModel) -> int:
    """Tokens that a model can embed."""
    return int(model.get_input_embeddings().num_embeddings)


def load_scorer(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, options: ModelConfig, **combine: Any
) -> RewardModel:
    """A reward model or ensemble, which reads the policy's tokens if it has the same ones, else the text."""
    loaded = load_reward_model(source, options, **combine)
    own = load_tokenizer(source, options)
    first = loaded if isinstance(loaded, ScalarModel) else loaded.member(0)
    # One tokenizer does not make one vocabulary: tokens added to the policy's are unknown to a reward model before it.
    if first.is_encoder or not same_tokens(tokenizer, own) or _rows(first.model) < vocabulary_of(tokenizer):
        found = positions(source.config_path, options.trust_remote_code)
        return RewardModel(
            text_model=loaded, tokenizer=own, max_positions=found[0] if found is not None and not found[1] else None
        )
    if isinstance(loaded, ScalarModel):
        return RewardModel([Role(loaded.model, head=loaded.model.score)])
    return RewardModel(ensemble_roles(loaded), loaded)


def ensemble_roles(ensemble: RewardEnsemble) -> list[Role]:
    """A role for each member; of members that are adapters the one body with another adapter and head."""
    (adapted,) = ensemble._adapted
    if adapted is None:
        members = [ensemble.member(number) for number in range(ensemble.size)]
        return [Role(member.model, head=member.model.score) for member in members]
    heads = ensemble.member(0).model.score.modules_to_save
    return [Role(adapted, member_name(number), heads[member_name(number)]) for number in range(ensemble.size)]


def combination(config: ModelsConfig) -> dict[str, Any]:
    """How an ensemble combines its members' scores, as `load_reward_model` takes it."""
    if isinstance(config.reward_ensemble, float):
        return {"combine": "mean_minus_std", "std_coefficient": config.reward_ensemble}
    return {"combine": config.reward_ensemble or "mean"}
