"""Disputed items, and the referee who decides them.

An item is disputed if two labelers contradict each other: one prefers the first answer of a pair and the other the
second; one ranks an answer above another and the other below it; or their scores differ by three points or more, so
that no true score is within a point of both (the tolerance of gold items). A tie contradicts nothing, and a skip is no
answer. The referee decides without the votes and sees them afterwards. A verdict does not count toward `need`; in
training and export it stands for the votes on its item, which stay for agreement.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import combinations, groupby
from typing import NamedTuple

from alignment.ratings.choosing import Chosen, ControlShares, Labeler
from alignment.ratings.file import COUNTS
from alignment.ratings.records import NO_VOTES, Order, Rating

FAR_APART = 3
"""Points between two scores that cannot both be right."""
_VOTE = f"done AND choice <> 'skip' AND {COUNTS}"
_DIFFERING = f"""
SELECT item, choice, ranks, score FROM rating WHERE {_VOTE} AND item IN (
  SELECT item FROM rating WHERE {_VOTE} GROUP BY item
  HAVING count(DISTINCT choice || ifnull(ranks, '') || ifnull(score, '')) > 1) ORDER BY item
"""
_SETTLED = "SELECT item FROM rating WHERE why = 'verdict' AND done AND choice <> 'skip'"


class Answered(NamedTuple):
    """What a vote says, in item order."""

    choice: str
    ranks: Sequence[int] | None
    score: int | None


def doubt(votes: Sequence[Answered | Rating]) -> float:
    """How far the votes on an item contradict each other, from 0 (not at all) to 1/2 (two halves, or best and worst).

    For choices it is the fraction of the smaller side; for rankings that of the two answers that are disputed most; for
    scores half of their range over the range of the scale.
    """
    scores = [vote.score for vote in votes if vote.score is not None]
    spread = max(scores) - min(scores) if scores else 0
    found = [spread / 12] if spread >= FAR_APART else [0.0]
    sides = Counter(vote.choice for vote in votes if vote.choice in ("first", "second"))
    found.append(_smaller(sides["first"], sides["second"]))
    rankings = [vote.ranks for vote in votes if vote.ranks is not None]
    for one, other in combinations(range(len(rankings[0]) if rankings else 0), 2):
        above = sum(ranks[one] < ranks[other] for ranks in rankings)
        found.append(_smaller(above, sum(ranks[one] > ranks[other] for ranks in rankings)))
    return max(found)


def _smaller(one: int, other: int) -> float:
    return min(one, other) / (one + other) if one and other else 0.0


def disputed(db: sqlite3.Connection) -> dict[int, float]:
    """The `doubt` of each disputed item, whether or not a referee has decided it."""
    rows = (
        (row["item"], Answered(row["choice"], json.loads(row["ranks"] or "null"), row["score"]))
        for row in db.execute(_DIFFERING)
    )
    doubts = {item: doubt([vote for _, vote in votes]) for item, votes in groupby(rows, key=lambda row: row[0])}
    return {item: found for item, found in doubts.items() if found > 0}


def settled_items(db: sqlite3.Connection) -> set[int]:
    """The items that a referee has decided."""
    return {row["item"] for row in db.execute(_SETTLED)}


def undecided(db: sqlite3.Connection) -> list[int]:
    """Disputed items without a verdict: those with all the votes they need first, then the most doubtful."""
    settled = settled_items(db)
    found = {item: doubt for item, doubt in disputed(db).items() if item not in settled}
    waiting = {row["id"] for row in db.execute("SELECT id FROM item WHERE gold IS NULL AND answered < need")}
    return sorted(found, key=lambda item: (item in waiting, -found[item], item))


class Referee(Labeler):
    """A referee at one moment. They get the disputed items on which they have not voted themselves."""

    @cached_property
    def tally(self) -> Counter[tuple[str, str | None]]:
        """Number of their verdicts by (why, choice); the choice of an open one is None."""
        rows = self._db.execute(
            "SELECT choice, count(*) AS n FROM rating WHERE labeler = :me AND why = 'verdict' GROUP BY choice",
            self._values,
        )
        return Counter({("verdict", row["choice"]): row["n"] for row in rows})

    def open_row(self) -> int | None:
        """The id of their newest open verdict."""
        row = self._one(
            "SELECT id FROM rating WHERE labeler = :me AND why = 'verdict' AND NOT done"
            " ORDER BY claimed_at DESC, id DESC LIMIT 1"
        )
        return None if row is None else int(row["id"])

    def choose(self, order: Order, shares: ControlShares) -> Chosen | None:
        """A disputed item for them, or None if none is left."""
        item = next(self._left(), None)
        if item is None:
            return None
        row = self._db.execute(
            "SELECT key, json_array_length(completions) AS count FROM item WHERE id = ?", (item,)
        ).fetchone()
        return Chosen(item, self.sides(row["key"], row["count"]), "verdict")

    def ahead(self, shares: ControlShares) -> int:
        """Number of verdicts that they still have to give if everybody else stops now."""
        open_rows = sum(count for (_, choice), count in self.tally.items() if choice is None)
        return open_rows + sum(1 for _ in self._left())

    def _left(self) -> Iterator[int]:
        rows = self._db.execute(
            "SELECT item FROM rating WHERE labeler = :me"
            " UNION SELECT item FROM rating WHERE why = 'verdict' AND NOT done AND claimed_at > :cutoff",
            self._values,
        )
        taken = {row["item"] for row in rows}
        return (item for item in undecided(self._db) if item not in taken)


def verdicts_of(ratings: Iterable[Rating]) -> dict[int, Rating]:
    """The verdict on each item that has one: the newest of two."""
    found = [rating for rating in ratings if rating.why == "verdict" and rating.choice != "skip"]
    return {rating.item: rating for rating in sorted(found, key=lambda rating: (rating.done_at, rating.id))}


def settled(ratings: Sequence[Rating]) -> list[Rating]:
    """The ratings that models are trained on: an item's verdict if it has one, else the labelers' votes."""
    verdicts = verdicts_of(ratings)
    return [
        rating
        for rating in ratings
        if (verdicts.get(rating.item) is rating) or (rating.why not in NO_VOTES and rating.item not in verdicts)
    ]
