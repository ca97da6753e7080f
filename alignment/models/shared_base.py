"""Several adapters on one frozen base, one at a time active: four roles of PPO in the memory of one model.

PEFT's own `set_adapter` and `disable_adapter` make what they activate trainable and freeze the rest. Here what is
active and what is trained are apart: `add_adapter` says once what is trained, `using` what a forward pass runs.
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
from alignment.models import adapters
from alignment.models.adapters import AdapterError
from alignment.models.ensembles import adapter_files
from alignment.models.scalar import HEAD_WEIGHT, ScoreHead, load_head
from alignment.models.sources import ModelSource
from alignment.models.trainable import blocks

State = tuple[Any, bool]
"""Which adapters a layer runs, and whether it runs none at all."""


# --- putting adapters on -------------------------------------------------------------------------------------------


def add_adapter(
    model: PreTrainedModel | PeftModel, name: str, adapter: PeftConfig | str, *, trainable: bool
) -> PeftModel:
    """One more adapter, new or from a published adapter's folder without its head. Which parameters of the other
    adapters are trained, and which adapter is active, stay as they were; the first adapter is active.

    Args:
        model: the base, whose layers are replaced in place and whose weights are frozen; or what an earlier call made.
        name: without a dot; the name of no other adapter.
        adapter: of a new one, see `trainable.adapter_config`.

    Raises:
        AdapterError: it does not fit the base, or is of a kind that shares no base with others.
        ConfigError: a new one, which does not fit the base.
    """
    _check_kind(adapter)
    trained = [(each, each.requires_grad) for each in model.parameters()] if isinstance(model, PeftModel) else []
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
    for parameter, flag in trained:  # PEFT trains the active adapter just when the new one is to be trained
        parameter.requires_grad_(flag)
    adapted.set_requires_grad(name, trainable)
    _FOUND.pop(adapted, None)  # a name may come back on other layers
    return adapted.train(training)  # a new dropout layer is in training mode


def add_reward_adapter(
    model: PreTrainedModel | PeftModel, name: str, source: ModelSource, *, trainable: bool, member: int = 0
) -> tuple[PeftModel, ScoreHead]:
    """The adapter of a published reward model, and its head with its zero point, which is no part of the base.

    Raises:
        AdapterError: as `add_adapter`.
        ModelError: a damaged version.
    """
    folder, bias = adapter_files(source, member)
    adapted = add_adapter(model, name, folder, trainable=trainable)
    return adapted, load_head(folder, bias).requires_grad_(trainable)


def save_adapter(
    model: PeftModel, name: str, folder: Path, state: dict[str, Tensor] | None = None, head: Tensor | None = None
) -> None:
    """Write one adapter as `python -m sft` publishes it; PEFT would write it to a folder of its name below.

    Args:
        state: the model's state dict, where its parameters are parted among processes.
        head: the weight of a score head, (1, H): the adapter is then written as `python -m reward` publishes one.
    """
    weights = get_peft_model_state_dict(model, state, adapter_name=name, save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config[name])
    config.inference_mode = True
    if head is not None:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        weights = weights | {HEAD_WEIGHT: head}
    config.save_pretrained(folder)
    whole = {key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
    save_file(whole, folder / adapters.WEIGHTS, metadata={"format": "pt"})


def adapter_parameters(model: PeftModel, name: str) -> list[nn.Parameter]:
    """The parameters of one adapter, in the order of the layers."""
    return [
        parameter
        for layer in _layers(model)
        for kind in dict.fromkeys(layer.adapter_layer_names)  # DoRA's is in it once for each adapter
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


# --- which one is active -------------------------------------------------------------------------------------------


@contextmanager
def using(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run one adapter, or with None the bare base, in the forward passes inside; then again what was run before.

    No parameter's `requires_grad` is touched. Under activation checkpointing a forward pass is run again in backward,
    outside: see `checkpoint_kwargs`.
    """
    assert name is None or name in model.peft_config, f"{name!r} is none of {sorted(model.peft_config)}"
    layers = _layers(model)
    with _switched(layers, ([name] if name else _state(layers)[0], name is None)):
        yield


def _layers(model: nn.Module) -> list[Any]:
    """All that runs an adapter. Looking for them takes longer than a small model's forward pass, so they are kept."""
    names = set(getattr(model, "peft_config", ()))
    known, layers = _FOUND.get(model, (set(), []))
    if not names or names != known:
        layers = [each for each in model.modules() if isinstance(each, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        _FOUND[model] = (names, layers)
    return layers


_FOUND: WeakKeyDictionary[nn.Module, tuple[set[str], list[Any]]] = WeakKeyDictionary()


def _state(layers: Sequence[Any]) -> State:
    """What all layers run. PEFT's own setters of these change `requires_grad` too."""
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
    for layer in layers:  # around Module.__setattr__, which would take most of the time
        layer.__dict__["_active_adapter"], layer.__dict__["_disable_adapters"] = state


# --- activation checkpointing --------------------------------------------------------------------------------------


def checkpoint_kwargs(model: nn.Module) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` that run a layer again with the adapter of its forward pass.

    Without them it is run with the adapter that is active in backward: the one of the forward pass gets no gradient,
    and nothing says so. Also for `activation_checkpointing_enable`, which does nothing in eval mode: see
    `checkpointing`. To be called when all adapters are on the model.
    """
    layers = _layers(model)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        state = _state(layers)
        return _switched(layers, state), _switched(layers, state)

    return {"use_reentrant": False, "context_fn": contexts}


@contextmanager
def checkpointing(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Forward passes inside keep the input of each transformer layer alone; backward runs the layer again.

    In eval mode too, in which transformers' own checkpointing is off without a word. Generation belongs outside, and
    so may backward.
    """
    layers, arguments = blocks(adapters.without_adapter(model)), checkpoint_kwargs(model)
    own: list[Callable[..., Any] | None] = [layer.__dict__.get("forward") for layer in layers]  # of accelerate's hooks
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, **arguments)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
