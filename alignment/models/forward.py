"""A forward pass taken apart: the body, the output head where a token is asked for, and what must not be random."""

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
from alignment.tensors import entropy_from_logits, logprobs_from_logits

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The layers below the last hidden states and the layer that gives logits; None where a model has no such two.

    That the logits are this layer's output and nothing more is seen when a run starts (`alignment.models.selfcheck`).
    """
    base = without_adapter(model)
    head = base.get_output_embeddings()
    return None if head is None or base.base_model is base else (base.base_model, head)


def options_of(base: nn.Module) -> dict[str, bool]:
    """What a forward pass that wants logits alone says to this model: no cache, and no router's load-balancing loss,
    which a mixture of experts with `output_router_logits` in its config fails to compute where there is a cache."""
    takes = inspect.signature(base.forward).parameters
    return {name: False for name in ("use_cache", "output_router_logits") if name in takes}


class TokenLogprobs(NamedTuple):
    """Of M tokens: log-probabilities, and the entropy of what each was drawn from, in nats; (M,) float32."""

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
    """Log-probabilities under softmax(head(hidden) / temperature), never with all logits at a time.

    Where all of them would not fit a block, each block's are computed again in the backward pass.

    Args:
        head: hidden states to logits.
        hidden: (M, H), of the token before each target.
        targets: (M,)
        with_entropy: takes a second pass over the vocabulary.
        vocabulary: logits that count, from the first on; None: all (see `ppo.models.Role`).
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
        parts = [checkpoint(block, *each, use_reentrant=False) for each in blocks]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    # Once: under ZeRO-3 each call of the head is a collective, and processes have unlike numbers of blocks.
    original = head.forward
    found = run_as_forward(head, head, all_blocks, hidden)
    return TokenLogprobs(found[0], found[1] if with_entropy else None)


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Dropout off, and afterwards each module as it was: a frozen part may have been in eval mode before."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, also those that layers keep as numbers and hand to a function (OPT, Llama)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
