"""Demonstrations as token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
from transformers import PreTrainedTokenizerBase

from alignment.data import DataError, Demonstration
from alignment.templates import encode_conversation

IGNORED = -100
"""Label of a token without loss, as torch's cross entropy has it."""


def encode_demonstrations(
    demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[datasets.Dataset, int]:
    """`input_ids` and `labels` (the assistant's tokens through EOS; everything else ignored), and how many
    demonstrations were left out because their response alone is longer than `max_length` tokens.

    Raises:
        DataError: none is left.
    """
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for demonstration in demonstrations:
        encoded = encode_conversation(tokenizer, demonstration.messages, max_length)
        if encoded is not None:
            rows["input_ids"].append(encoded.input_ids)
            kept = zip(encoded.input_ids, encoded.loss_mask, strict=True)
            rows["labels"].append([token if trained else IGNORED for token, trained in kept])
    num_left_out = len(demonstrations) - len(rows["input_ids"])
    if demonstrations and not rows["input_ids"]:
        raise DataError(f"none of the {num_left_out} responses fits into data.max_length={max_length} tokens; raise it")
    return datasets.Dataset.from_dict(rows), num_left_out
