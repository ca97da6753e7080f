"""Comparisons from a ratings database or a file, and as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config import DataConfig, DataPart, TooLong
from alignment.data import Comparison, Records, Vote, to_comparisons, train_and_eval
from alignment.importers import PassedOver
from alignment.ratings import RatingsStore, is_ratings_file
from alignment.readers import DataError
from alignment.sources import Rows, Source, open_source
from alignment.templates import Encoded, Message, encode_conversation, fit
from alignment.tensors import pad_rows


def open_ratings(part: DataPart, config: DataConfig) -> Source:
    """The comparisons of a ratings database, which is told by its header, not its name; any other source as it is."""
    if not is_ratings_file(part.path):
        return open_source(part, config)
    with RatingsStore(part.path) as store:
        if not any(rating.kind == "pair" for rating in store.ratings(for_training=True)):
            raise DataError(
                f"{part.path}: no rated pairs yet; rate some with scripts/rate.py --db {part.path} --labeler NAME"
            )
        mark = {"name": store.path.name, **store.fingerprint()}
    return Source(rated_pairs(part.path), lambda: mark)


def rated_pairs(path: str) -> Rows:
    """One comparison per rated item, with the votes of all labelers; skips do not count.

    Items whose texts are equal have nothing to compare and are passed over.
    """
    with RatingsStore(path) as store:
        votes: dict[int, list[Vote]] = {}
        for rating in store.ratings(for_training=True):
            assert rating.choice != "skip"  # not asked for
            if rating.choice == "ranked" or rating.choice == "scored":
                continue
            votes.setdefault(rating.item, []).append(Vote(rating.choice, rating.strength, rating.labeler))
        items = store.items()
    for item in items:
        if item.id not in votes:
            continue
        where = f"{path}:item {item.id}"
        first, second = (completion.text for completion in item.completions)
        if first == second:
            yield where, PassedOver("both completions of a rated pair are the same")
            continue
        prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in item.prompt)
        yield where, Comparison(prompt, first, second, tuple(votes[item.id]))


def read_comparisons(config: DataConfig) -> tuple[Records[Comparison], Records[Comparison]]:
    """Training and held-out comparisons.

    Raises:
        DataError: see `alignment.data.Reading`; no rated item; or every pair to learn from is a tie.
    """
    train, held_out = train_and_eval(config, to_comparisons, open_ratings)
    if all(row.target == 0.5 for row in train.items):
        raise DataError(
            f"{config.parts[0].path}: each of the {len(train.items)} pairs to learn from is a tie, so there is nothing "
            "to learn; rate more pairs"
        )
    return train, held_out


@dataclass(frozen=True)
class EncodedComparison:
    """Token ids of both whole conversations, each ending in EOS, beside the comparison they come from."""

    comparison: Comparison
    first_ids: list[int]
    second_ids: list[int]


def encode_comparisons(
    comparisons: Sequence[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong = "trim_prompt",
    note: Callable[[Comparison, Encoded, Encoded | None], None] = lambda comparison, encoded, fitted: None,
) -> tuple[list[EncodedComparison], dict[str, int]]:
    """Render both sides; the oldest part of a long prompt is cut, the answers stay whole.

    Args:
        note: is told of each comparison all tokens of its longer side, and those that are left (None: the comparison
            is left out as too long).

    Returns:
        The encoded comparisons, and how many were left out: `too_long` (an answer alone exceeds `max_length`) and
        `identical` (both sides have the same tokens, so the loss would be ln 2 whatever the model says).
    """
    encoded: list[EncodedComparison] = []
    left_out = {"too_long": 0, "identical": 0}
    for comparison in comparisons:
        whole = [
            encode_conversation(tokenizer, [*comparison.prompt, Message(role="assistant", content=text)])
            for text in (comparison.first, comparison.second)
        ]
        assert whole[0] is not None and whole[1] is not None  # nothing is left out without max_length
        first, second = (fit(tokenizer, side, max_length, too_long) for side in (whole[0], whole[1]))
        longer = max((whole[0], first), (whole[1], second), key=lambda side: len(side[0].input_ids))
        note(comparison, longer[0], longer[1] if first and second else None)
        if first is None or second is None:
            left_out["too_long"] += 1
        elif first.input_ids == second.input_ids:
            left_out["identical"] += 1
        else:
            encoded.append(EncodedComparison(comparison, first.input_ids, second.input_ids))
    if comparisons and not encoded:
        raise DataError(
            f"none of the {len(comparisons)} comparisons can be used (left out: {left_out}); "
            f"raise data.max_length={max_length}"
        )
    return encoded, left_out


def as_dataset(encoded: Sequence[EncodedComparison]) -> datasets.Dataset:
    """Rows as `RewardTrainer` knows them (`chosen_ids`, `rejected_ids`), plus the votes as `target` and `weight`."""
    return datasets.Dataset.from_dict(
        {
            "chosen_ids": [row.first_ids for row in encoded],
            "rejected_ids": [row.second_ids for row in encoded],
            "target": [row.comparison.target for row in encoded],
            "weight": [row.comparison.weight for row in encoded],
            # What group_by_length sorts by; the Trainer would look for input_ids and fail.
            "length": [max(len(row.first_ids), len(row.second_ids)) for row in encoded],
        }
    )


class PairCollator:
    """Stacks B pairs into 2B right-padded rows, all first completions before all second ones.

    Rows are padded to a length that `pad_to_multiple_of` divides.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int = 1) -> None:
        self._pad_token_id = pad_token_id
        self._multiple = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        input_ids, attention_mask = pad_rows(sequences, self._pad_token_id, "right", self._multiple)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "target": torch.tensor([row["target"] for row in rows], dtype=torch.float32),
            "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        }
