"""Next-token loss with logits for labelled positions only, computed in blocks of a fixed size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from alignment.distributed.engine import run_as_forward
from sft.config import LOGITS_AT_ONCE
from sft.data import IGNORED


class TokenSums(NamedTuple):
    """Sums over the trained tokens of a batch, each a scalar."""

    loss: Tensor
    correct: Tensor
    """Number of tokens that are the model's top prediction."""
    tokens: Tensor

    @classmethod
    def zeros(cls) -> TokenSums:
        return cls(*torch.zeros(3, dtype=torch.float64))

    def plus(self, other: TokenSums) -> TokenSums:
        return TokenSums(*(a + b.detach() for a, b in zip(self, other, strict=True)))


def next_token_sums(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    vocabulary: int,
    label_smoothing: float = 0.0,
    dft: bool = False,
) -> TokenSums:
    """The loss summed over all labelled tokens, in float32, and the number of correct top predictions.

    If the logits need several blocks, each block is recomputed in the backward pass.

    Args:
        head: hidden states to logits.
        hidden: (B, L, H)
        labels: (B, L), -100 for no loss; position t predicts label t + 1.
        vocabulary: number of logits per token.
        label_smoothing: probability mass spread evenly over the vocabulary.
        dft: weight each token's loss by its probability (Wu et al. 2025, "On the Generalization of SFT", eq. 9).
    """
    kept = labels[:, 1:] != IGNORED
    where = kept.nonzero(as_tuple=True)  # the one wait for the device; a mask as the index would be one each time
    if len(where[0]):
        hidden, targets = hidden[:, :-1][where], labels[:, 1:][where]
    else:  # DDP waits for the head's gradient; one position without a label makes it zero
        hidden, targets = hidden[:1, 0], labels.new_full((1,), IGNORED)

    def block_sums(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = original(hidden).float()
        losses = cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED, label_smoothing=label_smoothing)
        if dft:
            losses = losses * torch.exp(-losses.detach())
        return losses.sum(), (logits.detach().argmax(-1) == targets).sum()

    def all_sums(hidden: Tensor) -> tuple[Tensor, Tensor]:
        size = max(1, LOGITS_AT_ONCE // vocabulary)
        blocks = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(blocks) == 1:
            return block_sums(*blocks[0])
        sums = [checkpoint(block_sums, *block, use_reentrant=False) for block in blocks]
        return torch.stack([loss for loss, _ in sums]).sum(), torch.stack([right for _, right in sums]).sum()

    original = head.forward
    loss, correct = run_as_forward(head, head, all_sums, hidden)
    return TokenSums(loss, correct, kept.sum())
