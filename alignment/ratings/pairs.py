"""Ratings of any kind as choices between two completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from alignment.data.formats import Choice
from alignment.ratings.records import Item, Rating


@dataclass(frozen=True)
class Pair:
    """Two completions of an item, by index, and each labeler's choice between them."""

    item: Item
    first: int
    second: int
    choices: dict[str, Choice]

    @property
    def majority(self) -> Choice:
        """The majority of `first` and `second` votes; tie votes are ignored, and equal counts are a tie."""
        choices = list(self.choices.values())
        lead = choices.count("first") - choices.count("second")
        return "first" if lead > 0 else "second" if lead < 0 else "tie"


def pairs_with_choices(items: Sequence[Item], ratings: Sequence[Rating]) -> Iterator[Pair]:
    """Yield the rated pair items, and each pair of completions of rated rankings, in the order of the items.

    A labeler's repeat of an item must not be among the ratings.
    """
    by_item: dict[int, list[Rating]] = {}
    for rating in ratings:
        by_item.setdefault(rating.item, []).append(rating)
    for item in items:
        answers = by_item.get(item.id, [])
        for first, second in combinations(range(len(item.completions)), 2):
            choices = {rating.labeler: choice for rating in answers if (choice := choice_of(rating, first, second))}
            if choices:
                yield Pair(item, first, second, choices)


def choice_of(rating: Rating, first: int, second: int) -> Choice | None:
    """A rating's choice between two completions; None for a skip or a score."""
    if rating.ranks is not None:
        first_rank, second_rank = rating.ranks[first], rating.ranks[second]
        return "first" if first_rank < second_rank else "second" if second_rank < first_rank else "tie"
    return rating.choice if rating.choice in ("first", "second", "tie") else None
