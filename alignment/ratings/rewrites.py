"""Answers that labelers rewrote: what SFT and the reward model learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alignment.ratings.records import Item, Rating


@dataclass(frozen=True)
class Rewrite:
    """A completion of an item as labelers rewrote it. `labelers` are all who wrote the very same text."""

    completion: int
    text: str
    labelers: tuple[str, ...]


def rewrites_of(item: Item, ratings: Iterable[Rating]) -> list[Rewrite]:
    """The rewrites among the ratings of an item, by completion; a text that is equal to the completion is none."""
    authors: dict[tuple[int, str], list[str]] = {}
    for rating in ratings:
        for place, text in enumerate((rating.answers or {}).get("rewrites", ())):
            if text and text != item.completions[place].text:
                authors.setdefault((place, text), []).append(rating.labeler)
    return [Rewrite(place, text, tuple(names)) for (place, text), names in sorted(authors.items())]


def by_item(ratings: Sequence[Rating]) -> Mapping[int, list[Rating]]:
    """The ratings of each item, by its id."""
    grouped: dict[int, list[Rating]] = {}
    for rating in ratings:
        grouped.setdefault(rating.item, []).append(rating)
    return grouped
