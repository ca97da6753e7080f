"""Optimizer steps of a TRL trainer that are not finite: skipped one by one, and the end of the run if they go on.

PPO has the same guard in `alignment.distributed.engine`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.distributed import fsdp, processes
from alignment.distributed.zero3 import local_shard
from alignment.errors import CheckpointError, ModelError
from alignment.runs.journal import Journal
from alignment.terminal import say
from alignment.training.halving import Halving

BAD_BATCH = "bad_batch.json"
LIMIT, LIMIT_FP16 = 3, 24
"""Skipped steps in a row that end the run. In float16 the loss scale starts at 65536 and falls by half at each."""


def with_nan_gradient(loss: Tensor) -> Tensor:
    """The loss; if it is not finite, NaN with a NaN gradient: a loss may be infinite and its gradient finite.

    The reduction of the gradients takes the NaN to every rank, so that all ranks see it in the norm of the gradient.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def check_weights(module: nn.Module) -> None:
    """Refuse to save trained weights with NaN or infinity; every rank must call this, and looks at its own shards.

    Raises:
        CheckpointError: on every rank.
    """

    def check() -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not torch.isfinite(local_shard(parameter)).all():
                raise CheckpointError(
                    f"the weights of {name} are not finite, so this checkpoint is not kept and the older ones stay; "
                    "lower training.learning_rate"
                )

    processes.on_every_process(check)


class FiniteSteps(Halving):
    """Mixin for a transformers Trainer that skips steps with a loss or gradient that is not finite.

    Such a step changes no weight, no state of the optimizer, and not the schedule; the log leaves out its loss. All
    ranks decide alike, by the norm of the reduced gradient. Several in a row, or one at the end of training, end the
    run. `compute_loss` must return `with_nan_gradient`.
    """

    guarded: Journal | None = None
    """The run's journal; without one, as in studies, nothing is guarded."""
    first_step = 0
    """Steps of the run's earlier trainings, such as other members, which count in a step's number."""
    skipped_in_a_row = 0
    _batches: list[dict[str, Any]]
    _losses: list[Tensor]
    """Batches and losses of the current step on this rank."""
    _loss_before: Tensor
    """The running sum of losses at the start of the current step."""

    def rows_of(self, batch: dict[str, Any]) -> list[Any]:
        """What identifies a batch's rows in RUN/bad_batch.json; no text of the user."""
        return []

    def get_batch_samples(self: Any, *args: Any, **options: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **options)
        self._batches, self._losses, self._loss_before = batches, [], self._tr_loss.clone()
        return batches, count

    def training_step(self: Any, *args: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **options)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self: Any, model: nn.Module, **options: Any) -> Any:
        """The last call before the optimizer's step; DeepSpeed has stepped, or skipped the step, by then."""
        norm = super()._get_grad_norm(model, **options)  # type: ignore[misc]
        if norm is not None and self.is_fsdp_enabled:
            norm = fsdp.whole(norm)
        if self.guarded is None:
            return norm
        checked = norm
        if checked is None:  # DeepSpeed gives none without ZeRO
            checked = processes.all_reduce_sum(torch.stack(self._losses).sum())
        if not math.isfinite(checked):
            self._skip(model, float(checked))
        elif self.skipped_in_a_row:
            self.skipped_in_a_row = 0
            self.optimizer._is_overflow = False
        return norm

    def _skip(self: Any, model: nn.Module, norm: float) -> None:
        """Skip the current step.

        Raises:
            ModelError: on every rank, at the last of `LIMIT` steps in a row; or DeepSpeed has taken the step.
        """
        self.skipped_in_a_row += 1
        step, limit = self.first_step + self.state.global_step + 1, LIMIT_FP16 if self.args.fp16 else LIMIT
        self.guarded.event("step_skipped", step=step, in_a_row=self.skipped_in_a_row, grad_norm=str(norm))
        was_taken = self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped
        if was_taken or self.skipped_in_a_row >= limit:
            self._stop(step)
        if processes.is_main_process():
            say(
                f"warning: step {step}: the loss or gradient is not finite; the step is skipped and changes no weight "
                f"({self.skipped_in_a_row} in a row; {limit} end the run)"
            )
        self._tr_loss.copy_(self._loss_before)
        self._globalstep_last_logged += 1  # the logged mean is over the steps that were taken
        if self.is_deepspeed_enabled or self.accelerator.scaler is not None:
            return  # both have skipped it, or will
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()  # AdaLoRA reads the gradient after the step
        self.optimizer._is_overflow = True  # the schedule is not stepped either
        self.accelerator.gradient_state._set_sync_gradients(False)  # the optimizer's step does nothing until it is set

    def check_savable(self: Any) -> None:
        """Refuse a checkpoint that would replace a healthy one; every rank must call this.

        Raises:
            CheckpointError: a weight, or the last step, was not finite.
        """
        if self.skipped_in_a_row:  # the weights may be finite, and so large that nothing can be computed with them
            raise CheckpointError(
                f"no checkpoint of step {self.first_step + self.state.global_step}: its loss or gradient was not "
                "finite; the older checkpoints stay"
            )
        check_weights(self.model)

    def check_end(self: Any) -> None:
        """Call when training is over: a model whose last step was not finite is not published.

        Raises:
            ModelError: on every rank.
        """
        if self.skipped_in_a_row:
            self._stop(self.first_step + self.state.global_step)

    def _stop(self: Any, step: int) -> None:
        """End the run; the rows of the last batch on each rank and their losses are in RUN/bad_batch.json."""
        own = {
            "losses": [str(float(loss)) for loss in self._losses],
            "rows": [row for batch in self._batches for row in self.rows_of(batch)],
        }
        ranks = [rank for [rank] in processes.gather_lists([own])]
        path: Path = self.guarded.run_dir / BAD_BATCH
        if processes.is_main_process():
            report = {"step": step, "in_a_row": self.skipped_in_a_row, "processes": ranks}
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        first = step - self.skipped_in_a_row + 1
        steps = f"step {step}" if first == step else f"steps {first} to {step}"
        raise ModelError(
            f"training diverged: the loss or gradient of {steps} was not finite; nothing was published, and older "
            f"checkpoints stay; {path} lists the rows of step {step}; lower training.learning_rate "
            f"(it is {self.args.learning_rate:g}) and start again with --overwrite, or with --resume auto "
            "--allow-changes"
        )
