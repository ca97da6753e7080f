"""The layers below the first adapter, computed once for each row.

They are frozen and the same for all roles on one base, so their output can be kept: for the roles that score a rollout,
and over the epochs of an update. It is as with `adapter: {layers_to_transform: [...]}` of PEFT, which leaves the lower
layers alone; a pass from kept states gives the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.models.trainable import blocks
from ppo.sequences import Microbatch, Segment


class LowerLayers:
    """The first `depth` layers of a base.

    Args:
        layers: all transformer layers of the base, first to last.
        depth: 1 or more, less than all.
    """

    def __init__(self, layers: Sequence[nn.Module], depth: int) -> None:
        self._lower, self._next = list(layers[:depth]), layers[depth]
        self.depth = depth
        self._kept: dict[tuple[Segment, torch.dtype | None], Tensor] | None = None
        self._in_tuple = False
        """Whether a layer returns its states as the first of several values."""

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what is computed inside, and forget it at the end."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    @contextmanager
    def around(self, batch: Microbatch) -> Iterator[None]:
        """Around one forward pass of a packed batch: take its states from what is kept, or else keep them."""
        if self._kept is None or not batch.segments:
            yield
            return
        device = next(self._next.parameters()).device.type
        # In another precision a pass has states of its own (`Collector` compares two).
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        keys = [(segment, precision) for segment in batch.segments]
        found = [self._kept[key] for key in keys if key in self._kept]
        if len(found) < len(keys):
            with self._read(keys):
                yield
        else:
            with self._skipped(torch.cat(found)[None]):
                yield

    @contextmanager
    def _read(self, keys: Sequence[tuple[Segment, torch.dtype | None]]) -> Iterator[None]:
        """Keep the states that the pass inside gives to the next layer."""

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert self._kept is not None
            states = args[0] if args else kwargs["hidden_states"]
            lengths = [segment.length for segment, _ in keys]
            self._kept.update(zip(keys, states.detach()[0].split(lengths), strict=True))

        def note(module: nn.Module, args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)

        hooks = [
            self._next.register_forward_pre_hook(look, with_kwargs=True),
            self._lower[-1].register_forward_hook(note),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _skipped(self, states: Tensor) -> Iterator[None]:
        """The pass inside skips the lower layers and gives (1, N, H) states to the next layer."""

        def give(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self._in_tuple else hidden_states

        with ExitStack() as stack:
            hook = self._next.register_forward_pre_hook(give, with_kwargs=True)
            stack.callback(hook.remove)
            for layer in self._lower:
                stack.enter_context(_replaced(layer, skip))
            yield


@contextmanager
def _replaced(layer: nn.Module, forward: Any) -> Iterator[None]:
    """A layer with another `forward`; one of its own on the instance comes back (activation checkpointing sets it)."""
    own = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def first_changed(base: PreTrainedModel, adapter: str | None) -> int:
    """The index of the first layer that an adapter changes or in which weights are trained; the number of layers if
    there is none.

    Args:
        adapter: None: only what is trained without an adapter counts.
    """
    layers, head = blocks(base), base.get_output_embeddings()
    adapters = [module for module in base.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    parts = [getattr(module, kind) for module in adapters for kind in module.adapter_layer_names]
    weights_of_adapters = {id(module) for part in parts for module in part.modules()}

    def changes(module: nn.Module) -> bool:
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            return any(adapter in getattr(module, kind) for kind in module.adapter_layer_names)
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        return trained and id(module) not in weights_of_adapters

    after = {id(module) for module in (*layers.modules(), *(head.modules() if head is not None else ()))}
    if any(changes(module) for module in base.modules() if id(module) not in after):
        return 0  # embeddings come before all layers
    return next((n for n, layer in enumerate(layers) if any(map(changes, layer.modules()))), len(layers))


def frozen_depth(first: Sequence[int], num_layers: int) -> int | None:
    """How many lower layers roles on one base have in common, given the first layer that each changes; None: keeping
    their states saves nothing. A role that changes the first layer of all has nothing in common with the others."""
    common = min((index for index in first if index > 0), default=num_layers)
    return common if common < num_layers else None
