"""ZeRO-3 partitioned weights: gather them where they are used.

Without ZeRO-3 the functions that gather or read weights work on the full weights. `partition` and `reshard` are for
ZeRO-3 alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from torch import Tensor, nn

from alignment.distributed import fsdp
from alignment.distributed.processes import is_main_process, process_index, world_size


@contextmanager
def gathered_parameters(*parameters: nn.Parameter, write_back: bool = True) -> Iterator[None]:
    """Gather partitioned parameters inside the context; changes made by the main process are kept.

    Args:
        write_back: broadcast what the main process changed; False where the body only reads.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if write_back else None):
        yield


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds the module's weights in shards, one on each rank."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def cast_to_shard_dtype(module: nn.Module) -> None:
    """Cast trained parameters that are not partitioned, such as a new float32 head, to the dtype of those that are.

    DeepSpeed casts unpartitioned models to bfloat16 itself, but fails on shards of mixed dtypes. Its optimizer keeps
    float32 copies of all trained parameters.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    partitioned = [parameter for parameter in trained if hasattr(parameter, "ds_id")]
    for parameter in trained if partitioned else ():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(partitioned[0].dtype)


def partition(module: nn.Module, *, in_host_memory: bool = False) -> None:
    """Shard the weights of a frozen module over the ranks; `gathered_modules` brings them back for use.

    All ranks get shards of the main process's weights.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, remote_device="cpu" if in_host_memory else None)


@contextmanager
def gathered_modules(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Gather all weights of these modules inside the context, and run the modules without DeepSpeed's hooks.

    Every rank must enter. Inside, no forward pass is a collective, so ranks may make different numbers of them. Each
    device holds one copy of the weights until the end; they must not be changed. Weights that an outer context has
    gathered stay gathered.
    """
    modules = list(modules)
    if any(fsdp.is_sharded(module) for module in modules):
        with _without_hooks(modules), fsdp.gathered(modules):
            yield
        return
    partitioned: list[Any] = [p for module in modules for p in module.parameters() if hasattr(p, "ds_id")]
    if not partitioned:
        yield
        return
    not_gathered = [p for p in partitioned if p.ds_status.name == "NOT_AVAILABLE"]
    with _without_hooks(modules), gathered_parameters(*not_gathered, write_back=False):
        yield


@contextmanager
def _without_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Remove every forward hook, not DeepSpeed's alone, inside the context: DeepSpeed's would gather and release each
    submodule's weights around its forward."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    submodules = {id(submodule): submodule for module in modules for submodule in module.modules()}.values()
    originals = [(submodule, {name: getattr(submodule, name) for name in names}) for submodule in submodules]
    try:
        for submodule, hooks in originals:
            vars(submodule).update({name: type(value)() for name, value in hooks.items()})
        yield
    finally:
        for submodule, hooks in originals:
            vars(submodule).update(hooks)


def local_shard(parameter: Any) -> Tensor:
    """This rank's shard of a parameter, flat under ZeRO-3; the full parameter where it is not sharded."""
    shard: Tensor = parameter.ds_tensor if hasattr(parameter, "ds_id") else fsdp.local(parameter.data)
    return shard


def reshard_like(parameter: Any, shards: Sequence[Tensor]) -> Tensor:
    """This rank's shard of a sharded parameter, from the shards of any number of ranks."""
    if fsdp.is_shard(parameter):
        return fsdp.own_slice(torch.cat(list(shards)))
    return reshard(shards, parameter.ds_numel)


def reshard(shards: Sequence[Tensor], numel: int) -> Tensor:
    """`reshard_like` under ZeRO-3, of a parameter with `numel` elements."""
    ranks = world_size()
    shard_size = -(-numel // ranks)  # DeepSpeed pads the last shard
    flat = torch.cat([shard.flatten() for shard in shards])[:numel]
    start = process_index() * shard_size
    return torch.nn.functional.pad(flat, (0, shard_size * ranks - numel))[start : start + shard_size]


@torch.no_grad()
def set_local_shard(parameter: Any, value: Tensor) -> None:
    """Overwrite `local_shard`; every rank must do so before the parameter is used again."""
    local_shard(parameter).copy_(value)
    if hasattr(parameter, "ds_id"):
        parameter.partition()  # DeepSpeed keeps small parameters gathered too, and that copy would be stale


def gather_weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Copies of the parameters in the main process's host memory, empty on other ranks; every rank must call this."""
    weights = {}
    for name, parameter in parameters:  # one at a time: together they may not fit
        with gathered_parameters(parameter, write_back=False):
            value = fsdp.whole(parameter.detach())
            if is_main_process():
                weights[name] = value.cpu().clone()
    return weights


def scatter_weights(parameters: Iterable[tuple[str, nn.Parameter]], weights: Mapping[str, Tensor] | None) -> None:
    """Overwrite the parameters with the main process's weights (None on others); every rank must call this."""
    for name, parameter in parameters:
        value = None if weights is None else weights[name]
        if fsdp.is_shard(parameter):
            fsdp.overwrite(parameter, value)
            continue
        with gathered_parameters(parameter):
            if value is not None:
                parameter.data.copy_(value)


@contextmanager
def unpartitioned_loading() -> Iterator[None]:
    """Load models unpartitioned inside the context; ZeRO-3 shards them when training begins.

    transformers would otherwise partition them while loading, and neither merging nor LoHa works on shards.
    """
    config = hf_deepspeed._hf_deepspeed_config_weak_ref  # the API can unset this config but cannot set it again
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config
