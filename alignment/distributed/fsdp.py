"""FSDP2 (`torch.distributed.fsdp.fully_shard`): each rank holds a slice of every parameter, cut along dimension 0.

A sharded parameter is a DTensor. Layers are gathered by hooks around their forward and backward passes, so a pass is a
collective, and all ranks must make the same number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from alignment.distributed import processes

SHARD = "shard"
"""Key of a tensor in a checkpoint of which each rank has saved its slice."""


def configure(accelerator: Accelerator) -> None:
    """Set what a launch file does not: gradients are reduced in float32 also where the arithmetic is bfloat16, after
    each backward pass, so that no rank holds them whole, and the model is saved whole."""
    plugin = accelerator.state.fsdp_plugin
    plugin.set_state_dict_type("FULL_STATE_DICT")
    plugin.mixed_precision_policy = _policy(accelerator.mixed_precision == "bf16")
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True


def _policy(rounded: bool) -> MixedPrecisionPolicy:
    """Inputs are left as they are, so that a module computes the same with its hooks and without."""
    dtype = torch.bfloat16 if rounded else None
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(module: nn.Module, accelerator: Accelerator, *, rounded: bool = True) -> None:
    """Shard a module in place: each transformer layer by itself, and what is left together. Its parameters are others
    afterwards. Weights in 4 bits stay whole.

    Every rank's module must be the same before.

    Args:
        rounded: gather the weights in bfloat16, if that is what the accelerator computes in.
    """
    policy = _policy(rounded and accelerator.mixed_precision == "bf16")
    reshards = accelerator.state.fsdp_plugin.reshard_after_forward
    ignored = {parameter for parameter in module.parameters() if not parameter.is_floating_point()}
    for submodule in module.modules() if ignored else ():
        if ignored & set(submodule.parameters(recurse=False)):  # FSDP moves only what it shards
            submodule.to(accelerator.device)
    settings: dict[str, Any] = {"reshard_after_forward": reshards, "mp_policy": policy, "ignored_params": ignored}
    models = [model for model in module.modules() if getattr(model, "_no_split_modules", None)]
    kinds = {kind for model in models for kind in model._no_split_modules}  # type: ignore[union-attr]
    for submodule in list(module.modules()):
        if type(submodule).__name__ in kinds and not any(isinstance(p, DTensor) for p in submodule.parameters()):
            fully_shard(submodule, **settings)
    fully_shard(module, mp_policy=policy, ignored_params=ignored)
    module._get_fsdp_state()._lazy_init()  # type: ignore[operator]  # else the first that is used would be the root
    for submodule in module.modules():
        vars(submodule)["sharded_in"] = (module,)  # a tuple, which torch does not register


def shard_frozen(modules: Iterable[nn.Module], accelerator: Accelerator, rounded: nn.Module | None = None) -> None:
    """Shard modules that may be in each other; `rounded` is gathered as what is trained is, and others as they are."""
    for module in modules:
        if not is_sharded(module):
            shard(module, accelerator, rounded=module is rounded)


def shard_trained(module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """As `shard`, also in the groups of an optimizer that has no state yet."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    grouped = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    shard(module, accelerator)
    sharded = dict(module.named_parameters())
    for group, members in zip(optimizer.param_groups, grouped, strict=True):
        group["params"] = [sharded[name] for name in members]


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Gather all weights of these modules inside the context; every rank must enter.

    Hooks would gather and release them one layer at a time, so the modules must run without.
    """
    units: dict[int, Any] = {}
    for module in modules:
        for unit in (*vars(module).get("sharded_in", ()), *module.modules()):
            if isinstance(unit, FSDPModule):
                units[id(unit)] = unit
    waiting = [
        unit for unit in units.values()
        if any(not group.is_unsharded for group in unit._get_fsdp_state()._fsdp_param_groups)
    ]  # fmt: skip
    for unit in waiting:
        unit.unshard()
    try:
        yield
    finally:
        for unit in waiting:
            unit.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has sharded the module, by itself or in another."""
    return "sharded_in" in vars(module)


