"""FSDP2 (`torch.distributed.fsdp.fully_shard`): each rank holds a slice of every parameter, cut along dimension 0.

A sharded parameter is a DTensor. Layers are gathered by hooks around their forward and backward passes, so a pass is a
collective, and all ranks must make the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from alignment.distributed import processes

SHARD = "shard"
"""Key of a tensor in a checkpoint of which each rank has saved its slice."""


def configure(accelerator: Accelerator) -> None:
    """Set what a launch file does not: gradients are reduced in float32 also where the arithmetic is bfloat16, after
    each backward pass, so that no rank holds them whole, and the model is saved whole."""
    plugin = accelerator.state.fsdp_plugin
    plugin.set_state_dict_type("FULL_STATE_DICT")
    rounded = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32)
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP holds the module's weights in shards."""
    return isinstance(module, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, for which every rank must call this; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


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
    # Mapped, so that each rank reads little more than what it keeps.
    files = [folder / f"shards-{rank}.pt" for rank in range(saved)]
    if saved == processes.world_size():
        files = [files[processes.process_index()]]
    state = _resharded([torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files])
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
        return {SHARD: value.to_local().detach().clone()}
    if isinstance(value, dict):
        return {key: _with_shards(item) for key, item in value.items()}
    return value


def _resharded(values: Sequence[Any]) -> Any:
    """One value from those of the ranks that saved: of slices this rank's slice of the whole."""
    if len(values) == 1 or not isinstance(values[0], dict):
        return values[0]
    if set(values[0]) == {SHARD}:
        chunks = torch.cat([value[SHARD] for value in values]).chunk(processes.world_size())
        index = processes.process_index()
        return {SHARD: chunks[index] if index < len(chunks) else chunks[0][:0]}
    return {key: _resharded([value[key] for value in values]) for key in values[0]}
