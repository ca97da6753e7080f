"""Frozen weights that wait in the host's memory and are copied to the device for their use, one way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def keep_on_host(module: nn.Module) -> None:
    """Move a module to the host's memory, pinned where there is a GPU: copies from there are fast and asynchronous."""
    module.to("cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        if torch.cuda.is_available():
            tensor.data = tensor.data.pin_memory()


@contextmanager
def lent_to(device: torch.device, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give frozen modules of `keep_on_host` a copy of their weights on a device inside the context. The originals stay
    where they are, so that nothing is copied back; the weights must not be changed."""
    stores: list[Any] = [
        store for root in modules for module in root.modules() for store in (module._parameters, module._buffers)
    ]
    originals = [(store, dict(store)) for store in {id(store): store for store in stores}.values()]
    copies: dict[int, Tensor] = {}  # tied weights are copied once
    for store, tensors in originals:
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if id(tensor) not in copies:
                copy = tensor.detach().to(device, non_blocking=True)
                copies[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
            store[name] = copies[id(tensor)]
    try:
        yield
    finally:
        for store, tensors in originals:
            store.update(tensors)
