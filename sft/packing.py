"""Packing: the rows of a batch laid end to end in one row, without padding and without attention between them.

The linear layers see one long row of real tokens. Attention runs row by row on its slices of it, so a document cannot
see another whatever the kernel, and costs what it would cost alone; positions start again at 0 with each document.
A batch is packed by what it holds, so the rows of an optimizer step, its loss and its gradients are those of the plain
run. (TRL's `bfd` attends over the whole packed row under a block mask, which is quadratic in its length where there is
no flash attention; its `wrapped` lets documents attend to each other.)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from alignment.config import ConfigError
from sft.data import IGNORED

ATTENTION = "sdpa_by_document"
FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"


@dataclass(frozen=True)
class PackingCollator:
    """Rows of `input_ids` and `labels` to one packed batch.

    Args:
        flash: the model runs flash attention, which keeps documents apart itself, by `cu_seq_lens`.
    """

    flash: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
        """`input_ids`, `labels` and `position_ids`, (1, N) each, and what the model's attention needs."""
        lengths = [len(row["input_ids"]) for row in rows]
        labels = [torch.tensor(row["labels"]) for row in rows]
        for document in labels:
            document[0] = IGNORED  # or the last token of one document would be taught to say the first of the next
        batch: dict[str, Any] = {
            "input_ids": torch.cat([torch.tensor(row["input_ids"]) for row in rows])[None],
            "labels": torch.cat(labels)[None],
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
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
        # A mask of four dimensions is taken as it is; without one, a mask of (N, N) would be built and not be used.
        return batch | {"document_lengths": lengths, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


def attend_by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    document_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a packed row; as `sdpa` for a batch that is not packed.

    Args:
        query, key, value: (1, heads, N, width)
        document_lengths: they sum to N.

    Returns:
        (1, N, heads, width), as transformers' attention functions do.

    Raises:
        ConfigError: the row is packed, but the model has lost the lengths on the way here.
    """
    if document_lengths is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise ConfigError(
                "training.packing: this model does not hand its arguments on to its attention, which would go across "
                "documents; set training.packing=false"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # split, not slices: the backward of a slice writes a whole row of zeros for each document.
    slices = zip(*(x.split(list(document_lengths), dim=2) for x in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in slices]
    return torch.cat(outputs, dim=1), None


def why_not_packed(model: PreTrainedModel, max_length: int) -> str | None:
    """Why this model's rows cannot be packed; None where they can.

    Args:
        max_length: tokens of the longest row.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [FULL_ATTENTION])
    window = getattr(config, "sliding_window", None)
    arguments = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in arguments or not any(a.kind == a.VAR_KEYWORD for a in arguments.values()):
        return "its positions cannot be set"
    if model._is_stateful or not kinds <= {FULL_ATTENTION, SLIDING_ATTENTION}:
        return "it has layers that carry a state from one token to the next, across documents"
    if not type(model)._can_set_attn_implementation() or not model._supports_sdpa:
        return "its attention cannot be replaced"
    if window and window < max_length and getattr(config, "use_sliding_window", True):
        return f"its attention window of {window} tokens is shorter than data.max_length={max_length}"
    return None


def pack_attention(model: PreTrainedModel) -> PackingCollator:
    """Make the model attend by document and return the collator that goes with it; flash attention stays as it is."""
    flash = "flash" in str(model.config._attn_implementation)
    if not flash:
        AttentionInterface.register(ATTENTION, attend_by_document)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
    return PackingCollator(flash)
