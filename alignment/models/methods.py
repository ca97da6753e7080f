"""What is trained of a model: all of it, its output head, or one of eight adapters; and what works with what.

`METHODS` is the one table: defaults, and for each method the settings in which it does not work, with the reason.
`check` asks it before anything is loaded, `docs/methods.md` is written from it.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.pytorch_utils import Conv1D

from alignment.config.arguments import trainer_arguments
from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.distributed import zero3
from alignment.errors import ConfigError
from alignment.models import adapters
from alignment.models.policies import load_base, load_policy
from alignment.models.sources import ModelSource
from alignment.models.tokenizers import fit_embeddings

SETTINGS = {
    "DDP": "several processes without DeepSpeed",
    "ZeRO-2": "DeepSpeed shards optimizer state and gradients (or, as ZeRO-1, the state alone)",
    "ZeRO-3": "DeepSpeed shards the weights too",
    "nf4": "frozen weights in 4 bits",
    "continue": "a published adapter is trained on, instead of being merged under a new one",
    "resume": "a run that was killed goes on to the last bit (`--resume auto`)",
    "LoRA beside": "a trainable LoRA on the same frozen base, as PPO's `model.mode: shared` has it for the critic",
    "mixed batch": "rows of one batch with different adapters (PEFT's `adapter_names`)",
}


@dataclass(frozen=True)
class Method:
    """One way to train. `fails` has each of SETTINGS in which it does not work, with the reason."""

    summary: str
    learning_rate: float | None = None
    """Used when the user gives none; None: the stage's own."""
    peft_config: str | None = None
    """Name of PEFT's config class; None: no adapter."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)


_NO_ADAPTER = {
    "nf4": "rounded weights cannot be trained, only an adapter on them",
    **dict.fromkeys(("continue", "LoRA beside", "mixed batch"), "there is no adapter"),
}
_LORA = {"r": 16, "lora_alpha": 32}
_ALONE = {
    "LoRA beside": "PEFT mixes no other kind with it",
    "mixed batch": "PEFT passes over `adapter_names` in silence",
}
_LYCORIS = {"nf4": "PEFT cannot put it on 4-bit layers", **_ALONE}
_INSIDE_BACKWARD = "DeepSpeed steps inside backward, so the gradients that ranks are chosen by are gone"

# Learning rates: LoRA's best is about ten times that of full fine-tuning (Schulman et al. 2025, "LoRA Without
# Regret"); 2e-4 is QLoRA's for 7B and 13B (Dettmers et al. 2023), 3e-3 IA3's (Liu et al. 2022), 5e-4 at the lower end
# of AdaLoRA's (Zhang et al. 2023). rsLoRA scales by alpha / sqrt(r): 4 with alpha = r = 16; LoRA's alpha / r is 2.
METHODS: dict[str, Method] = {
    "full": Method("every weight", fails=_NO_ADAPTER),
    "head": Method("the output head, and the last `last_n_layers` layers, on a frozen body", 1e-4, fails=_NO_ADAPTER),
    "lora": Method("low-rank updates of every linear layer", 2e-4, "LoraConfig", _LORA),
    "dora": Method(
        "LoRA that learns each column's length apart from its direction",
        2e-4,
        "LoraConfig",
        {**_LORA, "use_dora": True},
        {"mixed batch": "PEFT refuses `adapter_names`"},
    ),
    "rslora": Method(
        "LoRA scaled by alpha / sqrt(r), for high ranks",
        1e-4,
        "LoraConfig",
        {"r": 16, "lora_alpha": 16, "use_rslora": True},
    ),
    "adalora": Method(
        "LoRA whose ranks shrink where they matter least",
        5e-4,
        "AdaLoraConfig",
        {"init_r": 12, "target_r": 8, "lora_alpha": 32},
        {
            **dict.fromkeys(("ZeRO-2", "ZeRO-3"), _INSIDE_BACKWARD),
            "continue": "its ranks have been cut and its schedule has ended",
            "LoRA beside": "PEFT allows one alone",
            "mixed batch": "PEFT refuses `adapter_names`",
        },
    ),
    "qlora": Method("LoRA on weights in 4 bits (NF4, quantized twice)", 2e-4, "LoraConfig", _LORA),
    "ia3": Method("scales of keys, values and inner activations", 3e-3, "IA3Config", fails=_ALONE),
    "loha": Method("Hadamard products of low-rank matrices", 2e-4, "LoHaConfig", {"r": 8, "alpha": 8}, _LYCORIS),
    "lokr": Method("Kronecker products", 2e-4, "LoKrConfig", {"r": 8, "alpha": 8}, _LYCORIS),
}
NEAREST = ("lora", "qlora", "full")
ADVICE = (
    "advice: model.method={} under ZeRO-3 sends the whole frozen base to every process for each pass, to train a small "
    "adapter; where one device holds the base, launch with configs/accelerate/zero2.yaml"
)

_REWRITES = "it rewrites the base's weights, and the adapter would not fit the base on record"
OWNED = {
    **dict.fromkeys(
        ("peft_type", "task_type", "auto_mapping", "peft_version", "revision", "base_model_name_or_path"), "PEFT's own"
    ),
    **dict.fromkeys(("inference_mode", "fan_in_fan_out"), "it follows from the model"),
    **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "lora_ga_config", "layer_replication"), _REWRITES),
    **dict.fromkeys(
        ("modules_to_save", "trainable_token_indices"),
        "an adapter version holds the adapter alone; to train whole layers, set model.method=head",
    ),
    "use_dora": "set model.method=dora",
    "use_rslora": "set model.method=rslora",
    "total_step": "it is counted from the data",
}


# --- before anything is loaded -------------------------------------------------------------------------------------


def check(config: ModelConfig, zero_stage: int = 0) -> None:
    """Refuse a method that does not work as it would be run, with the nearest one that does; advise against one that
    does and is slow.

    Raises:
        ConfigError: one line: the setting, the reason, what to use instead; or an argument that PEFT does not have.
    """
    asked = [f"ZeRO-{max(zero_stage, 2)}"] * bool(zero_stage) + ["nf4"] * config.quantized
    for setting in asked:
        if reason := METHODS[config.method].fails.get(setting):
            nearest = next(name for name in NEAREST if not set(asked) & set(METHODS[name].fails))
            raise ConfigError(
                f"model.method={config.method} does not work with {setting}: {reason}; use model.method={nearest}"
            )
    if config.method in ADAPTERS:
        _adapter_arguments(config)
        if zero_stage == 3:
            print(ADVICE.format(config.method), file=sys.stderr)


def with_learning_rate(defaults: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A stage's default arguments with the method's learning rate, where it has one of its own."""
    rate = METHODS[config.method].learning_rate
    return {**defaults, **({"learning_rate": rate} if rate else {})}


