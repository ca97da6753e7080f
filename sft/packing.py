"""Packing: concatenate the rows of a batch into one row, without padding and without attention between them.

Attention runs document by document (`alignment.models.packing`), and positions restart at 0 with each document. Only
the rows of one batch are packed together, so an optimizer step has the same rows, loss and gradients as without
packing. (TRL's `bfd` attends over the whole packed row under a block mask, which is quadratic in its length without
flash attention; its `wrapped` lets documents attend to each other.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.models.packing import attend_by_group, positions, row_arguments, uses_flash
from alignment.tensors import pad_rows
from sft.data import IGNORED


@dataclass
class PackingCollator:
    """Collates rows of `input_ids` and `labels` into one packed batch.

    Args:
        flash: the model uses flash attention, which separates documents by `cu_seq_lens`.
        pad_token_id: pads the rows if packing fails its check (`packed` is false).
    """

    flash: bool = False
    pad_token_id: int = 0
    packed: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, (1, N) each, and the arguments of the model's attention."""
        if not self.packed:
            return padded(rows, self.pad_token_id)
        lengths = [len(row["input_ids"]) for row in rows]
        documents = [[0, length] for length in lengths]
        labels = [torch.tensor(row["labels"]) for row in rows]
        for document in labels:
            document[0] = IGNORED  # otherwise a document's last token would predict the next document's first
        batch: dict[str, Any] = {
            "input_ids": torch.cat([torch.tensor(row["input_ids"]) for row in rows])[None],
            "labels": torch.cat(labels)[None],
            "position_ids": positions(documents),
        }
        if self.flash:
            ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            longest = max(lengths)
            return batch | {
                "cu_seq_lens_q": ends,
                "cu_seq_lens_k": ends,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        return batch | row_arguments(documents)


def padded(rows: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `attention_mask`, (B, L) each, padded on the right."""
    ids, mask = pad_rows([row["input_ids"] for row in rows], pad_token_id, "right")
    labels, _ = pad_rows([row["labels"] for row in rows], IGNORED, "right")
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def pack_attention(model: PreTrainedModel, pad_token_id: int = 0) -> PackingCollator:
    """Make the model attend by document and return the matching collator; flash attention does so already."""
    flash = uses_flash(model)
    if not flash:
        attend_by_group(model)
    return PackingCollator(flash, pad_token_id)
