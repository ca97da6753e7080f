"""Check SFT's packed forward pass against a plain one (`alignment.models.selfcheck`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from alignment.distributed import zero3
from alignment.distributed.processes import say
from alignment.errors import ConfigError
from alignment.models.adapters import without_adapter
from alignment.models.selfcheck import (
    LENGTHS,
    CheckError,
    agreed,
    cut_rows,
    next_logprobs,
    plain_logprobs,
    tried,
    undisturbed,
    why_not_split,
    why_wrong,
)
from sft.packing import PackingCollator, padded
from sft.trainer import SFTTrainer


class SelfCheck(TrainerCallback):
    """Checks a trainer before its first step and disables the optimizations that are wrong for its model.

    Args:
        asked: the user set training.packing=true, so a model that cannot be packed is refused.
    """

    def __init__(self, trainer: SFTTrainer, asked: bool) -> None:
        self.trainer, self.asked = trainer, asked

    def attach(self) -> None:
        """Check now, or at the beginning of training where the weights are sharded."""
        if zero3.is_partitioned(self.trainer.model) or self.trainer.is_fsdp_enabled:
            self.trainer.add_callback(self)
        else:
            self.trainer.model.to(self.trainer.args.device)
            self._check()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._check()

    def _check(self) -> None:
        trainer = self.trainer
        assert trainer.train_dataset is not None
        count = len(trainer.train_dataset)
        texts = [trainer.train_dataset[index % count]["input_ids"] for index in range(len(LENGTHS))]
        rows = cut_rows(texts)
        if not rows:
            return
        model, wrapper = trainer.model, trainer.model_wrapped
        name = type(without_adapter(model)).__name__
        with undisturbed(model), trainer.accelerator.autocast():
            expected = plain_logprobs(model, rows, wrapper)
            if trainer.layers is not None and (reason := agreed(why_not_split(model, rows[0], wrapper))):
                trainer.layers = None
                say(f"sft: {name} computes the logits of all tokens, as {reason}")
            if trainer.aux_loss_enabled:
                self._check_router(rows, name)
            collator = trainer.data_collator
            if isinstance(collator, PackingCollator):
                reason = agreed(why_wrong(model, lambda: self._logprobs(rows, packed=True), expected))
                if reason and self.asked:
                    raise ConfigError(f"training.packing: rows of {name} cannot be packed: {reason}; remove the key")
                if reason is None:
                    return
                say(f"sft: rows of {name} are padded, not packed: {reason}")
                collator.packed = False
            reason = agreed(why_wrong(model, lambda: self._logprobs(rows, packed=False), expected))
            if reason:
                raise CheckError(f"{name} cannot be trained on padded rows: {reason}; name another model")

    def _check_router(self, rows: Sequence[list[int]], name: str) -> None:
        """Disable the router's load-balancing loss if the model fails to compute it (as DeepSeek-V4's does)."""
        trainer = self.trainer
        batch = self._on_device(padded([{"input_ids": row, "labels": row} for row in rows], self._pad))
        del batch["labels"]
        loss, reason = tried(lambda: float(trainer.model_wrapped(**batch, output_router_logits=True).aux_loss))
        if reason is None and not math.isfinite(loss):
            reason = f"it is {loss}"
        reason = agreed(reason)
        if reason is None:
            return
        if trainer.args.router_aux_loss_coef:
            raise ConfigError(
                f"training.router_aux_loss_coef: {name} fails to compute its router's loss: {reason}; set it to 0"
            )
        trainer.aux_loss_enabled = False
        say(f"sft: {name} is trained without its router's load-balancing loss, which it fails to compute: {reason}")

    @property
    def _pad(self) -> int:
        return self.trainer.processing_class.pad_token_id or 0

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = next(self.trainer.model.parameters()).device
        return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}

    def _logprobs(self, rows: Sequence[list[int]], packed: bool) -> list[Tensor]:
        """Log probabilities of each row, computed in one batch as in training."""
        trainer = self.trainer
        labelled = [{"input_ids": row, "labels": list(row)} for row in rows]
        batch = self._on_device(trainer.data_collator(labelled) if packed else padded(labelled, self._pad))
        logits = trainer.logits(trainer.model_wrapped, batch).float()
        lengths = [len(row) for row in rows]
        parts: Sequence[Tensor]
        parts = logits[0].split(lengths) if packed else [logits[index, :length] for index, length in enumerate(lengths)]
        return [next_logprobs(part, row) for part, row in zip(parts, rows, strict=True)]