def _adapter_arguments(config: ModelConfig) -> dict[str, Any]:
    method = METHODS[config.method]
    assert method.peft_config
    cls = getattr(peft, method.peft_config)
    arguments = trainer_arguments(cls, method.defaults, config.adapter, OWNED, "model.adapter")
    if arguments.get("init_lora_weights", True) not in (True, "gaussian", "orthogonal"):
        raise ConfigError(f"model.adapter.init_lora_weights={arguments['init_lora_weights']}: {_REWRITES}")
    return arguments


# --- making a model trainable --------------------------------------------------------------------------------------


def continues(source: ModelSource, config: ModelConfig) -> bool:
    """Whether training goes on with the very adapter of `source`: a published one, of the same method and arguments.

    Otherwise what is trained starts from `source` merged.
    """
    if source.trained is None or "continue" in METHODS[config.method].fails:
        return False
    return all(
        getattr(source.trained, key) == getattr(config, key) for key in ("method", "adapter", "quantized", "merge")
    )


def base_of(source: ModelSource, config: ModelConfig) -> ModelSource | None:
    """The model that the adapter to be trained goes on; None where no adapter is trained."""
    if config.method not in ADAPTERS:
        return None
    return source.base if continues(source, config) else source


def load_trainable(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, config: ModelConfig
) -> PreTrainedModel | PeftModel:
    """The policy of `source`, in which just what `model.method` trains requires gradients.

    Raises:
        ModelError, AdapterError: as `load_policy`.
        ConfigError: the method does not fit this model.
    """
    # LoHa reads the shape of each weight, which is empty where ZeRO-3 has parted it.
    with zero3.unpartitioned_loading() if config.method == "loha" else nullcontext():
        if continues(source, config):
            return adapters.saved_alone(adapters.put_on(load_base(source, config), source.path, trainable=True))
        policy = load_policy(source, config)
        fit_embeddings(policy, tokenizer)
        return apply_method(policy, config)


