"""Items as files hold them, and the stored ones as writers of files see them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignment.data.row_files import BadRow
from alignment.ratings import Completion, Gold, Item, Kind, Rating, RatingsStore
from alignment.ratings.pairs import Pair, pairs_with_choices
from alignment.ratings.settings import WORDING_KINDS
from alignment.templates.rendering import Message

Wordings = Mapping[str, Sequence[Mapping[str, Any]]]
"""By kind, each with its `at` and `text`, oldest first."""

_HASH = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Entry:
    """An item as a file has it. `answers` are arguments of `RatingsStore.import_rating`, `item` aside."""

    kind: Kind
    prompt: Sequence[Mapping[str, str]]
    completions: Sequence[Completion]
    answers: Sequence[Mapping[str, Any]]
    need: int = 1
    metadata: Mapping[str, Any] | None = None
    gold: Gold | None = None
    simulated: frozenset[str] = frozenset()
    wordings: Wordings = field(default_factory=dict)
    """All versions of the guideline and of the questions that the file's answers were given under."""


class Stored(NamedTuple):
    """A store as writers see it. `ratings` are all, skips and controls too; `counting` those that models learn from.

    `hashes` are the pseudonyms of labelers. A writer counts in `lost` what its format has no place for.
    """

    items: list[Item]
    ratings: list[Rating]
    counting: list[Rating]
    simulated: frozenset[str]
    wordings: Wordings
    hashes: Mapping[str, str]
    lost: Counter[str]


def stored_of(store: RatingsStore) -> Stored:
    """A store as writers see it; of the guideline and the questions, those kinds that were set."""
    kinds = {kind: store.settings.wordings(kind) for kind in WORDING_KINDS}
    return Stored(
        store.items(),
        store.ratings(skips=True),
        store.ratings(for_training=True),
        store.people.simulated(),
        {kind: [{"at": at, "text": text} for _, at, text in wordings] for kind, wordings in kinds.items() if wordings},
        {name: _pseudonym(store, name) for name in store.labelers()},
        Counter(),
    )


def _pseudonym(store: RatingsStore, labeler: str) -> str:
    """The hash that stands for a labeler in exported files; of a labeler who came with one, that one."""
    return labeler if _HASH.fullmatch(labeler) else store.people.labeler_hash(labeler)


def counted(lost: Mapping[str, int]) -> str:
    """What a file has no place for, each with how many."""
    return ", ".join(f"{what} ({count})" for what, count in lost.items() if count)


Rows = Iterator[dict[str, Any]]


def exportable(stored: Stored, left_out: Counter[str]) -> Iterator[Pair]:
    """Judged pairs; counts the items that are none: single scores, and those without a rating that counts."""
    rated = {rating.item for rating in stored.counting}
    for item in stored.items:
        if item.kind == "single":
            left_out["single items (scores of one answer)"] += 1
        elif item.id not in rated:
            left_out["items without a rating that counts"] += 1
    return pairs_with_choices(stored.items, stored.counting)


def kept_row(item: Item, format: str, **types: type) -> dict[str, Any]:
    """What an import kept of the row that an item comes from; {} of any other item."""
    kept = item.metadata.get(format)
    fits = isinstance(kept, dict) and all(isinstance(kept.get(key), kind) for key, kind in types.items())
    return dict(kept) if fits else {}  # type: ignore[arg-type]


def plain_turns(turns: Sequence[Message]) -> list[dict[str, str]]:
    if any(set(turn) != {"role", "content"} for turn in turns):
        raise BadRow("the prompt has tools, weights or names, for which a ratings file has no room")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def short_digest(text: str, digits: int = 16) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
