"""The KV cache of `generation/engine.py`: allocated once, with rows dropped in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMixin


class PreallocatedLayer(DynamicLayer):
    """A layer with room for `capacity` tokens per row; transformers' own copies all keys and values at each token.

    `keys` and `values` (rows, heads, tokens so far, head size) are views of the storage.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0
        self._storage: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append tokens, (rows, heads, tokens, head size) each; returns the keys and values of all tokens so far."""
        if not self._storage:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._allocate(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[-2]
        for stored, states in zip(self._storage, (key_states, value_states), strict=True):
            stored[: len(states), :, start : self._length] = states
        self._show(len(key_states))
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select rows into new storage; a row may be selected several times."""
        picked = self.keys[indices], self.values[indices]
        self._allocate(*picked)
        for stored, states in zip(self._storage, picked, strict=True):
            stored[:, :, : self._length] = states
        self._show(len(indices))

    def unpack(self, keys: Tensor, values: Tensor, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Fill an empty layer from a packed row, with padding on the left.

        Args:
            keys, values: (1, heads, tokens of all prompts, head size)
            lengths: tokens of each prompt.
            rows: the prompt that each row of the layer gets.
        """
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._length = max(lengths)
        self._allocate(*(x.expand(len(rows), -1, -1, -1) for x in (keys, values)))
        for stored, states in zip(self._storage, (keys, values), strict=True):
            prompts = states[0].split(list(lengths), dim=1)
            for row, index in enumerate(rows):
                start = self._length - lengths[index]
                stored[row, :, :start] = 0.0  # a NaN there would pass through attention's mask
                stored[row, :, start : self._length] = prompts[index]
        self._show(len(rows))

    def move(self, sources: Tensor, targets: Tensor, num_rows: int) -> None:
        """Copy some rows over others and keep the first `num_rows`."""
        for stored in self._storage:
            stored[targets, :, : self._length] = stored[sources, :, : self._length]
        self._show(num_rows)

    def _allocate(self, *like: Tensor) -> None:
        self._storage = [x.new_empty(x.shape[0], x.shape[1], self._capacity, x.shape[3]) for x in like]

    def _show(self, num_rows: int) -> None:
        self.keys, self.values = (stored[:num_rows, :, : self._length] for stored in self._storage)


def make_cache(model: PreTrainedModel, capacity: int) -> DynamicCache | None:
    """A cache for rows of up to `capacity` tokens; layers with a sliding window keep transformers' own class.

    None for a model that cannot be stepped through with rows dropped: one with a recurrent state (Mamba, RWKV and
    hybrids), or one that prepares its own inputs at each step.
    """
    own_inputs = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    if own_inputs or model._is_stateful or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Drop all other rows; `rows` gives the source of each kept row, few of which should move."""
    moved = [(source, target) for target, source in enumerate(rows) if source != target]
    sources, targets = torch.tensor(moved, dtype=torch.long).reshape(-1, 2).unbind(1)
    for layer in cache.layers:
        device = layer.keys.device
        if isinstance(layer, PreallocatedLayer):
            layer.move(sources.to(device), targets.to(device), len(rows))
        else:
            layer.batch_select_indices(torch.tensor(rows, device=device))
