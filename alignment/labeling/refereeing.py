"""What a referee sees after a verdict: the votes on the item, without names."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from alignment.labeling.answers import as_shown
from alignment.ratings import Assignment, RatingsStore
from alignment.ratings.records import NO_VOTES
from alignment.terminal import one_line

MOST_CHARACTERS = 300
"""Characters of a comment that are shown; `alignment rate show` has all of it."""


class Decided(NamedTuple):
    """A referee's verdict and the labelers' votes on the item, in words, as the referee saw it.

    `votes` are like `2 labelers: LEFT is better` and `1 labeler: a tie`.
    """

    verdict: str
    votes: list[str]
    comments: list[str]


def decided(store: RatingsStore, assignment: Assignment) -> Decided | None:
    """What a referee sees once they have decided the item; None before, after a skip, and for any other answer."""
    if assignment.why != "verdict":
        return None
    ratings = store.ratings(item=assignment.item)
    verdict = next((rating for rating in ratings if rating.id == assignment.rating), None)
    if verdict is None:
        return None
    votes = [rating for rating in ratings if rating.why not in NO_VOTES]
    said = Counter(str(as_shown(vote, assignment)) for vote in votes)
    comments = [f'"{_cut(one_line(vote.comment))}"' for vote in votes if vote.comment]
    counted = [f"{count} labeler{'s' * (count > 1)}: {words}" for words, count in said.most_common()]
    return Decided(str(as_shown(verdict, assignment)), counted, comments)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
