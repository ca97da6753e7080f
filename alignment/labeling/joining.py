"""Which item of a store a vote belongs to, where a file has a row for each vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.labeling.entries import Entry
from alignment.ratings import Completion, RatingsStore
from alignment.ratings.questionnaire import as_seen
from alignment.ratings.records import digest, flipped, item_key

Place = tuple[Sequence[Completion], int]
"""The completions of an item in its order, and its copy number."""


class Joiner:
    """Brings the votes on the same answers together, whichever stands first in a row.

    Named labelers' votes go to one item. Votes without a name cannot be told apart, so the nth of them goes to the nth
    item of these answers. The same answers by other models are another item.
    """

    def __init__(self, store: RatingsStore, unnamed: str) -> None:
        self._unnamed_name = unnamed
        self._places: dict[str, list[Place]] = {}
        self._copies: Counter[str] = Counter()
        self._unnamed: Counter[str] = Counter()
        for item in store.items():
            base = item_key(item.kind, item.prompt, item.completions)
            if item.key == item_key(item.kind, item.prompt, item.completions, self._copies[base]):
                place = item.completions, self._copies[base]
                self._places.setdefault(_texts(item.kind, item.prompt, item.completions), []).append(place)
                self._copies[base] += 1

    def place(self, entry: Entry) -> Iterator[tuple[Entry, int]]:
        """The entry, or its parts, each in the order of its item and with the item's copy number."""
        named = [answer for answer in entry.answers if answer["labeler"] is not None]
        if named:
            yield self._placed(entry, named, 0)
        key = digest([_texts(entry.kind, entry.prompt, entry.completions), [each.model for each in entry.completions]])
        for answer in entry.answers:
            if answer["labeler"] is None:
                yield self._placed(entry, [{**answer, "labeler": self._unnamed_name}], self._unnamed[key])
                self._unnamed[key] += 1

    def _placed(self, entry: Entry, answers: Sequence[Mapping[str, Any]], number: int) -> tuple[Entry, int]:
        places = self._places.setdefault(_texts(entry.kind, entry.prompt, entry.completions), [])
        fitting = [place for place in places if order_of(entry.completions, place[0]) is not None]
        while len(fitting) <= number:
            base = item_key(entry.kind, [dict(turn) for turn in entry.prompt], entry.completions)
            fitting.append((entry.completions, self._copies[base]))
            places.append(fitting[-1])
            self._copies[base] += 1
        completions, copy = fitting[number]
        order = order_of(entry.completions, completions)
        assert order is not None
        return replace(entry, completions=completions, answers=[turned(answer, order) for answer in answers]), copy


def _texts(kind: str, prompt: Sequence[Mapping[str, str]], completions: Sequence[Completion]) -> str:
    return digest([kind, [dict(turn) for turn in prompt], sorted([each.text, each.ended] for each in completions)])


def order_of(given: Sequence[Completion], wanted: Sequence[Completion]) -> list[int] | None:
    """For each wanted completion its place among the given ones; None if other models wrote them.

    Given completions without a model are those of any model.
    """
    left = list(range(len(given)))
    order = []
    for completion in wanted:
        fits = [
            place
            for place in left
            if given[place].text == completion.text and given[place].model in (None, completion.model)
        ]
        if not fits:
            return None
        order.append(fits[0])
        left.remove(fits[0])
    return order


def turned(answer: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """An answer in the order of its item."""
    kept = dict(answer)
    if answer.get("ranks") is not None:
        kept["ranks"] = [answer["ranks"][place] for place in order]
    if answer.get("answers"):
        kept["answers"] = as_seen(answer["answers"], order)
    if answer["choice"] in ("first", "second"):
        kept["choice"] = flipped(answer["choice"], order)
    return kept
