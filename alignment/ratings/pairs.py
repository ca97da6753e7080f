"""What labelers said, as choices between two answers, whatever kind of item they said it of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from alignment.data.formats import Choice
from alignment.ratings.records import Item, Rating


@dataclass(frozen=True)
class Pair:
    """Two completions of an item, by their places in it, and what each labeler said of them."""

    item: Item
    first: int
    second: int
    choices: dict[str, Choice]

    @property
    def majority(self) -> Choice:
        """What more chose, `first` or `second`; ties count for neither, and as many for each is a tie."""
        said = list(self.choices.values())
        lead = said.count("first") - said.count("second")
        return "first" if lead > 0 else "second" if lead < 0 else "tie"


def judged_pairs(items: Sequence[Item], ratings: Sequence[Rating]) -> Iterator[Pair]:
    """The pair items that somebody rated, and each two completions of rated rankings, in the order of the items.

    A labeler's repeat of an item must not be among the ratings.
    """
    by_item: dict[int, list[Rating]] = {}
    for rating in ratings:
        by_item.setdefault(rating.item, []).append(rating)
    for item in items:
        given = by_item.get(item.id, [])
        for first, second in combinations(range(len(item.completions)), 2):
            choices = {rating.labeler: choice for rating in given if (choice := choice_of(rating, first, second))}
            if choices:
                yield Pair(item, first, second, choices)


def choice_of(rating: Rating, first: int, second: int) -> Choice | None:
    """What a rating says of two completions; None for a skip or a score."""
    if rating.ranks is not None:
        one, other = rating.ranks[first], rating.ranks[second]
        return "first" if one < other else "second" if other < one else "tie"
    return rating.choice if rating.choice in ("first", "second", "tie") else None
