"""oneDNN's float32 product of linear layers in place of MKL's, where that is the slow one.

MKL, which torch calls for float32 on a CPU, takes 1.6 to 3 times as long as oneDNN on AMD processors (docs/bench). Both
compute in float32; their sums are rounded in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn


@contextmanager
def linear_layers(model: nn.Module) -> Iterator[None]:
    """Linear layers of a model on the CPU are computed by oneDNN inside, without gradients.

    Which processor it is decides, not a measurement: a resumed run must compute as the first one did.
    """
    first = next(model.parameters(), None)
    wanted = first is not None and first.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and _is_amd()
    layers = [
        module
        for module in (model.modules() if wanted else ())
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and "forward" not in vars(module)
    ]
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _product(layer: nn.Linear, states: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")
    return found


@functools.cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
