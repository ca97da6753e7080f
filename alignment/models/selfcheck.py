"""Right or refused: what a run computes by a short cut, against the plain way, on a few short rows before it begins.

A short cut is packing, the split of a model into body and head, or the sampler's cache and padding. The plain way is a
forward pass of transformers over one row alone: no padding, no mask, no cache. A model that a short cut is wrong for
gives no error, only other numbers; so it is tried, and no list of model names says where it is right.
"""

from __future__ import annotations

import random
import sys
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
from alignment.terminal import one_line

LENGTHS = (32, 13, 21)
"""Tokens of the rows that are tried: unlike, so that there is something to pad, and few."""
EXACT, ROUNDED = 1e-3, 0.1
"""By how many nats (of a score: in units of the largest one above 1) a row may be off on average: a leak, a lost layer
or a shifted position is off by tenths, float32 sums in another order by 1e-5, half precision by some hundredths."""
SAME_OPERATIONS = 1e-6
"""The split runs the very operations of the whole model, and may differ by no rounding that is larger than this."""
FAILURES = (UserError, RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


class CheckError(UserError):
    """A model that the suite cannot compute rightly, or at all."""


def cut_rows(rows: Sequence[Sequence[int]], lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """The beginnings of the first rows, at lengths that differ; none where the rows are too short to tell anything."""
    cut = [list(row[:length]) for row, length in zip(rows, lengths, strict=False)]
    return [row for row in cut if len(row) > 1]


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards modes and random states are as they were, so that a run that was
    checked gives the numbers of one that was not."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), eval_mode(*models):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def tolerance(model: nn.Module) -> float:
    """What rounding may do to this model's log-probabilities, inside the autocast that is on."""
    device = next(model.parameters()).device.type
    halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    quantized = bool(getattr(without_adapter(model), "is_quantized", False))
    tf32 = device == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return ROUNDED if halves or quantized or tf32 or torch.is_autocast_enabled(device) else EXACT


def tried(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or why it fails, in one line; memory that does not suffice is no failure of a short cut."""
    try:
        return call(), None
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return None, f"{type(error).__name__}: {text}" if text else type(error).__name__


def agreed(reason: str | None) -> str | None:
    """The first reason that a process has, so that all take the same way; every process calls this."""
    found = [each for share in processes.gather_lists([reason]) for each in share if each is not None]
    return found[0] if found else None


def say(text: str) -> None:
    """One plain line, on the main process."""
    if processes.is_main_process():
        print(one_line(text), file=sys.stderr)


# --- the plain way --------------------------------------------------------------------------------------------------


def row_tensor(model: nn.Module, row: Sequence[int]) -> Tensor:
    return torch.tensor([list(row)], device=next(model.parameters()).device)


def plain_logits(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None = None) -> Tensor:
    """Logits of a row alone: (L, V) float32.

    Args:
        model: of transformers or PEFT.
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
    """Of each row its `next_logprobs`, once it is known that the model can be run and does not see what it predicts.

    Raises:
        CheckError: it cannot be run, its numbers are not finite, or a token's logits depend on a later token.
    """
    name = type(without_adapter(model)).__name__
    logits, failed = tried(lambda: [plain_logits(model, row, wrapper) for row in rows])
    if failed:
        raise CheckError(f"{name} cannot be run on a plain row of {len(rows[0])} tokens ({failed}); name another model")
    if not all(bool(each.isfinite().all()) for each in logits):
        raise CheckError(f"the logits of {name} are not finite on its first rows; its weights are broken")
    found = [next_logprobs(each, row) for each, row in zip(logits, rows, strict=True)]
    if _sees_ahead(model, min(rows, key=len), wrapper):
        raise CheckError(
            f"{name} is no causal model: what it says of a token depends on later tokens, which it would be "
            "taught to copy; name a decoder (of BERT's kind with is_decoder=true in its config.json)"
        )
    return found


def _sees_ahead(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None) -> bool:
    """A row with another ending must have the same logits before it."""
    half = len(row) // 2
    other = [*row[:half], *(token - 1 if token else 1 for token in row[half:])]
    one, two = (torch.log_softmax(plain_logits(model, each, wrapper)[:half], -1) for each in (row, other))
    return not float((one - two).abs().mean()) <= tolerance(model)


# --- short cuts -----------------------------------------------------------------------------------------------------


def apart(found: Sequence[Tensor], expected: Sequence[Tensor], scale: float = 1.0) -> float:
    """Mean distance of the row that is furthest off; infinite where a number is missing or not finite."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    means = [float((a.float() - b.float()).abs().mean()) / scale for a, b in zip(found, expected, strict=True)]
    return max((mean if mean == mean else float("inf") for mean in means), default=0.0)


def why_wrong(
    model: nn.Module, shortcut: Callable[[], Sequence[Tensor]], expected: Sequence[Tensor], scale: float = 1.0
) -> str | None:
    """Why a short cut is not to be taken; None where it gives what is expected."""
    found, failed = tried(shortcut)
    if failed is None:
        off = apart(found, expected, scale)
        if not off <= tolerance(model):
            failed = f"it gives other numbers than the plain forward pass (off by {off:.2g} on average)"
    return failed


def why_not_split(model: nn.Module, row: Sequence[int], wrapper: nn.Module | None = None) -> str | None:
    """Why the logits are not what `body_and_head`'s head makes of the body's last hidden states; None where they are.

    The head must take what the body gives by itself, and give what the model gives.
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
        found, failed = tried(both)
    finally:
        hook.remove()
    if failed is None:
        hidden, logits = found
        same = (
            len(seen) == 2
            and _same(seen[0].float(), hidden, tolerance(model))  # another pass: experts may be added in another order
            and _same(seen[1][0].float(), logits, SAME_OPERATIONS)
        )
        failed = None if same else "its logits are not its last linear layer's product with the body's output"
    return failed


def _same(one: Tensor, other: Tensor, allowed: float) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= allowed * other.abs().max().clamp(min=1e-6))
