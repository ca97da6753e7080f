"""Parts of a forward pass: body and output head, log-probabilities in blocks, and switching off dropout."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignment.distributed.engine import run_as_forward
from alignment.models.adapters import without_adapter
from alignment.models.blocks import LOGITS_AT_ONCE
from alignment.tensors import entropy_from_logits, logprobs_from_logits


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The body that gives the last hidden states, and the layer that gives logits; None if a model has no such split.

    `alignment.models.selfcheck` verifies at the start of a run that the logits are this layer's plain output.
    """
    base = without_adapter(model)
    head = base.get_output_embeddings()
    return None if head is None or base.base_model is base else (base.base_model, head)


def options_of(base: nn.Module) -> dict[str, bool]:
    """Arguments for a forward pass that only needs logits: no cache, and no load-balancing loss of a router.

    With a cache, a mixture of experts with `output_router_logits` in its config fails to compute that loss.
    """
    takes = inspect.signature(base.forward).parameters
    return {name: False for name in ("use_cache", "output_router_logits") if name in takes}


class TokenLogprobs(NamedTuple):
    """Log-probabilities of M tokens, and the entropy in nats of the distribution at each; (M,) float32."""

    logprobs: Tensor
    entropy: Tensor | None


def token_logprobs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    with_entropy: bool = False,
    vocabulary: int | None = None,
) -> TokenLogprobs:
    """Log-probabilities under softmax(head(hidden) / temperature), without materialising all logits at once.

    With more than one block, each block's logits are recomputed in the backward pass.

    Args:
        head: maps hidden states to logits.
        hidden: (M, H), at the token before each target.
        targets: (M,)
        with_entropy: takes a second pass over the vocabulary.
        vocabulary: number of logits that count; None: all (see `ppo.roles.Role`).
    """

    def block(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logits = original(hidden)[..., :vocabulary]
        logprobs = logprobs_from_logits(logits, targets, temperature)
        return (logprobs, entropy_from_logits(logits, temperature)) if with_entropy else (logprobs,)

    def all_blocks(hidden: Tensor) -> tuple[Tensor, ...]:
        width = getattr(head, "out_features", hidden.shape[-1])
        size = max(1, LOGITS_AT_ONCE // width)
        blocks = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(blocks) == 1:
            return block(hidden, targets)
        outputs = [checkpoint(block, *inputs, use_reentrant=False) for inputs in blocks]
        return tuple(torch.cat(column) for column in zip(*outputs, strict=True))

    # A single call: under ZeRO-3 each call of the head is a collective, and ranks have different numbers of blocks.
    original = head.forward
    outputs = run_as_forward(head, head, all_blocks, hidden)
    return TokenLogprobs(outputs[0], outputs[1] if with_entropy else None)


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode; at the end each module gets back its own mode, which may have been eval mode."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, also those that layers keep as attributes and pass to a function (OPT, Llama)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
