"""Out of memory in a TRL trainer: the optimizer step begins again with its microbatches in halves.

Losses are divided by a count over the whole optimizer batch (labelled tokens, weights of votes), so the gradients of
the parts add up to that of the whole. What was accumulated is discarded first: a backward pass may have ended in the
middle.

Under DeepSpeed a step cannot be begun again, since its engine has reduced parts of the gradient by then; with several
processes without it only a forward pass can fail on one of them, because the others would wait for it in the reduction.
These runs end in one line with the settings that halve the microbatch.
PPO has its own in `ppo/update.py`, which reduces gradients only before the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignment.distributed import processes
from alignment.errors import ModelError
from alignment.runs.journal import Journal
from alignment.terminal import say

MAX_HALVINGS = 3
T = TypeVar("T")


class ForwardOutOfMemoryError(Exception):
    """A forward pass of some rank has run out of memory; raised on all of them."""


def even_parts(rows: Sequence[T], count: int) -> list[Sequence[T]]:
    """Rows in `count` parts, one after the other, as equal as can be; each has at least one row."""
    count = max(1, min(count, len(rows)))
    ends = [len(rows) * part // count for part in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


def release_memory() -> None:
    """Give cached memory back to the device, so that smaller blocks can be made of it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Halving:
    """Mixin for a transformers Trainer that computes its microbatches in parts once one has run out of memory."""

    guarded: Journal | None
    num_parts = 1
    """Parts of each microbatch; checkpoints keep it."""
    counted: Sequence[str] = ()
    """Attributes with running sums over batches, to which a step that begins again must not add twice."""
    _step_batches: Sequence[dict[str, Any]] = ()
    _num_done = 0
    """Microbatches of the current step that have been computed."""
    _at_start: tuple[Any, ...]
    """Random states and running sums at the start of the current step."""
    _in_step = False

    def split(self, batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """A batch's rows in so many parts of equal size, or as many as it has rows."""
        raise NotImplementedError

    def get_batch_samples(self: Any, *args: Any, **options: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **options)  # type: ignore[misc]
        self._step_batches, self._num_done = batches, 0
        self._at_start = self._random(), {name: deepcopy(getattr(self, name)) for name in self.counted}
        return batches, count

    def training_step(
        self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self._num_done += 1
        loss = self._tried([inputs], model, num_items_in_batch)
        while loss is None:
            self._halve(num_items_in_batch)
            model.zero_grad()
            self._rewind()
            loss = self._tried(self._step_batches[: self._num_done], model, num_items_in_batch)
        return loss

    def _tried(self: Any, batches: Sequence[dict[str, Any]], model: Any, num_items: Any) -> Tensor | None:
        """Forward and backward passes over batches; the last one's loss, or None if memory ran out."""
        self._in_step = True
        try:
            return self._computed(batches, model, num_items)
        except ForwardOutOfMemoryError:
            pass
        except torch.OutOfMemoryError as error:  # in a backward pass, or under DeepSpeed
            if self.is_deepspeed_enabled or processes.world_size() > 1:
                raise ModelError(self._advice("and this launch cannot begin a step again")) from error
        finally:
            self._in_step = False
        release_memory()  # here the error is gone, and with it the activations that its traceback holds
        return None

    def _computed(self: Any, batches: Sequence[dict[str, Any]], model: Any, num_items: Any) -> Tensor:
        accumulated = self.current_gradient_accumulation_steps
        for batch in batches:
            parts = [batch] if self.num_parts == 1 else self.split(batch, self.num_parts)
            self.current_gradient_accumulation_steps = accumulated * len(parts)  # divides what is not a sum over rows
            losses = []
            try:
                for part in parts:
                    is_last = batch is batches[-1] and part is parts[-1]
                    with nullcontext() if is_last else self.accelerator.no_sync(model=model):
                        losses.append(super().training_step(model, part, num_items))  # type: ignore[misc]
            finally:
                self.current_gradient_accumulation_steps = accumulated
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @contextmanager
    def compute_loss_context_manager(self: Any) -> Iterator[None]:
        """Without DeepSpeed and FSDP all ranks learn here that a forward pass of one has run out of memory."""
        failed = False
        with super().compute_loss_context_manager():  # type: ignore[misc]
            try:
                yield
            except torch.OutOfMemoryError:
                if not self._in_step or self._is_sharded:
                    raise
                failed = True
        if self._in_step and not self._is_sharded and processes.all_reduce_max_on_host(int(failed)):
            raise ForwardOutOfMemoryError

    @property
    def _is_sharded(self: Any) -> bool:
        """Whether a forward pass may be a collective, which one rank cannot leave."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _halve(self: Any, num_items: Any) -> None:
        """Double the number of parts.

        Raises:
            ModelError: it was done three times, or a row cannot be split; on every rank.
        """
        largest = max(len(self.split(batch, 1 << 30)) for batch in self._step_batches[: self._num_done])
        largest = processes.all_reduce_max_on_host(largest)
        if num_items is None:
            raise ModelError(self._advice("and this loss is a mean over each microbatch, which parts would change"))
        if self.num_parts >= 2**MAX_HALVINGS or self.num_parts >= largest:
            raise ModelError(self._advice(f"also in {self.num_parts} parts"))
        self.num_parts *= 2
        step = self.first_step + self.state.global_step + 1
        rows = -(-self.args.per_device_train_batch_size // self.num_parts)
        if self.guarded is not None:
            self.guarded.event("microbatch_halved", step=step, parts=self.num_parts, rows=rows)
        if processes.is_main_process():
            say(
                f"warning: step {step}: out of memory; from here on a microbatch is computed in {self.num_parts} parts "
                f"of {rows} rows, with the same gradient"
            )

    def _advice(self: Any, why: str) -> str:
        rows, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        fix = (
            f"training.per_device_train_batch_size={rows // 2} training.gradient_accumulation_steps={2 * steps}"
            if rows > 1 and self.num_parts == 1
            else "training.gradient_checkpointing=true, or a smaller data.max_length"
        )
        return (
            f"out of memory in step {self.first_step + self.state.global_step + 1} with "
            f"training.per_device_train_batch_size={rows}, {why}; set {fix}, and start again with --resume auto "
            "--allow-changes"
        )

    def _random(self: Any) -> tuple[Tensor, Tensor | None]:
        device = self.args.device
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def _rewind(self: Any) -> None:
        """Random states and running sums as they were when the step began."""
        (on_host, on_device), counted = self._at_start
        torch.set_rng_state(on_host)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self.args.device)
        for name, value in counted.items():
            setattr(self, name, deepcopy(value))
