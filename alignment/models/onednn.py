"""oneDNN's float32 product of linear layers in place of MKL's, where that is the slow one.

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

LEAST = 2**21
"""Multiplications from which on oneDNN is the faster one."""
_MARK = "_goes_to_onednn"


@contextmanager
def linear_layers() -> Iterator[None]:
    """`torch.nn.functional.linear` goes to oneDNN inside, on a machine where that is faster and there is no GPU.

    Which processor it is decides, and the shapes; not a measurement, as a resumed run must compute as the first did.
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
        if functional.linear is linear:  # DeepSpeed's ZeRO-3 puts its own in that place
            functional.linear = original


def _linear(original: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if (
        not torch.compiler.is_compiling()
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == "cpu"
        and input.dim() > 1
        and input.numel() * weight.shape[0] >= LEAST
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
        of_input = _multiply(grad, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = _multiply(grad.flatten(0, -2).t(), input.flatten(0, -2).t())
        return of_input, of_weight


def _multiply(input: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, None, "none", [], "")
    return product


@functools.cache
def is_amd() -> bool:
    """Whether this machine has an AMD processor, and torch has the operator (it is none of its public ones)."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return "AuthenticAMD" in info and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    except OSError:
        return False
