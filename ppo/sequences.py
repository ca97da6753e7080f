"""Prompts with responses as the tensors of one forward pass: packed without padding, or padded rows.

A packed row computes a prompt once for all its responses (`alignment.models.packing`). Padded rows are for the models
that this does not go with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from alignment.models.packing import positions, row_arguments
from alignment.tensors import pad_rows
from ppo.rows import Row

T = TypeVar("T")


class Segment(NamedTuple):
    """Tokens of a packed row whose hidden states depend on nothing else: the last `length` of `tokens`."""

    tokens: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Microbatch:
    """R rows for one forward pass, with M response tokens that count.

    Args:
        inputs: arguments of a transformers body.
        before: (M,) long, where in the flattened hidden states the token before each response token is: its logits and
            its value are read there, so that neither knows the token.
        targets: (M,) long, the response tokens.
        last: (R,) long, where each row's last token is: a reward model reads it.
        rows: (R,) long, the rows' indices in the rollout.
        row, column: (M,) long, the rollout's row and response column of each token.
        weight: 0 for a filler that keeps this process in step with others and teaches nothing; else 1.
        segments: of a packed row, in order; none of padded rows.
    """

    inputs: dict[str, Any]
    before: Tensor
    targets: Tensor
    last: Tensor
    rows: Tensor
    row: Tensor
    column: Tensor
    weight: float = 1.0
    segments: tuple[Segment, ...] = ()

    def pick(self, grid: Tensor) -> Tensor:
        """The entries of a (B, T) grid of the rollout at this batch's tokens: (M,)."""
        return grid[self.row, self.column]

    def put(self, grid: Tensor, values: Tensor | None) -> None:
        """Write (M,) values into a (B, T) grid of the rollout."""
        if values is not None:
            grid[self.row, self.column] = values.to(grid.dtype)

    @property
    def mask(self) -> Tensor:
        """(M,) bool: False for a filler's tokens."""
        return torch.full_like(self.targets, bool(self.weight), dtype=torch.bool)

    def as_filler(self) -> Microbatch:
        return replace(self, weight=0.0)


def lay_out(
    rows: Sequence[Row], row_indices: Sequence[int], packed: bool, pad_token_id: int, device: torch.device
) -> Microbatch:
    """Rows as one batch; neighbours with one prompt share it where rows are packed.

    Args:
        row_indices: of the rows in the rollout.
    """
    assert all(row.prompt and row.response for row in rows)
    inputs, starts, segments = _packed(rows) if packed else _padded(rows, pad_token_id)
    before, targets, row_of, column = [], [], [], []
    for row_index, row, (prompt_end, response_start) in zip(row_indices, rows, starts, strict=True):
        kept = [t for t in range(len(row.response)) if row.kept is None or row.kept[t]]
        before += [response_start + t - 1 if t else prompt_end - 1 for t in kept]
        targets += [row.response[t] for t in kept]
        row_of += [row_index] * len(kept)
        column += kept
    last = [start + len(row.response) - 1 for row, (_, start) in zip(rows, starts, strict=True)]

    def index(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Microbatch(
        {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()},
        before=index(before),
        targets=index(targets),
        last=index(last),
        rows=index(row_indices),
        row=index(row_of),
        column=index(column),
        segments=segments,
    )


_LaidOut = tuple[dict[str, Any], list[tuple[int, int]], tuple[Segment, ...]]
"""Arguments of the body, where the prompt of each row ends and its response starts, and the segments."""


def _packed(rows: Sequence[Row]) -> _LaidOut:
    ids: list[int] = []
    groups: list[list[int]] = []
    starts: list[tuple[int, int]] = []
    segments: list[Segment] = []
    for prompt, same in groupby(rows, key=lambda row: row.prompt):
        branches = [row.response for row in same]
        ids += prompt
        end = len(ids)
        for response in branches:
            starts.append((end, len(ids)))
            ids += response
        # Alone, prompt and response are one document: a prefix would take a second call of attention.
        alone = len(branches) == 1
        group = [0, len(prompt) + len(branches[0])] if alone else [len(prompt), *map(len, branches)]
        groups.append(group)
        segments += [] if alone else [Segment(tuple(prompt), len(prompt))]
        segments += [Segment((*prompt, *response), own) for response, own in zip(branches, group[1:], strict=True)]
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": positions(groups), "use_cache": False}
    return inputs | row_arguments(groups), starts, tuple(segments)


def _padded(rows: Sequence[Row], pad_token_id: int) -> _LaidOut:
    ids, mask = pad_rows([row.prompt + row.response for row in rows], pad_token_id, "right")
    width = ids.shape[1]
    ends = [row_index * width + len(row.prompt) for row_index, row in enumerate(rows)]
    # Without positions: padding on the right leaves those that a model counts itself, which RoBERTa begins at 2.
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    return inputs, [(end, end) for end in ends], ()


def split_by_tokens(rows: Sequence[Row], row_indices: Sequence[int], max_tokens: int, packed: bool) -> list[list[int]]:
    """Row indices in parts of at most `max_tokens`, padding included; rows of one prompt stay together where they fit.

    Sorted by length, so that little is padded. A row beyond the limit is a part of its own.
    """
    by_length = sorted(row_indices, key=lambda each: (len(rows[each].prompt), rows[each].prompt, each))
    groups = [list(same) for _, same in groupby(by_length, key=lambda each: rows[each].prompt)]
    groups.sort(key=lambda group: max(rows[each].num_tokens for each in group))
    parts: list[list[int]] = []
    tokens = width = 0
    prompt: list[int] | None = None
    for row_index in (row_index for group in groups for row_index in group):
        row = rows[row_index]
        own = len(row.response) if packed and row.prompt == prompt else row.num_tokens
        wanted = tokens + own if packed else max(width, row.num_tokens) * (len(parts[-1]) + 1 if parts else 1)
        if not parts or wanted > max_tokens:
            parts.append([])
            tokens, width, own = 0, 0, row.num_tokens
        parts[-1].append(row_index)
        tokens, width, prompt = tokens + own, max(width, row.num_tokens), row.prompt
    return parts


def split_further(parts: Sequence[list[T]], count: int) -> list[list[T]]:
    """Parts with the largest cut in two until there are `count`; fewer where each has a single row left."""
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda number: len(parts[number]))
        half = len(parts[largest]) // 2
        if not half:
            break
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts
