"""Checking a run's short cuts against a plain forward pass, on a few short rows before the run begins.

A short cut is packing, the split of a model into body and head, or the sampler's cache and padding. The plain way is a
transformers forward pass over a single row: no padding, no mask, no cache. A short cut that is wrong for a model raises
no error and only gives other numbers, so each one is tried rather than listed by model name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignment.distributed import processes
from alignment.distributed.engine import run_as_forward
from alignment.errors import UserError
from alignment.models.adapters import without_adapter
from alignment.models.forward import body_and_head, eval_mode, options_of

LENGTHS = (32, 13, 21)
"""Tokens of the test rows: few, and of different lengths, so that there is padding."""
EXACT = 1e-3
"""Allowed mean difference of a row in float32, in nats (for scores: relative to the largest above 1). Another order of
summation differs by 1e-5; a leak, a lost layer or a shifted position by tenths."""
ROUNDED = 0.1
"""The same in half precision, which differs by some hundredths."""
SAME_OPERATIONS = 1e-6
"""Allowed relative difference of the split, which runs the same operations as the full model."""
FAILURES = (UserError, RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


class CheckError(UserError):
    """A model that the suite cannot compute correctly, or at all."""


def cut_rows(rows: Sequence[Sequence[int]], lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """The beginnings of the first rows, at different lengths; rows that are too short are left out."""
    cut = [list(row[:length]) for row, length in zip(rows, lengths, strict=False)]
    return [row for row in cut if len(row) > 1]


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes and random states are restored, so that the check does not change the run."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), eval_mode(*models):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def tolerance(model: nn.Module) -> float:
    """The difference that rounding may cause in this model's log-probabilities under the active autocast."""
    device = next(model.parameters()).device.type
    halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    quantized = bool(getattr(without_adapter(model), "is_quantized", False))
    tf32 = device == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return ROUNDED if halves or quantized or tf32 or torch.is_autocast_enabled(device) else EXACT


def tried(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result of a call, or a one-line reason for its failure; running out of memory is raised."""
    try:
        return call(), None
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return None, f"{type(error).__name__}: {text}" if text else type(error).__name__


def agreed(reason: str | None) -> str | None:
    """The first reason of any rank, so that all ranks decide alike; every rank must call this."""
    reasons = [reason for [reason] in processes.gather_lists([reason]) if reason is not None]
    return reasons[0] if reasons else None


# --- the plain way --------------------------------------------------------------------------------------------------


def row_tensor(model: nn.Module, row: Sequence[int]) -> Tensor:
    return torch.tensor([list(row)], device=next(model.parameters()).device)


def plain_logits(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None = None) -> Tensor:
    """Logits of a single row: (L, V) float32.

    Args:
        model: a transformers or PEFT model.
        wrapper: DDP or DeepSpeed's engine around it.
    """
    options = options_of(without_adapter(model))
    logits: Tensor = (wrapper or model)(input_ids=row_tensor(model, row), **options).logits
    return logits[0].float()


def next_logprobs(logits: Tensor, row: Sequence[int]) -> Tensor:
    """Log-probability of each token of a row but the first: (L, V) -> (L - 1,)."""
    ids = torch.tensor(row[1:], device=logits.device)
    return torch.log_softmax(logits[:-1], dim=-1).gather(-1, ids[:, None]).squeeze(-1)


def plain_logprobs(model: nn.Module, rows: Sequence[Sequence[int]], wrapper: nn.Module | None = None) -> list[Tensor]:
    """The `next_logprobs` of each row, after checking that the model runs and is causal.

    Raises:
        CheckError: it cannot be run, its logits are not finite, or a token's logits depend on a later token.
    """
    name = type(without_adapter(model)).__name__
    logits, failed = tried(lambda: [plain_logits(model, row, wrapper) for row in rows])
    if failed:
        raise CheckError(f"{name} cannot be run on a plain row of {len(rows[0])} tokens ({failed}); name another model")
    if not all(bool(row_logits.isfinite().all()) for row_logits in logits):
        raise CheckError(f"the logits of {name} are not finite on its first rows; its weights are broken")
    logprobs = [next_logprobs(row_logits, row) for row_logits, row in zip(logits, rows, strict=True)]
    if _sees_ahead(model, min(rows, key=len), wrapper):
        raise CheckError(
            f"{name} is no causal model: its prediction of a token depends on later tokens, which it would be "
            "taught to copy; name a decoder (of BERT's kind with is_decoder=true in its config.json)"
        )
    return logprobs


def _sees_ahead(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None) -> bool:
    """Whether changing a row's ending changes the logits before it."""
    half = len(row) // 2
    changed = [*row[:half], *(token - 1 if token else 1 for token in row[half:])]
    before, after = (torch.log_softmax(plain_logits(model, ids, wrapper)[:half], -1) for ids in (row, changed))
    return not float((before - after).abs().mean()) <= tolerance(model)


# --- short cuts -----------------------------------------------------------------------------------------------------


def max_row_difference(actual: Sequence[Tensor], expected: Sequence[Tensor], scale: float = 1.0) -> float:
    """The largest mean difference of a row; infinite if a value is missing or not finite."""
    if [row.shape for row in actual] != [row.shape for row in expected]:
        return float("inf")
    means = [float((a.float() - b.float()).abs().mean()) / scale for a, b in zip(actual, expected, strict=True)]
    return max((mean if mean == mean else float("inf") for mean in means), default=0.0)


def why_wrong(
    model: nn.Module, shortcut: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], scale: float = 1.0
) -> str | None:
    """The reason not to take a short cut; None if it gives the expected result."""
    actual, failed = tried(shortcut)
    if failed is None:
        difference = max_row_difference(actual, expected, scale)
        if not difference <= tolerance(model):
            failed = f"it gives other numbers than the plain forward pass (off by {difference:.2g} on average)"
    return failed


def why_not_split(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None = None) -> str | None:
    """The reason why the logits are not the head's output on the body's last hidden states; None if they are.

    The head's input must equal the body's output, and its output the model's logits.
    """
    layers = body_and_head(model)
    if layers is None:
        return "it has no body and head of its own"
    body, head = layers
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))

    def both() -> tuple[Tensor, Tensor]:
        logits = plain_logits(model, row, wrapper)
        ids = row_tensor(model, row)
        hidden = run_as_forward(
            wrapper or model, model, lambda: body(input_ids=ids, **options_of(body)).last_hidden_state
        )
        return hidden.float(), logits

    try:
        outputs, failed = tried(both)
    finally:
        hook.remove()
    if failed is None:
        hidden, logits = outputs
        same = (
            len(seen) == 2
            and _same(seen[0].float(), hidden, tolerance(model))  # another pass may sum experts in another order
            and _same(seen[1][0].float(), logits, SAME_OPERATIONS)
        )
        failed = None if same else "its logits are not its last linear layer's product with the body's output"
    return failed


def _same(one: Tensor, other: Tensor, allowed: float) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= allowed * other.abs().max().clamp(min=1e-6))
