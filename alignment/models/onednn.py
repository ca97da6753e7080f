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
from torch import Tensor

MIN_MULTIPLICATIONS = 2**21
"""Size of a product from which on oneDNN is faster."""
_MARK = "_goes_to_onednn"


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


def _linear(original: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if (
        not torch.compiler.is_compiling()
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == "cpu"
        and input.dim() > 1
        and input.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
        and type(weight) in (Tensor, torch.nn.Parameter)
    ):
        product: Tensor = _Product.apply(input, weight)
        return product if bias is None else product + bias
    return original(input, weight, bias)


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
