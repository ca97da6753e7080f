"""Making a model trainable by `model.method`."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.distributed import zero3
from alignment.errors import ConfigError
from alignment.models import adapters
from alignment.models.classifiers import AnyClassifier
from alignment.models.methods import METHODS, adapter_arguments
from alignment.models.policies import load_base, load_policy
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def continues(source: ModelSource, config: ModelConfig) -> bool:
    """Whether training continues the published adapter of `source`, which needs the same method and arguments.

    Otherwise training starts from `source` merged.
    """
    if source.trained is None or "continue" in METHODS[config.method].fails:
        return False
    return all(
        getattr(source.trained, key) == getattr(config, key) for key in ("method", "adapter", "quantized", "merge")
    )


def base_of(source: ModelSource, config: ModelConfig) -> ModelSource | None:
    """The base of the adapter to train; None if the method trains no adapter."""
    if config.method not in ADAPTERS:
        return None
    return source.base if continues(source, config) else source


def load_trainable(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, config: ModelConfig
) -> PreTrainedModel | PeftModel:
    """The policy of `source`, in which only the parameters that `model.method` trains require gradients.

    Raises:
        ModelError, AdapterError: as `load_policy`.
        ConfigError: the method does not fit this model.
    """
    # LoHa reads the shape of each weight, which is empty once ZeRO-3 has partitioned it.
    with zero3.unpartitioned_loading() if config.method == "loha" else nullcontext():
        if continues(source, config):
            return adapters.saved_alone(adapters.put_on(load_base(source, config), source.path, trainable=True))
        policy = load_policy(source, config)
        fit_embeddings(policy, tokenizer)
        return apply_method(policy, config)


def apply_method(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel | PeftModel:
    """Freeze the parameters that `model.method` does not train and add its adapter; the model is changed in place.

    Raises:
        ConfigError: the method or one of its arguments does not fit this model.
    """
    if config.method == "full":
        return model
    if config.method == "head":
        return _only_head(model, config.last_n_layers)
    from peft import get_peft_model  # takes seconds, and only an adapter needs it

    try:
        return adapters.saved_alone(get_peft_model(model, adapter_config(model, config)))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"model.adapter: {str(error).splitlines()[0]}") from error


def adapter_config(model: PreTrainedModel, config: ModelConfig) -> PeftConfig:
    """The config of a new adapter of `model.method` for a model, which may have other adapters already.

    Raises:
        ConfigError: PEFT does not have an argument, or cannot use it.
    """
    import peft  # as above

    cls = getattr(peft, METHODS[config.method].peft_config or "")
    arguments = {**_targets(model, config), **adapter_arguments(config)}
    arguments["task_type"] = "SEQ_CLS" if model.get_output_embeddings() is None else "CAUSAL_LM"
    if config.method == "adalora":
        arguments["total_step"] = 2**31  # a placeholder until the number of steps is known: see AdaLoraCallback
    if hasattr(cls, "fan_in_fan_out"):
        arguments["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in blocks(model).modules())
    try:
        adapter: PeftConfig = cls(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"model.adapter: {str(error).splitlines()[0]}") from error
    return adapter


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers, first to last: the module list of that length with the most weights in it.

    Raises:
        ConfigError: the model has no such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ConfigError(f"model.method: no list of {count} transformer layers in {type(model).__name__}")
    return max(lists, key=lambda module: sum(1 for _ in module.parameters()))


def _targets(model: PreTrainedModel, config: ModelConfig) -> dict[str, Any]:
    """The adapter's target modules: every linear layer of the transformer layers, never the output head.

    IA3 scales keys, values and the inner activations (Liu et al. 2022). If PEFT does not know their names in an
    architecture, all outputs are scaled, except that layers projecting back to the hidden size scale their inputs.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS  # as above

    if "target_modules" in config.adapter:
        return {}
    if config.method == "ia3" and model.config.model_type in IA3_TARGETS:
        return {}  # PEFT's own choice
    layers = blocks(model)
    inside = {id(module) for module in layers.modules()}
    linear = _linear_layers(model)
    names = {name.rpartition(".")[2]: m for name, m in linear if id(m) in inside}
    if any(id(m) not in inside and name.rpartition(".")[2] in names for name, m in linear):
        names = {name: m for name, m in linear if id(m) in inside}  # a head of the same name must not match
    targets: dict[str, Any] = {"target_modules": sorted(names)}
    if config.method == "ia3":
        hidden = model.config.get_text_config().hidden_size
        targets["feedforward_modules"] = sorted(name for name, m in names.items() if _projects_back(m, hidden))
    return targets


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each linear layer with its name; for a layer with adapters, the base layer under the wrapper's name."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # as above

    layers: list[tuple[str, nn.Module]] = []
    adapted = ""
    for name, module in model.named_modules():
        if adapted and name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted, module = f"{name}.", module.get_base_layer()
        if isinstance(module, (nn.Linear, Conv1D)):
            layers.append((name, module))
    return layers


def _projects_back(layer: nn.Module, hidden: int) -> bool:
    inputs, outputs = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    return bool(outputs == hidden != inputs)


def _only_head(model: PreTrainedModel, last_n_layers: int) -> PreTrainedModel:
    """Freeze all but the output head and the last layers.

    A head that is tied to the input embeddings gets weights of its own, so that these are not trained with it.
    """
    layers, head = blocks(model), model.get_output_embeddings() or getattr(model, "score", None)
    if head is None:
        raise ConfigError(f"model.method=head: {type(model).__name__} has no output head")
    if last_n_layers > len(layers):
        raise ConfigError(f"model.last_n_layers={last_n_layers}: this model has {len(layers)} layers")
    if head.weight is model.get_input_embeddings().weight:
        with zero3.gathered_parameters(head.weight):
            head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    model.requires_grad_(False)
    for trained in (head, *layers[len(layers) - last_n_layers :]):
        trained.requires_grad_(True)
    return model


def skeleton(shape: PreTrainedConfig, config: ModelConfig, *, scalar: bool = False) -> nn.Module:
    """A model of that shape on the meta device, with the parameters that `model.method` trains.

    Args:
        scalar: whether it is a classifier with one number per token.

    Raises:
        ConfigError: the method does not fit this model.
    """
    shape = copy.deepcopy(shape)
    shape.num_labels = 1  # used by scalar models only
    kind: Any = AnyClassifier if scalar else AutoModelForCausalLM
    with zero3.on_meta_device():
        model = kind.from_config(shape, trust_remote_code=config.trust_remote_code)
        return apply_method(model, config)


def describe(model: nn.Module) -> dict[str, Any]:
    """The number of parameters, of trained parameters, and of AdaLoRA's ranks over all layers."""
    counts: dict[str, Any] = {"parameters": 0, "trained_parameters": 0}
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        count *= 2 if type(parameter).__name__ == "Params4bit" else 1  # a byte holds two parameters
        counts["parameters"] += count
        counts["trained_parameters"] += count if parameter.requires_grad else 0
    tuner = getattr(model, "base_model", None)
    if type(tuner).__name__ == "AdaLoraModel":  # PEFT's, which may not have been imported
        assert tuner is not None
        kept = tuner.peft_config["default"].rank_pattern
        ranks = (
            [sum(rank) for rank in kept.values()]
            if kept
            else [len(weight) for name, weight in model.named_parameters() if ".lora_E." in name]
        )
        counts["ranks"] = sum(ranks)
    return counts
