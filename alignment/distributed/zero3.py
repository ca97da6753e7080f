"""ZeRO-3 partitioned weights: load them in shards, and gather them where they are used.

Without ZeRO-3 the functions that load, gather or read weights work on the full weights. `fetch_by_layer` and `reshard`
are for ZeRO-3 alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from alignment.distributed import fsdp
from alignment.distributed.processes import is_main_process, process_index, world_size

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@contextmanager
def gathered_parameters(*parameters: nn.Parameter, write_back: bool = True) -> Iterator[None]:
    """Gather partitioned parameters inside the context; changes made by the main process are kept.

    Args:
        write_back: broadcast what the main process changed; False where the body only reads.
    """
    sharded: list[Any] = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not write_back:  # DeepSpeed refuses those that are gathered, by an outer context or for good
        sharded = [parameter for parameter in sharded if parameter.ds_status.name == "NOT_AVAILABLE"]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write_back else None):
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


def cast(module: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Cast all weights, sharded or not, but those in 4 bits (packed in integers), and no buffer: rotary frequencies in
    bfloat16 would be wrong positions."""
    parameter: Any
    for parameter in filter(torch.is_floating_point, module.parameters()):
        parameter.data = parameter.data.to(dtype)
        if hasattr(parameter, "ds_id"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
    return module


def fetch_by_layer(module: nn.Module, *, in_host_memory: bool = False) -> None:
    """Shard a frozen module over the ranks, and let each forward pass gather its weights layer by layer.

    All ranks get shards of the main process's weights. From here on each forward pass is a collective, so all ranks
    must make the same number of them.

    Args:
        in_host_memory: keep the shards there, rather than on the device.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    config = _config_of_shards()
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    DeepSpeedZeRoOffload(
        module,
        timers=None,
        ds_config=config,
        overlap_comm=zero.overlap_comm,
        prefetch_bucket_size=zero.prefetch_bucket_size,
        max_reuse_distance=zero.max_reuse_distance,
        max_live_parameters=zero.max_live_parameters,
        param_persistence_threshold=zero.param_persistence_threshold,
        model_persistence_threshold=zero.model_persistence_threshold,
        offload_param_config=zero.offload_param,
    )
    parameter: Any
    for parameter in module.parameters() if in_host_memory else ():
        shard = parameter.ds_tensor.data.cpu()
        parameter.ds_tensor.data = shard.pin_memory() if torch.cuda.is_available() else shard


def release(modules: Iterable[nn.Module]) -> None:
    """Release the weights that passes without gradients have left gathered.

    DeepSpeed keeps them for the backward pass that followed the same forward pass before.
    """
    parameters: list[Any] = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        if hasattr(parameter, "ds_id") and parameter.ds_status.name == "AVAILABLE" and not parameter.ds_persist:
            parameter.partition()


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
    if not any(is_partitioned(module) for module in modules):
        yield
        return
    parameters = [parameter for module in modules for parameter in module.parameters()]
    with _without_hooks(modules), gathered_parameters(*parameters, write_back=False):
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

    transformers would otherwise partition them while loading, and LoHa reads the shape of a whole weight.
    """
    with _loading_by(None):
        yield


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Make models without weights inside the context. Under ZeRO-3 transformers would partition a part of some, which
    fails without weights: a Llama's classifier was then taken for one that transformers does not have."""
    with unpartitioned_loading(), torch.device("meta"):
        yield


class _Shards(hf_deepspeed.HfDeepSpeedConfig):
    """How `loading_in_shards` tells transformers to load."""


@contextmanager
def loading_in_shards() -> Iterator[None]:
    """Load models straight into float32 shards inside the context, if the launch is ZeRO-3: no rank ever holds a model.

    The main process reads one tensor at a time from the memory-mapped files. The models are cast afterwards (`cast`):
    an adapter that is merged onto rounded weights would be rounded twice.
    """
    plugin = AcceleratorState().deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    with _loading_by(_config_of_shards()):
        yield


def loads_in_shards() -> bool:
    """Whether models are loaded inside `loading_in_shards`."""
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    return reference is not None and isinstance(reference(), _Shards)


@contextmanager
def _loading_by(config: dict[str, Any] | None) -> Iterator[None]:
    before = hf_deepspeed._hf_deepspeed_config_weak_ref  # the API can unset this config but cannot set it again
    hf_deepspeed.unset_hf_deepspeed_config()
    kept = None if config is None else _Shards(config)  # sets itself; transformers keeps a weak reference
    try:
        yield
    finally:
        del kept
        hf_deepspeed._hf_deepspeed_config_weak_ref = before


def _config_of_shards() -> dict[str, Any]:
    """The launch's own ZeRO settings, and no mixed precision: what is not trained is cast by `cast`."""
    zero = AcceleratorState().deepspeed_plugin.deepspeed_config["zero_optimization"]
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": dict(zero)}
