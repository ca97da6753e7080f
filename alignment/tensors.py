"""Masked statistics and log-probabilities: pure functions on tensors.

Every mask is bool, True = keep. B batch, T response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes. The identity for one process."""


def one_process(x: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return x


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is True, as a scalar; 0 if nothing is kept. Shapes equal."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor, reduce: Reduce = one_process) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of the kept entries over all processes, as float64 scalars.

    Sums travel in float64, and the variance in a second pass around the global mean: sum(x^2) - n*mean^2 loses every
    digit when |mean| is much larger than the spread.
    """
    kept = torch.where(mask, x, 0.0).double()
    count, total = reduce(torch.stack([mask.sum().double(), kept.sum()]))
    mean = total / count.clamp(min=1)
    squares = torch.where(mask, (x.double() - mean) ** 2, 0.0).sum()
    variance = reduce(squares.reshape(1))[0] / count.clamp(min=1)
    return count, mean, variance


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = one_process) -> Tensor:
    """Scale the kept entries to variance 1, and to mean 0 if `shift_mean`; other entries become 0.

    (x - mean) * rsqrt(variance + 1e-8) with the biased variance over every process's kept entries, as OpenAI's
    lm-human-preferences does it. With fewer than two kept entries x is returned unscaled (0 where masked).

    Args:
        x, mask: (B, T)
        shift_mean: False scales around the mean and keeps it (rewards are whitened so, never advantages).
        reduce: sum over processes.
    """
    count, mean, variance = masked_moments(x, mask, reduce)
    if count < 2:
        return torch.where(mask, x, 0.0)
    scaled = (x - mean.to(x.dtype)) * torch.rsqrt(variance + 1e-8).to(x.dtype)
    if not shift_mean:
        scaled = scaled + mean.to(x.dtype)
    return torch.where(mask, scaled, 0.0)


def logprobs_from_logits(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the given ids, in float32.

    Args:
        logits: (B, T, V)
        ids: (B, T)
        temperature: the sampling temperature, since the trained policy is the one that sampled.

    Returns:
        (B, T)
    """
    chosen: Tensor = _ChosenLogprobs.apply(logits, ids, temperature)  # type: ignore[no-untyped-call]
    return chosen


class _ChosenLogprobs(torch.autograd.Function):
    """Holds one tensor as large as the logits in the backward pass; plain autograd would hold five."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
        normaliser = torch.logsumexp(scaled, dim=-1, keepdim=True)
        ctx.save_for_backward(logits, ids, normaliser)
        ctx.temperature = temperature
        return (scaled.gather(-1, ids.unsqueeze(-1)) - normaliser).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, normaliser = ctx.saved_tensors
        grad = grad.unsqueeze(-1) / ctx.temperature
        result = logits.to(torch.float32, copy=True)
        result.div_(ctx.temperature).sub_(normaliser).exp_().mul_(-grad).scatter_add_(-1, ids.unsqueeze(-1), grad)
        return result.to(logits.dtype), None, None


def entropy_from_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature): (B, T, V) -> (B, T), in float32."""
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logp.exp() * logp).sum(-1)


def last_kept(mask: Tensor) -> Tensor:
    """Index of the last True of each row, for left and right padding alike: bool (B, L) -> long (B,).

    `mask.sum() - 1` would be wrong for left padding.
    """
    return mask.shape[-1] - 1 - mask.int().flip(-1).argmax(-1)


def position_ids(mask: Tensor) -> Tensor:
    """Position of each kept token among the kept ones, 0 in the padding: bool (B, L) -> long (B, L)."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def shifted_left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their padding moved to the right; ids and bool mask (B, L), each row with one contiguous run."""
    start = mask.int().argmax(-1, keepdim=True)
    columns = (torch.arange(ids.shape[-1], device=ids.device) + start) % ids.shape[-1]
    return ids.gather(-1, columns), mask.gather(-1, columns)


def pad_rows(
    rows: Sequence[Sequence[int]], pad_token_id: int, side: Literal["left", "right"], multiple_of: int = 1
) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one long tensor and its bool mask, both (B, L); prompts are padded on the left.

    L is the longest row's length, rounded up to a multiple of `multiple_of`.
    """
    width = -(-max(map(len, rows)) // multiple_of) * multiple_of
    gaps = [[pad_token_id] * (width - len(row)) for row in rows]
    filled = [[*gap, *row] if side == "left" else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    columns, lengths = torch.arange(width), torch.tensor([len(row) for row in rows])[:, None]
    mask = columns >= width - lengths if side == "left" else columns < lengths
    return torch.tensor(filled, dtype=torch.long), mask
