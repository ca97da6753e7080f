"""Several adapters on one frozen base, one active at a time: four PPO roles in the memory of one model.

PEFT's `set_adapter` and `disable_adapter` also make the active adapter trainable and freeze the rest. Here activity and
training are separate: `add_adapter` fixes which adapters are trained, `using` selects the one a forward pass runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from alignment.errors import ConfigError
from alignment.models import adapters, saved_adapters
from alignment.models.adapters import AdapterError
from alignment.models.ensembles import adapter_files
from alignment.models.scalar import HEAD_WEIGHT, ScoreHead, load_head
from alignment.models.sources import ModelSource
from alignment.models.trainable import blocks

State = tuple[Any, bool]
"""The active adapters of a layer, and whether adapters are disabled."""


# --- adding adapters -----------------------------------------------------------------------------------------------


def add_adapter(
    model: PreTrainedModel | PeftModel, name: str, adapter: PeftConfig | str, *, trainable: bool
) -> PeftModel:
    """Add an adapter, new or from a published adapter's folder without its head.

    The active adapter and the trained parameters of the other adapters do not change; the first adapter is active.

    Args:
        model: the base, whose layers are replaced in place and whose weights are frozen; or an earlier call's result.
        name: a name without a dot that no other adapter has.
        adapter: the config of a new one (see `trainable.adapter_config`), or a folder.

    Raises:
        AdapterError: the adapter does not fit the base, or is of a kind that cannot share one.
        ConfigError: a new adapter does not fit the base.
    """
    _check_kind(adapter)
    flags = [(p, p.requires_grad) for p in model.parameters()] if isinstance(model, PeftModel) else []
    training = model.training
    if isinstance(adapter, str):
        adapted = adapters.put_on(model, adapter, name=name, trainable=trainable, with_head=False)
    else:
        try:
            if isinstance(model, PeftModel):
                model.add_adapter(name, adapter)
            adapted = model if isinstance(model, PeftModel) else get_peft_model(model, adapter, adapter_name=name)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(f"model.adapter: {str(error).splitlines()[0]}") from error
    for parameter, flag in flags:  # PEFT makes the active adapter trainable exactly if the new one is
        parameter.requires_grad_(flag)
    adapted.set_requires_grad(name, trainable)
    _ADAPTED_LAYERS.pop(adapted, None)  # the same name may be used again on other layers
    return adapted.train(training)  # new dropout layers start in training mode


def add_reward_adapter(
    model: PreTrainedModel | PeftModel, name: str, source: ModelSource, *, trainable: bool, member: int = 0
) -> tuple[PeftModel, ScoreHead]:
    """Add the adapter of a published reward model; returns the model and the separate score head with its bias, or
    with one score for each of its attributes.

    Raises:
        AdapterError: as `add_adapter`.
        ModelError: the version is damaged.
    """
    folder, bias = adapter_files(source, member)
    adapted = add_adapter(model, name, folder, trainable=trainable)
    return adapted, load_head(folder, bias).requires_grad_(trainable)


def save_adapter(
    model: PeftModel, name: str, folder: Path, state: dict[str, Tensor] | None = None, head: Tensor | None = None
) -> None:
    """Write one adapter as `python -m sft` publishes it; PEFT would write it to a sub-folder of its name.

    Args:
        state: the model's state dict, if its parameters are sharded.
        head: the weight of a score head, (1, H): the adapter is then written as `python -m reward` publishes one.
    """
    weights = get_peft_model_state_dict(model, state, adapter_name=name, save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config[name])
    config.inference_mode = True
    if head is not None:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        weights = weights | {HEAD_WEIGHT: head}
    config.save_pretrained(folder)
    tensors = {key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
    save_file(tensors, folder / saved_adapters.WEIGHTS, metadata={"format": "pt"})


def adapter_parameters(model: PeftModel, name: str) -> list[nn.Parameter]:
    """The parameters of one adapter, in the order of the layers."""
    return [
        parameter
        for layer in _layers(model)
        for kind in dict.fromkeys(layer.adapter_layer_names)  # DoRA's name is listed once per adapter
        for key, part in getattr(layer, kind).items()
        if key == name
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    ]


def _check_kind(adapter: PeftConfig | str) -> None:
    where = adapter if isinstance(adapter, str) else "model.adapter"
    config = adapters.read_config(adapter) if isinstance(adapter, str) else adapter
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise AdapterError(
            f"{where}: an adapter of the kind {kind} shares its base with no other one; use LoRA, DoRA, rsLoRA or "
            "QLoRA, or a model for each role (model.mode=separate)"
        )
    if getattr(config, "bias", "none") != "none":
        raise AdapterError(
            f"{where}: bias={config.bias} trains the base's own biases, which other adapters share; use bias=none, or "
            "a model for each role (model.mode=separate)"
        )


# --- the active adapter --------------------------------------------------------------------------------------------


@contextmanager
def using(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run forward passes with one adapter, or with None the bare base; the previous state is restored at the end.

    No parameter's `requires_grad` changes. Activation checkpointing repeats a forward pass in backward, outside the
    context: see `checkpoint_kwargs`.
    """
    assert name is None or name in model.peft_config, f"{name!r} is none of {sorted(model.peft_config)}"
    layers = _layers(model)
    with _switched(layers, ([name] if name else _state(layers)[0], name is None)):
        yield


def _layers(model: nn.Module) -> list[Any]:
    """The layers with adapters, cached, since finding them takes longer than a small model's forward pass."""
    names = set(getattr(model, "peft_config", ()))
    known, layers = _ADAPTED_LAYERS.get(model, (set(), []))
    if not names or names != known:
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        _ADAPTED_LAYERS[model] = (names, layers)
    return layers


_ADAPTED_LAYERS: WeakKeyDictionary[nn.Module, tuple[set[str], list[Any]]] = WeakKeyDictionary()


def _state(layers: Sequence[Any]) -> State:
    """The state of all layers, read directly, since PEFT's setters change `requires_grad` too."""
    return (layers[0]._active_adapter, layers[0]._disable_adapters) if layers else ([], False)


@contextmanager
def _switched(layers: Sequence[Any], state: State) -> Iterator[None]:
    before = _state(layers)
    if before == state:
        yield
        return
    try:
        _switch(layers, state)
        yield
    finally:
        _switch(layers, before)


def _switch(layers: Sequence[Any], state: State) -> None:
    for layer in layers:  # bypass Module.__setattr__, which would take most of the time
        layer.__dict__["_active_adapter"], layer.__dict__["_disable_adapters"] = state


# --- activation checkpointing --------------------------------------------------------------------------------------


def checkpoint_kwargs(model: nn.Module) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` that recompute a layer with the adapter of its forward pass.

    Without them it is recomputed with the adapter that is active in backward, and the forward pass's adapter silently
    gets no gradient. They also serve `activation_checkpointing_enable`, which does nothing in eval mode: see
    `checkpointing`. Call this once all adapters are on the model.
    """
    layers = _layers(model)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        state = _state(layers)
        return _switched(layers, state), _switched(layers, state)

    return {"use_reentrant": False, "context_fn": contexts}


@contextmanager
def checkpointing(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Activation checkpointing: forward passes keep only each layer's input, and backward recomputes the layer.

    It works in eval mode too, where transformers' own checkpointing is silently off. Generation must be outside the
    context; backward may be.
    """
    layers, arguments = blocks(adapters.without_adapter(model)), checkpoint_kwargs(model)
    # accelerate's hooks set `forward` on the instance.
    originals: list[Callable[..., Any] | None] = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, **arguments)
        yield
    finally:
        for layer, forward in zip(layers, originals, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