def apply_method(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel | PeftModel:
    """Freeze what `model.method` does not train and add what it does; the model is changed in place.

    Raises:
        ConfigError: the method or one of its arguments does not fit this model.
    """
    if config.method == "full":
        return model
    if config.method == "head":
        return _only_head(model, config.last_n_layers)
    try:
        return adapters.saved_alone(get_peft_model(model, adapter_config(model, config)))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"model.adapter: {str(error).splitlines()[0]}") from error


def adapter_config(model: PreTrainedModel, config: ModelConfig) -> PeftConfig:
    """The config of a new adapter of `model.method` for a model, on which there may be others already.

    Raises:
        ConfigError: an argument that PEFT does not have, or cannot use.
    """
    cls = getattr(peft, METHODS[config.method].peft_config or "")
    arguments = {**_targets(model, config), **_adapter_arguments(config)}
    arguments["task_type"] = "SEQ_CLS" if model.get_output_embeddings() is None else "CAUSAL_LM"
    if config.method == "adalora":
        arguments["total_step"] = 2**31  # the dataloader's, once there is one: see AdaLoraCallback
    if hasattr(cls, "fan_in_fan_out"):
        arguments["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in blocks(model).modules())
    try:
        made: PeftConfig = cls(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"model.adapter: {str(error).splitlines()[0]}") from error
    return made


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers, first to last: the module list of that length with the most weights in it.

    Raises:
        ConfigError: there is none.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not found:
        raise ConfigError(f"model.method: no list of {count} transformer layers in {type(model).__name__}")
    return max(found, key=lambda module: sum(1 for _ in module.parameters()))


def _targets(model: PreTrainedModel, config: ModelConfig) -> dict[str, Any]:
    """Every linear layer of the transformer layers, by the last part of its name; never the output head.

    IA3 scales keys, values and the inner activations (Liu et al. 2022). Where PEFT does not know what these are called
    in an architecture, all outputs are scaled, and in place of outputs the inputs of layers that lead back to the
    hidden size from another one.
    """
    if "target_modules" in config.adapter:
        return {}
    if config.method == "ia3" and model.config.model_type in IA3_TARGETS:
        return {}  # PEFT's own choice
    layers = blocks(model)
    inside = {id(module) for module in layers.modules()}
    linear = _linear_layers(model)
    names = {name.rpartition(".")[2]: m for name, m in linear if id(m) in inside}
    if any(id(m) not in inside and name.rpartition(".")[2] in names for name, m in linear):
        names = {name: m for name, m in linear if id(m) in inside}  # a head of the same name must not be hit
    found: dict[str, Any] = {"target_modules": sorted(names)}
    if config.method == "ia3":
        hidden = model.config.get_text_config().hidden_size
        found["feedforward_modules"] = sorted(name for name, m in names.items() if _leads_back(m, hidden))
    return found


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each linear layer by its name; of one that has adapters in it the layer of the base, by the name of the whole."""
    found: list[tuple[str, nn.Module]] = []
    adapted = ""
    for name, module in model.named_modules():
        if adapted and name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted, module = f"{name}.", module.get_base_layer()
        if isinstance(module, (nn.Linear, Conv1D)):
            found.append((name, module))
    return found


def _leads_back(layer: nn.Module, hidden: int) -> bool:
    inputs, outputs = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    return bool(outputs == hidden != inputs)


def _only_head(model: PreTrainedModel, last_n_layers: int) -> PreTrainedModel:
    """Freeze all but the output head and the last layers; a head that shares its weights with the input embeddings
    gets its own, or those would be trained with it."""
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


def skeleton(shape: PreTrainedConfig, config: ModelConfig, kind: type = AutoModelForCausalLM) -> nn.Module:
    """A model of that shape and kind without a weight in it, with what `model.method` trains.

    Raises:
        ConfigError: the method does not fit this model.
    """
    shape = copy.deepcopy(shape)
    shape.num_labels = 1  # of a scalar model
    with torch.device("meta"):
        model = kind.from_config(shape, trust_remote_code=config.trust_remote_code)  # type: ignore[attr-defined]
        return apply_method(model, config)


# --- while it trains -----------------------------------------------------------------------------------------------


def attach(trainer: Trainer, config: ModelConfig) -> None:
    """What a method needs of a trainer that was made with its model."""
    zero3.match_dtype(trainer.model)
    if config.method not in ADAPTERS:
        return
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and config.quantized:
            # TRL rounds the adapter on a quantized model to bfloat16, in which small updates are lost.
            parameter.data = parameter.data.float()
    if config.method == "adalora":
        # A layer that keeps no rank looks to PEFT like one of ZeRO-3's parts, under which AdaLoRA never runs.
        warnings.filterwarnings("ignore", message="Adapter 'default': .* invalid shape")
        trainer.add_callback(AdaLoraCallback(trainer.model, config.adapter))


class AdaLoraCallback(TrainerCallback):
    """Cuts AdaLoRA's ranks; no trainer does, and without it they stay as they are and nothing says so.

    By default no rank is cut in the first tenth of the steps, nor in the last three.
    """

    def __init__(self, model: PeftModel, chosen: Mapping[str, Any]) -> None:
        self._tuner, self._chosen = model.base_model, chosen

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        schedule, steps = self._tuner.peft_config["default"], state.max_steps
        schedule.total_step = steps
        schedule.tinit = self._chosen.get("tinit", steps // 10)
        schedule.tfinal = self._chosen.get("tfinal", 3 * steps // 10)
        if schedule.tinit >= steps - schedule.tfinal:
            raise ConfigError(
                f"model.adapter: tinit={schedule.tinit} and tfinal={schedule.tfinal} leave none of the {steps} steps "
                "to cut ranks in; make them smaller or train longer"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Between the optimizer's step and zero_grad: ranks are chosen by the gradients, which are gone at on_step_end.
        self._tuner.update_and_allocate(state.global_step + 1)


def regularisation(model: nn.Module) -> Tensor | float:
    """What the method adds to the loss: AdaLoRA's orthogonality penalty (Zhang et al. 2023, equation 4), else 0.

    PEFT adds it to the model's own loss, which TRL's trainers do not use.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, peft.AdaLoraModel):
        return 0.0
    apart = []
    for name, weight in tuner.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:  # (r, in), (out, r)
            gram = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            apart.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    return tuner.peft_config["default"].orth_reg_weight * torch.stack(apart).mean()


def describe(model: nn.Module) -> dict[str, Any]:
    """How many parameters there are and how many are trained; AdaLoRA's ranks, summed over its layers."""
    found: dict[str, Any] = {"parameters": 0, "trained_parameters": 0}
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        count *= 2 if type(parameter).__name__ == "Params4bit" else 1  # two to a byte
        found["parameters"] += count
        found["trained_parameters"] += count if parameter.requires_grad else 0
    tuner = getattr(model, "base_model", None)
    if isinstance(tuner, peft.AdaLoraModel):
        kept = tuner.peft_config["default"].rank_pattern
        ranks = (
            [sum(rank) for rank in kept.values()]
            if kept
            else [len(weight) for name, weight in model.named_parameters() if ".lora_E." in name]
        )
        found["ranks"] = sum(ranks)
    return found
