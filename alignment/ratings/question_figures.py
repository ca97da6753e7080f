"""What labelers answered to the questions beside the choice, in figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from alignment.ratings.agreement import alpha_estimate, wilson
from alignment.ratings.records import Item, Rating

Figures = dict[str, Any]


def question_figures(items: Mapping[int, Item], counting: Sequence[Rating]) -> Figures:
    """Counts of the answers, and how far labelers agree on each attribute.

    Returns:
        `attributes`, by name: `answers` (ratings with it), `counts` of the values, `mean`, `alpha_ordinal` with a 95%
        interval, and `choice`: how often the answer that is better in the attribute was also chosen, among the
        decided ones. On the pair scale values count from the first completion: 3 to -3. Then counts of `tags`, of the
        kinds of `spans`, and of ratings with `rewrites` and with `comments` on single answers.
    """
    answered = [rating for rating in counting if rating.answers]
    names = dict.fromkeys(name for rating in answered for name in _attributes(rating))
    return {
        "attributes": {name: _attribute(name, items, answered) for name in names},
        "tags": dict(Counter(tag for rating in answered for tag in (rating.answers or {}).get("tags", ()))),
        "spans": dict(Counter(kind for rating in answered for kind in _kinds(rating))),
        **{kind: sum(kind in (rating.answers or {}) for rating in answered) for kind in ("rewrites", "comments")},
    }


def _kinds(rating: Rating) -> Iterator[str]:
    return (kind for spans in (rating.answers or {}).get("spans", ()) for *_, kind in spans)


def _attributes(rating: Rating) -> Mapping[str, Any]:
    attributes: Mapping[str, Any] = (rating.answers or {}).get("attributes", {})
    return attributes


def _attribute(name: str, items: Mapping[int, Item], answered: Sequence[Rating]) -> Figures:
    ballots: dict[tuple[int, int], dict[str, int]] = {}
    followed: list[bool] = []
    for rating in answered:
        for place, value in _values(rating, name):
            ballots.setdefault((rating.item, place), {})[rating.labeler] = value
        lead = _lead(_attributes(rating).get(name))
        if lead and rating.choice in ("first", "second"):
            followed.append((lead > 0) == (rating.choice == "first"))
    values = [value for ballot in ballots.values() for value in ballot.values()]
    groups: list[Hashable] = [tuple(turn["content"] for turn in items[item].prompt) for item, _ in ballots]
    return {
        "answers": sum(name in _attributes(rating) for rating in answered),
        "counts": dict(sorted(Counter(values).items())),
        "mean": statistics.fmean(values),
        "alpha_ordinal": alpha_estimate(list(ballots.values()), "ordinal", groups),
        "choice": dict(wilson(sum(followed), len(followed))) if followed else None,
    }


def _values(rating: Rating, name: str) -> Iterator[tuple[int, int]]:
    """The values of an attribute with the completion that each is of; one of a pair is of place 0."""
    value = _attributes(rating).get(name)
    if isinstance(value, int):
        yield 0, value
    elif value is not None:
        yield from enumerate(value)


def _lead(value: Any) -> int:
    """How far the first answer of a pair is ahead; 0 where that is not decided."""
    if isinstance(value, list):
        return value[0] - value[1] if len(value) == 2 else 0
    return value or 0
