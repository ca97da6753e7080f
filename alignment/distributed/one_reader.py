"""One process reads a model's files, and the others get its tensors by broadcast, straight onto their devices.

Where each process holds the whole model (DDP, ZeRO-1 and 2), each would otherwise read the files by itself, and the
host of eight GPUs would hold eight copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from alignment.distributed import processes

T = TypeVar("T")
_active = False


class TensorEntry(NamedTuple):
    """A parameter or buffer: every name that it has (tied weights have several), and what to make it of."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    is_parameter: bool


@contextmanager
def reading_once() -> Iterator[None]:
    """Let the main process alone read the models that are loaded inside; every rank must load the same ones.

    It does nothing under ZeRO-3, which loads into shards, and under FSDP2, where a whole model does not fit a device.
    """
    global _active
    sharded = processes.under_fsdp() or processes.launched_zero_stage() == 3
    before, _active = _active, processes.world_size() > 1 and not sharded
    try:
        yield
    finally:
        _active = before


def is_active() -> bool:
    """Whether models are loaded inside `reading_once`, by several processes."""
    return _active


def from_reader(read: Callable[[], T]) -> T:
    """What `read` returns on the process that reads: the main process inside `reading_once`, else this one.

    Raises:
        UserError: reading failed; on every rank.
    """
    return processes.on_main_process(read) if _active else read()


def entries_of(model: nn.Module) -> list[TensorEntry]:
    """All parameters and buffers of a model, those that are not saved with it too (rotary frequencies)."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return [
        TensorEntry(tuple(names[key]), tuple(x.shape), x.dtype, x.requires_grad, isinstance(x, nn.Parameter))
        for key, x in tensors.items()
    ]


def fits(empty: nn.Module, entries: Sequence[TensorEntry]) -> bool:
    """Whether an empty model has tensors of just these names and shapes."""
    ours = {name: tuple(tensor.shape) for name, tensor in _named_tensors(empty)}
    return ours == {name: entry.shape for entry in entries for name in entry.names}


def send(model: nn.Module) -> None:
    """Broadcast a model that the main process has read. On a GPU each tensor is moved there first, and stays."""
    for entry in entries_of(model):
        tensor = _find(model, entry.names[0])
        tensor.data = tensor.data.to(processes.start_processes().device)  # what is tied is one tensor
        _broadcast(tensor.data.contiguous())


def receive(empty: nn.Module, entries: Sequence[TensorEntry]) -> None:
    """Fill an empty model, on the meta device, with what the main process sends; tied weights are tied again."""
    for entry in entries:
        value = torch.empty(entry.shape, dtype=entry.dtype, device=processes.start_processes().device)
        _broadcast(value)
        tensor = nn.Parameter(value, requires_grad=entry.requires_grad) if entry.is_parameter else value
        for name in entry.names:
            parent, _, key = name.rpartition(".")
            module = empty.get_submodule(parent)
            (module._parameters if entry.is_parameter else module._buffers)[key] = tensor  # type: ignore[assignment]


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _find(model: nn.Module, name: str) -> Any:
    parent, _, key = name.rpartition(".")
    return getattr(model.get_submodule(parent), key)


def _broadcast(tensor: Tensor) -> None:
    """As bytes, since gloo and NCCL do not know every type."""
    if tensor.numel():
        torch.distributed.broadcast(tensor.view(-1).view(torch.uint8), 0)
