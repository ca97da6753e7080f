"""Metrics as sums by their names in the journal, so that no figure depends on the place of another."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_sum


class MetricSums:
    """Sums of metrics, by name, each with the number of tokens or episodes that it is over."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        """(2,) float64 each: the sum and the count."""

    def add(self, name: str, total: Tensor, count: Tensor | int) -> None:
        """Add to a metric the sum of a batch on this process, over so many tokens or episodes."""
        added = torch.stack([total.detach().double(), torch.as_tensor(count, device=total.device).double()])
        self._sums[name] = self._sums[name] + added if name in self._sums else added

    def merge(self, other: MetricSums) -> None:
        """Add all sums and counts of another one."""
        for name, added in other._sums.items():
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def reduced(self) -> MetricSums:
        """The sums over all processes, in the host's memory, by one all-reduce; each process must have the same
        names."""
        names, everywhere = sorted(self._sums), MetricSums()
        stacked = all_reduce_sum(torch.stack([self._sums[name] for name in names])).cpu()
        everywhere._sums = dict(zip(names, stacked, strict=True))
        return everywhere

    def means(self) -> dict[str, float]:
        """Each sum over its count, by name."""
        return {name: float(total / count) for name, (total, count) in self._sums.items()}
