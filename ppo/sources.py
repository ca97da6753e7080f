"""Where the models of a run are, and whether they fit together; known before any of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from alignment.errors import ConfigError, ModelError, did_you_mean
from alignment.models.reward_files import is_ensemble, saved_heads
from alignment.models.same_tokenizer import same_tokens
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import TemplateError
from ppo.config import ModelsConfig, PPOStageConfig
from ppo.options import critic_kind, how_to_load, policy_options

SCORERS = ("reward", "held_out_reward")


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
    heads = [weights_of_heads(model, sources[role], role) for role in SCORERS if role in sources]
    if model.reward_weights and not any(heads):
        raise ModelError(
            f"model.reward_weights is of the heads of a reward model, and {sources['reward'].label} has one score; "
            "take it out, or train one with reward.attributes"
        )
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
        instead = sources["reward"].label + " is a single reward model" if "reward" in sources else "there is no reward"
        raise ModelError(
            f"model.reward_ensemble={model.reward_ensemble}: {instead}; take the key out, or name an ensemble "
            "(python -m reward ... training.members=3)"
        )
    return sources


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


def shared_base(sources: Mapping[str, ModelSource]) -> ModelSource:
    """The base of all adapters: the reward model's base; without a reward model the policy's, or the policy itself."""
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
    base = shared_base(sources)
    continued = init.base is not None and base_digest(init.base) == base_digest(base)
    if base_digest(init) != base_digest(base) and not continued:
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
        if source.base is None or base_digest(source.base) != base_digest(base):
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


def weights_of_heads(config: ModelsConfig, source: ModelSource, key: str) -> list[float]:
    """The weight of each head of a reward model in the score; empty for one score.

    Raises:
        ModelError: `model.reward_weights` names other heads than it has, or none.
    """
    heads, weights = saved_heads(source), config.reward_weights
    if not heads:
        return []
    if not weights:
        example = ", ".join(f"{name}: 1.0" for name in heads)
        raise ModelError(
            f"model.{key}: {source.label} has a score for each of {', '.join(heads)}; say how they make one, as "
            f"model.reward_weights='{{{example}}}' (0: the head is logged, and may be constrained)"
        )
    for name in weights:
        if name not in heads:
            raise ModelError(
                f"model.reward_weights: {source.label} (model.{key}) has no head {name!r}; it has {', '.join(heads)}"
                + did_you_mean(name, heads)
            )
    missing = [name for name in heads if name not in weights]
    if missing:
        raise ModelError(
            f"model.reward_weights: {source.label} (model.{key}) has the head {missing[0]!r} too; give it a weight (0: "
            "it is logged, and may be constrained)"
        )
    return [weights[name] for name in heads]


def base_digest(source: ModelSource) -> str | None:
    """The digest of a model as a base of adapters."""
    return source.as_base().digest
