"""The choice of the next token from logits, on the device, and what the host reads of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.generation.sampling import GenerationError, Sampling
from alignment.tensors import logprobs_from_logits


def choose_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row: (B, V) logits and (B,) float64 in [0, 1) -> long (B,).

    A row with NaN or infinite logits gives -1 (minus infinity is a probability of 0). Sampling is by inverse CDF: the
    first token whose cumulative probability exceeds u. It needs one random number per token, and Gumbel noise V. The
    sum runs in float64, since the steps of a float32 sum over a large vocabulary are coarser than rare tokens'
    probabilities.
    """
    logits = logits[:, : sampling.vocabulary].float()
    if sampling.temperature == 0:
        highest, tokens = logits.max(-1)
        return torch.where(highest.isfinite(), tokens, -1)
    probabilities = torch.softmax(_filtered(logits / sampling.temperature, sampling.top_k, sampling.top_p), dim=-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]  # 1 up to rounding, or NaN if a logit is
    # u is at most 1 - 2^-53, and u times a total near 1 stays below the total when rounded: a token is found, and never
    # one of probability 0, since the sum must pass u at it.
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    return torch.where(total.isfinite(), tokens, -1).squeeze(1)


def record_logprobs(lists: Sequence[list[float]], logits: Tensor, tokens: Tensor, sampling: Sampling) -> None:
    """Append the log-probability of each row's token to its list."""
    logits = logits[:, : sampling.vocabulary]
    logprobs = logprobs_from_logits(logits, tokens.clamp(min=0), sampling.temperature or 1.0)
    for values, value in zip(lists, logprobs.tolist(), strict=True):
        values.append(value)


def _filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, V) with minus infinity outside the `top_k` most likely tokens, then outside the `top_p` nucleus."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        logits = logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)
    return logits


def to_host(tokens: Tensor) -> list[list[int]]:
    """Tokens of `choose_tokens`, (B, K), on the host, checked there for -1, which costs no synchronisation of its own.

    Sampling from such logits with `torch.multinomial` would end in a traceback on a CPU, and on a GPU in an assertion
    after which the device is unusable.
    """
    token_ids: list[list[int]] = tokens.tolist()
    if min(map(min, token_ids)) < 0:
        raise GenerationError(
            "the policy's logits are not finite: its weights are damaged, or its training diverged (then lower "
            "training.learning_rate)"
        )
    return token_ids
