"""A moving average of what is trained of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alignment.distributed.zero3 import local_shard, reshard_like, set_local_shard


class EMA:
    """Exponential moving averages of parameters, in float32, beginning at where they are now.

    After n updates the start still counts decay^n: with OpenRLHF's .992 a half after 86 optimizer steps. No correction
    is made for it, since the start is a policy that is known to be good.

    Args:
        parameters: names and parameters; of each the average is of what this process holds.
        decay: of each update; average = decay * average + (1 - decay) * parameter.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self._parameters = list(parameters)
        self.begin()

    def begin(self) -> None:
        """Begin at where the parameters are now."""
        self._averages = [local_shard(p).float().clone() for _, p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step."""
        for (_, parameter), average in zip(self._parameters, self._averages, strict=True):
            average.lerp_(local_shard(parameter).float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are their averages inside, and bit for bit what they were before afterwards."""
        before = [local_shard(parameter).clone() for _, parameter in self._parameters]
        try:
            self._set(self._averages)
            yield
        finally:
            self._set(before)

    def _set(self, values: Iterable[Tensor]) -> None:
        for (_, parameter), value in zip(self._parameters, values, strict=True):
            set_local_shard(parameter, value)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: average for (name, _), average in zip(self._parameters, self._averages, strict=True)}

    def load_parts(self, states: Sequence[dict[str, Tensor]]) -> None:
        """From the states of all processes that had shards, which may have been more or fewer than there are now."""
        self.load_state_dict({name: reshard_like(p, [state[name] for state in states]) for name, p in self._parameters})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for (name, _), average in zip(self._parameters, self._averages, strict=True):
            average.copy_(state[name])
