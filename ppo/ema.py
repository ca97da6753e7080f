"""A moving average of what is trained of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving averages of parameters, in float32, beginning at where they are now.

    After n updates the start still counts decay^n: with OpenRLHF's .992 a half after 86 optimizer steps. No correction
    is made for it, since the start is a policy that is known to be good.

    Args:
        parameters: names and parameters, as they are on every process.
        decay: of each update; average = decay * average + (1 - decay) * parameter.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self._parameters = list(parameters)
        self._averages = [p.detach().float().clone() for _, p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step."""
        for (_, parameter), average in zip(self._parameters, self._averages, strict=True):
            average.lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are their averages inside, and bit for bit what they were before afterwards."""
        own = [parameter.data for _, parameter in self._parameters]
        try:
            for (_, parameter), average in zip(self._parameters, self._averages, strict=True):
                parameter.data = average.to(parameter.dtype, copy=True)
            yield
        finally:
            for (_, parameter), data in zip(self._parameters, own, strict=True):
                parameter.data = data

    def state_dict(self) -> dict[str, Tensor]:
        return {name: average for (name, _), average in zip(self._parameters, self._averages, strict=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for (name, _), average in zip(self._parameters, self._averages, strict=True):
            average.copy_(state[name])