@torch.no_grad()
def overwrite(parameter: Tensor, value: Tensor | None) -> None:
    """Overwrite a sharded parameter with the main process's value (None on others); every rank must call this."""
    assert isinstance(parameter, DTensor)
    full = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if value is not None:
        full.copy_(value)
    torch.distributed.broadcast(full, 0)
    local(parameter).copy_(own_slice(full))


def own_slice(full: Tensor) -> Tensor:
    """This rank's slice of a whole tensor."""
    chunks, index = full.chunk(processes.world_size()), processes.process_index()
    return chunks[index] if index < len(chunks) else full[:0]


def is_shard(tensor: Tensor) -> bool:
    """Whether this rank has a slice of the tensor alone."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, for which every rank must call this; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Give a module whole parameters in place of sharded ones inside the context, to read; every rank must enter."""
    sharded = [
        (submodule, key, parameter)
        for submodule in module.modules()
        for key, parameter in submodule.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for submodule, key, parameter in sharded:
        submodule._parameters[key] = nn.Parameter(whole(parameter.detach()), requires_grad=False)
    try:
        yield
    finally:
        for submodule, key, parameter in sharded:
            submodule._parameters[key] = parameter


def like(parameter: Tensor, shard: Tensor) -> Tensor:
    """A tensor sharded as the parameter, of which this rank's slice is `shard`."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        shard.to(parameter.device), parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


# --- checkpoints ---------------------------------------------------------------------------------------------------


def save(folder: Path, weights: Mapping[str, Tensor], optimizer: Any, **states: Any) -> None:
    """Write this rank's slices of the weights and of the optimizer's state; every rank must call this.

    Args:
        states: more to save, which is the same on all ranks.
    """
    saved = {"weights": dict(weights), "optimizer": optimizer.state_dict(), **states}
    torch.save(_with_shards(saved), folder / f"shards-{processes.process_index()}.pt")


@torch.no_grad()
def load(folder: Path, saved: int, weights: Mapping[str, Tensor], optimizer: Any) -> dict[str, Any]:
    """Load what `save` wrote into the weights and the optimizer; returns the other states.

    Args:
        saved: world size of the run that saved it.
    """
    same = saved == processes.world_size()
    files = [folder / f"shards-{rank}.pt" for rank in ([processes.process_index()] if same else range(saved))]
    # Mapped, so that a rank holds little more than what it keeps.
    states = [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]
    state = states[0] if same else _resharded(states)
    loaded = state.pop("weights")
    assert set(loaded) == set(weights), set(loaded) ^ set(weights)
    for name, tensor in weights.items():
        local(tensor).copy_(_unwrapped(loaded[name]))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of_optimizer = state.pop("optimizer")
    for index, values in of_optimizer["state"].items():
        for name, value in values.items():
            if isinstance(value, dict):
                values[name] = like(parameters[index], value[SHARD].clone())
    optimizer.load_state_dict(of_optimizer)
    return dict(state)


def _unwrapped(value: Any) -> Tensor:
    tensor: Tensor = value[SHARD] if isinstance(value, dict) else value
    return tensor


def _with_shards(value: Any) -> Any:
    if isinstance(value, DTensor):
        shard = value.to_local().detach()
        return {SHARD: torch.empty_like(shard, device="cpu").copy_(shard)}  # without the padding that it is a view of
    if isinstance(value, dict):
        return {key: _with_shards(item) for key, item in value.items()}
    return value


def _resharded(values: Sequence[Any]) -> Any:
    """One value from those of the ranks that saved: of slices this rank's slice of the whole."""
    if not isinstance(values[0], dict):
        return values[0]
    if set(values[0]) == {SHARD}:
        return {SHARD: own_slice(torch.cat([value[SHARD] for value in values])).clone()}
    return {key: _resharded([value[key] for value in values]) for key in values[0]}
