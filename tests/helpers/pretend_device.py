"""A device that there is not: its tensors are computed in the host's memory, with rules as strict as a GPU's.

A tensor of the device and one of the host do not meet in an operation (0-dimensional ones and indices may, as on a
GPU), random numbers on it need a generator of its own, and every wait of the host for the device is counted with the
function of the project that waits.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(str(ROOT / name) + "/" for name in ("alignment", "sft", "reward", "ppo"))
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "_unique2", "unique_consecutive")
"""Operations whose result the host needs, or whose shape it has to know."""
MEETINGS = ("copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_")
"""Operations that take a tensor of the host beside one of the device."""


class Mixed(AssertionError):
    """Tensors of two devices met, or a generator was of the wrong one."""


class DeviceTensor(torch.Tensor):
    """A tensor of the pretended device around one in the host's memory."""

    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device(), requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        waits[_place()] += 1
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class _Module(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32]


waits: Counter[str] = Counter()
"""How often each function of the project has waited for the device."""


@functools.cache
def device() -> torch.device:
    _setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
    return torch.device("pretend:0")


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOMS)]
    frames = [frame for frame in frames if not frame.name.startswith("<")]  # a comprehension is part of its function
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].name}" if frames else "elsewhere"


def _is_ours(value: Any) -> bool:
    return value is not None and torch.device(value).type == device().type


def computed(function: Any, args: Any, kwargs: Any) -> Any:
    """An operation with the device's rules."""
    name = function.overloadpacket.__name__
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
    asked = kwargs.get("device")
    if not ours and not _is_ours(asked):
        return function(*args, **kwargs)
    hosts = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor) and leaf.dim()]
    if ours and hosts and name not in MEETINGS:
        raise Mixed(f"{function} of tensors on {device()} and on the host, at {_place()}")
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise Mixed(f"{function} on {device()} with a generator of the host, at {_place()}")
    by_mask = name.startswith("index") and any(leaf.dtype == torch.bool for leaf in ours[1:])
    to_host = (name == "_to_copy" and asked is not None and not _is_ours(asked)) or (
        name == "copy_" and not isinstance(args[0], DeviceTensor)
    )
    if ours and (name in WAITS or by_mask or to_host):
        waits[_place()] += 1
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, DeviceTensor) else x, (args, kwargs))
    if _is_ours(asked):
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
        if name == "_to_copy" and not ours:
            inner_args = (inner_args[0].clone(), *inner_args[1:])
    result = function(*inner_args, **inner_kwargs)
    if to_host or name in ("_local_scalar_dense", "equal"):
        return args[0] if name == "copy_" else result
    wrapped = tree_map(lambda x: DeviceTensor(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


class _Factories(TorchFunctionMode):
    """torch makes `tensor([1, 2], device=...)` out of reach of a dispatch mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and _is_ours(kwargs.get("device")):
            if isinstance(args[0], DeviceTensor):
                return args[0]
            values = tree_map(lambda x: x.item() if isinstance(x, DeviceTensor) else x, args[0])
            return function(values, *args[1:], **{**kwargs, "device": "cpu"}).to(device())
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = (args[0], index, *args[2:])
        return function(*args, **kwargs)


class _Rules(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[Counter[str]]:
    """Inside, tensors can be made on `device()`; gives the count of waits, which starts at nothing."""
    device()
    waits.clear()
    with _Factories(), _Rules():
        yield waits
