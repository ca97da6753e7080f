"""Rows of one pass over all processes, shared out by their tokens: a process with long rows keeps others waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class BalancedBatches:
    """The batches of a sampler, in which the rows of `processes` neighbours are dealt out anew, as many to each batch.

    accelerate gives each process one of these neighbours. What is trained on in a pass stays the same, and so does the
    gradient, which is a sum over the rows of all processes.

    Args:
        batch_sampler: yields lists of row indices.
        tokens: of each row.
    """

    def __init__(self, batch_sampler: Any, tokens: Sequence[int], processes: int) -> None:
        self.batch_sampler, self.batch_size = batch_sampler, batch_sampler.batch_size
        self.drop_last = batch_sampler.drop_last
        self._tokens, self._processes = tokens, processes

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[list[int]] = []
        for batch in self.batch_sampler:
            waiting.append(batch)
            if len(waiting) == self._processes and len(batch) == self.batch_size:
                yield from deal(waiting, self._tokens)
                waiting = []
        yield from waiting  # accelerate fills up the last pass


def deal(batches: Sequence[Sequence[int]], tokens: Sequence[int]) -> Iterable[list[int]]:
    """The same rows in as many batches of the same size; the longest goes to the batch with the fewest tokens."""
    dealt: list[list[int]] = [[] for _ in batches]
    loads = [0] * len(batches)
    for row in sorted((row for batch in batches for row in batch), key=lambda row: (-tokens[row], row)):
        with_room = [number for number, batch in enumerate(dealt) if len(batch) < len(batches[number])]
        number = min(with_room, key=loads.__getitem__)
        dealt[number].append(row)
        loads[number] += tokens[row]
    return dealt
