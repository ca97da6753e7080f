"""Packed rows: sequences laid end to end in one row without padding, optionally with shared prefixes.

A row is a sequence of groups. A group is a prefix with its branches: a prompt and the answers to it. A branch attends
causally to itself and to its whole prefix, and to nothing else; its positions continue those of the prefix. A document
is a group with no prefix and one branch. So the linear layers see no padding, and each prompt once.

Attention runs piece by piece, each branch on its prefix and itself, at the cost of separate rows. One masked call for a
whole group took 1.5 times as long with four branches, and 1.4 to 4 times with nine.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from alignment.errors import ConfigError

ATTENTION = "sdpa_by_group"

Groups = Sequence[Sequence[int]]
"""For each group, the length of its prefix (0 for none), then that of each branch."""


def positions(groups: Groups) -> Tensor:
    """Positions of the tokens of a packed row, (1, N)."""
    starts = [(0 if index == 0 else group[0], length) for group in groups for index, length in enumerate(group)]
    return torch.cat([torch.arange(start, start + length) for start, length in starts])[None]


def row_arguments(groups: Groups) -> dict[str, Any]:
    """Extra arguments of a packed row for a model that attends by group."""
    # transformers uses a four-dimensional mask as is; without one it would build an unused (N, N) mask.
    return {"packed_groups": groups, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


def group_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_groups: Groups | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention within each group of a packed row; as `sdpa` for a batch that is not packed.

    Args:
        query, key, value: (1, heads, N, width)
        packed_groups: their tokens sum to N.

    Returns:
        (1, N, heads, width), as transformers' attention functions do.

    Raises:
        ConfigError: the row is packed, but the model has lost the groups on the way here.
    """
    if packed_groups is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise ConfigError(
                "training.packing: this model does not hand its arguments on to its attention, which would go across "
                "documents; set training.packing=false"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    lengths = [length for group in packed_groups for length in group]
    # split rather than slices: the backward of a slice writes a full row of zeros for each piece.
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for _, *branches in packed_groups:
        prefix = next(pieces)
        if prefix[0].shape[2]:
            outputs.append(sdpa_attention_forward(module, *prefix, None, **options)[0])
        for _ in branches:
            outputs.append(_attend_to_both(module, prefix, next(pieces), **options))
    return torch.cat(outputs, dim=1), None


def _attend_to_both(module: nn.Module, prefix: Sequence[Tensor], branch: Sequence[Tensor], **options: Any) -> Tensor:
    """The branch's query on the keys and values of the prefix and, causally, on its own."""
    query, key, value = branch
    if not prefix[0].shape[2]:
        return sdpa_attention_forward(module, query, key, value, None, **options)[0]
    key, value = torch.cat([prefix[1], key], dim=2), torch.cat([prefix[2], value], dim=2)
    rows, columns = query.shape[2], key.shape[2]
    # torch's own causal mask is aligned with the first key, not with the last.
    mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    return sdpa_attention_forward(module, query, key, value, mask[None, None], **options)[0]


def why_not_packed(model: PreTrainedModel, max_length: int) -> str | None:
    """A reason against packing this model's rows that short test rows would not show; None if there is none.

    `alignment.models.selfcheck` verifies at the start of a run that packed and separate rows give the same results.

    Args:
        max_length: tokens of the longest sequence.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "its positions cannot be set"
    if model._is_stateful:
        return "it has layers that carry a state from one token to the next, across documents"
    if not type(model)._can_set_attn_implementation() or not model._supports_sdpa:
        return "its attention cannot be replaced"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk < max_length:
        return f"its attention chunks of {chunk} tokens are shorter than rows of {max_length} (data.max_length)"
    if window and window < max_length and getattr(config, "use_sliding_window", True):
        return f"its attention window of {window} tokens is shorter than rows of {max_length} (data.max_length)"
    return None


def uses_flash(model: PreTrainedModel) -> bool:
    """Whether the model runs flash attention, which separates documents itself but supports no shared prefix."""
    return "flash" in str(model.config._attn_implementation)


def attend_by_group(model: PreTrainedModel) -> None:
    """Make the model attend by group in packed rows, and as `sdpa` otherwise."""
    AttentionInterface.register(ATTENTION, group_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
