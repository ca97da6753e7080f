"""Names of labelers that are so alike that one of them may be a typing error."""

from __future__ import annotations

import re
from collections.abc import Iterable

MIN_LENGTH = 3
"""Shorter names are alike only in case and spaces."""
LONG = 8
"""Names of this length may differ in two places."""


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that may be meant, the nearest first; [] if the name itself is known.

    Alike are names that differ in case, spaces and signs alone, or in one letter (two, if they are long), or in two
    letters that changed places. Names whose numbers differ are not: `worker 1` and `worker 2` are two.
    """
    found = sorted(set(known))
    if name in found:
        return []
    distances = {other: _distance(name, other) for other in found}
    return sorted((other for other in found if distances[other] is not None), key=lambda other: distances[other] or 0)


def _distance(name: str, other: str) -> int | None:
    """The number of differences between two names that are alike; None if they are not."""
    if re.findall(r"\d+", name) != re.findall(r"\d+", other):
        return None
    one, two = _letters(name), _letters(other)
    if one == two:
        return 0
    shorter = min(len(one), len(two))
    most = 0 if shorter < MIN_LENGTH else 1 if shorter < LONG else 2
    distance = edits(one, two)
    return distance if distance <= most else None


def _letters(name: str) -> str:
    """A name without case, spaces and signs; a name of signs alone stays."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def edits(one: str, two: str) -> int:
    """The least number of letters to add, drop or change, or neighbours to swap, that makes one word of the other.

    The optimal string alignment distance: no letter is changed twice.
    """
    before: list[int] = []
    row = list(range(len(two) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(two, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == two[j - 2] and one[i - 2] == other:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]
