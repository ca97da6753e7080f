"""Linear layers through oneDNN instead of MKL on processors where MKL is slow.

MKL, which torch calls for float32 on a CPU, takes about twice as long as oneDNN on AMD processors
(docs/development/bench/cpu.md).
Both compute in float32; they round their sums in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIN_MULTIPLICATIONS = 2**21
"""Size of a product from which on oneDNN is faster."""
MIN_PACKED = 2**16
"""Size of a weight from which on a packed copy pays for one row already."""
_MARK = "_goes_to_onednn"
_packed: dict[int, Tensor] = {}
"""Copies of weights in oneDNN's own layout, by the weight's id, inside of `packed_weights`."""


@contextmanager
def linear_layers() -> Iterator[None]:
    """Route `torch.nn.functional.linear` to oneDNN inside the context, on AMD processors without a GPU.

    The processor and the shapes decide, not a measurement, so that a resumed run computes as before.
    """
    functional: Any = torch.nn.functional
    original = functional.linear
    if torch.cuda.is_available() or not is_amd() or hasattr(original, _MARK):
        yield
        return

    @functools.wraps(original)  # torch.compile, which vLLM uses, asks for its name
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _linear(original, input, weight, bias)

    setattr(linear, _MARK, True)
    functional.linear = linear
    try:
        yield
    finally:
        if functional.linear is linear:  # DeepSpeed's ZeRO-3 may have replaced it since
            functional.linear = original


@contextmanager
def packed_weights(module: nn.Module, rows: int) -> Iterator[None]:
    """Inside of `linear_layers` and without gradients, multiply by copies of a module's weights in oneDNN's own layout.

    oneDNN rearranges a weight in each product, which for few rows takes about as long as the product itself. Sampling
    multiplies by the same weights at each token. The copies take as much memory as the weights, which must not change.

    Args:
        rows: of the products that count most.
    """
    mine = set()
    if hasattr(torch.nn.functional.linear, _MARK):
        for layer in module.modules():
            weight = layer.weight if isinstance(layer, nn.Linear) else None
            if weight is not None and _is_plain(weight) and weight.numel() >= MIN_PACKED and id(weight) not in _packed:
                _packed[id(weight)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
                mine.add(id(weight))
    try:
        yield
    finally:
        for key in mine:
            del _packed[key]


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is a float32 tensor in this process's memory, and no wrapper or shard."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and type(weight) in (Tensor, nn.Parameter)


def _linear(original: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if (
        torch.compiler.is_compiling()
        or input.dtype != torch.float32
        or input.device.type != "cpu"
        or input.dim() < 2
        or torch.is_autocast_enabled("cpu")
        or not _is_plain(weight)
    ):
        return original(input, weight, bias)
    product: Tensor
    if _packed and not torch.is_grad_enabled() and (packed := _packed.get(id(weight))) is not None:
        product = _multiply(input, packed)
    elif input.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS:
        product = _Product.apply(input, weight)
    else:
        return original(input, weight, bias)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """input (..., I) times weight (O, I) transposed."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _multiply(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        input_grad = _multiply(grad, weight.t()) if ctx.needs_input_grad[0] else None
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = _multiply(grad.flatten(0, -2).t(), input.flatten(0, -2).t())
        return input_grad, weight_grad


def _multiply(input: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, None, "none", [], "")
    return product


@functools.cache
def is_amd() -> bool:
    """Whether this machine has an AMD processor, and torch has the operator, which is not public."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return "AuthenticAMD" in info and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    except OSError:
        return False
