"""Weights of which ZeRO-3 leaves each process a part: whole where they are used, in parts elsewhere.

Without ZeRO-3 each of these does what its name says on whole weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from torch import Tensor, nn

from alignment.distributed.processes import is_main_process, process_index, world_size


@contextmanager
def gathered(*parameters: nn.Parameter, changed: bool = True) -> Iterator[None]:
    """Parameters are whole inside, also where ZeRO-3 holds them in parts; the main process's changes are kept.

    Args:
        changed: False where nothing is, which spares sending all of it again.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if changed else None):
        yield


def is_parted(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds the module's weights in parts, one on each process."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def round_alike(module: nn.Module) -> None:
    """Round what is trained and is still whole, as a new head in float32, as ZeRO-3 has the parts that are trained
    with it: DeepSpeed rounds whole models to bfloat16 itself, and fails on parts of unlike types. Its optimizer keeps
    float32 copies of all."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    parted = [parameter for parameter in trained if hasattr(parameter, "ds_id")]
    for parameter in trained if parted else ():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(parted[0].dtype)


def part(module: nn.Module, *, in_host_memory: bool = False) -> None:
    """Leave each process a part of the weights of a module that is not trained; `whole` puts them together for use.

    The main process's weights become those of all.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, remote_device="cpu" if in_host_memory else None)


@contextmanager
def whole(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Modules have all of their weights inside and run by themselves, also where ZeRO-3 parts them.

    Every process must enter, and is then free: no pass inside is a collective, and processes may make unlike numbers
    of them. The weights are there once on each device until the end, and must not be changed. Those that are whole
    already, in a context around this one, stay so.
    """
    modules = list(modules)
    parted: list[Any] = [p for module in modules for p in module.parameters() if hasattr(p, "ds_id")]
    if not parted:
        yield
        return
    missing = [p for p in parted if p.ds_status.name == "NOT_AVAILABLE"]
    with _without_hooks(modules), gathered(*missing, changed=False):
        yield


@contextmanager
def _without_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """DeepSpeed's engine gathers a submodule's weights before its forward and gives them up after it, whoever calls."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    every = {id(each): each for module in modules for each in module.modules()}.values()
    own = [(each, {name: getattr(each, name) for name in names}) for each in every]
    try:
        for each, hooks in own:
            vars(each).update({name: type(held)() for name, held in hooks.items()})
        yield
    finally:
        for each, hooks in own:
            vars(each).update(hooks)


def own_part(parameter: Any) -> Tensor:
    """What this process holds of a parameter: all of it, or under ZeRO-3 its flat part."""
    part: Tensor = parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter.data
    return part


def own_part_of(parts: Sequence[Tensor], size: int) -> Tensor:
    """This process's part of a parameter of so many numbers, from the parts that some number of processes held."""
    processes = world_size()
    each = -(-size // processes)  # DeepSpeed fills the last part up
    whole = torch.cat([part.flatten() for part in parts])[:size]
    start = process_index() * each
    return torch.nn.functional.pad(whole, (0, each * processes - size))[start : start + each]


@torch.no_grad()
def set_own_part(parameter: Any, value: Tensor) -> None:
    """Write into `own_part`; every process must, before the parameter is used again."""
    own_part(parameter).copy_(value)
    if hasattr(parameter, "ds_id"):
        parameter.partition()  # a small one that DeepSpeed keeps whole beside its part would be the one of before


def whole_weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Copies of parameters in the main process's host memory, nothing on others; every process must call this."""
    found = {}
    for name, parameter in parameters:  # one after the other: together they may not fit
        with gathered(parameter, changed=False):
            if is_main_process():
                found[name] = parameter.detach().cpu().clone()
    return found


@contextmanager
def whole_models() -> Iterator[None]:
    """Models that are loaded inside are whole, also under ZeRO-3, which parts them when training begins.

    transformers parts them while it loads otherwise, and neither merging nor LoHa can do anything with a part.
    """
    config = hf_deepspeed._hf_deepspeed_config_weak_ref  # there is a public way to put it away, but none to put it back
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config
