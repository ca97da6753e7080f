"""What a labeler gets next, and how much is ahead of them. Reads the file; writes nothing.

In this order: the labeler's own open item; calibration items; then ordinary items, in whose place a control now and
then comes (a gold item, or an own earlier pair again with its sides flipped). A draw from the seed, the labeler and the
count of what they got so far decides where, so one who does not know the seed cannot tell. Controls never come after
the last ordinary item.
"""

import json
import random
import sqlite3
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from alignment.ratings.file import COUNTS
from alignment.ratings.records import Order, Why, digest

PLACES = 2**31 - 1  # a prime whose square fits SQLite's 64-bit integers
REPEAT_GAP = 10  # answers between a pair and its repeat, so that it is judged anew and not remembered
_BLOCK = 256

# My open rows that I may still answer: my lease holds, or finished answers and live leases of others leave room.
_MINE_OPEN = f"""
FROM rating JOIN item ON item.id = rating.item
WHERE rating.labeler = :me AND done = 0 AND (NOT {COUNTS} OR claimed_at > :cutoff OR need > answered + (
  SELECT count(*) FROM rating AS other WHERE other.item = item.id AND other.labeler <> :me AND NOT other.done
  AND other.claimed_at > :cutoff AND other.{COUNTS}))
"""
# Items that live leases of others fill up; a handful at any time.
_TAKEN = f"""
SELECT other.item FROM rating AS other INDEXED BY rating_open JOIN item AS held ON held.id = other.item
WHERE NOT other.done AND other.claimed_at > :cutoff AND other.labeler <> :me AND other.{COUNTS}
GROUP BY other.item HAVING count(*) >= held.need - held.answered
"""
_NEEDED = "gold IS NULL AND answered < need"
_NEW_TO_ME = "NOT EXISTS (SELECT 1 FROM rating WHERE rating.item = item.id AND labeler = :me AND (why = 'repeat') = 0)"
_FREE = f"id NOT IN ({_TAKEN}) AND {_NEW_TO_ME}"
# Multiplying places modulo a prime is a shuffle of its own for each labeler, and cheap enough inside SQL.
_TURN = "place * :turn % :places"
_GOLD = f"FROM item WHERE gold IS NOT NULL AND {_NEW_TO_ME}"
_ORDINARY = f"FROM item INDEXED BY item_open WHERE {_NEEDED} AND {_FREE}"
# The next few in the labeler's order after what they got last. Nearly always one of them is free; to look only at
# these spares a look-up for each item.
_NEXT = f"""
FROM (SELECT id, {_TURN} AS turn FROM item INDEXED BY item_open WHERE {_NEEDED} AND {_TURN} > (
  SELECT {_TURN} FROM item JOIN rating ON rating.item = item.id
  WHERE rating.id = (SELECT max(id) FROM rating WHERE labeler = :me AND why = 'random'))
  ORDER BY {_TURN} LIMIT 8) AS item WHERE {_FREE}
"""
_DOUBTED = f"FROM item INDEXED BY item_doubted WHERE {_NEEDED} AND uncertainty IS NOT NULL AND {_FREE}"
_REPEATABLE = """
why IN ('random', 'uncertain') AND choice IN ('first', 'second', 'tie')
AND item NOT IN (SELECT item FROM rating WHERE labeler = :me AND why = 'repeat')
"""
_NEWEST = "SELECT id FROM rating WHERE labeler = :me AND done = 1 ORDER BY done_at DESC, id DESC LIMIT :gap"


@dataclass(frozen=True)
class ControlShares:
    """How many of a labeler's first items are for calibration, and the shares of controls among the others."""

    calibration: int
    gold: float
    repeat: float


@dataclass(frozen=True)
class Chosen:
    """An item to hand out anew."""

    item: int
    order_shown: list[int]
    why: Why


class Labeler:
    """Who asks, at one moment. `seed` is the store's; leases from before `cutoff` have run out."""

    def __init__(self, db: sqlite3.Connection, name: str, seed: int, cutoff: float) -> None:
        self._db, self._name, self._seed = db, name, seed
        turn = int(digest(["order", seed, name]), 16) % (PLACES - 1) + 1
        self._values = {"me": name, "cutoff": cutoff, "turn": turn, "places": PLACES, "gap": REPEAT_GAP}

    @cached_property
    def tally(self) -> Counter[tuple[str, str | None]]:
        """How many rows they have of each (why, choice); the choice of an open row is None."""
        rows = self._db.execute(
            "SELECT why, choice, count(*) AS n FROM rating WHERE labeler = :me GROUP BY why, choice", self._values
        )
        return Counter({(row["why"], row["choice"]): row["n"] for row in rows})

    def open_row(self) -> int | None:
        """The rating row that they still have to answer, the newest first, which is what undo relies on."""
        row = self._one(f"SELECT rating.id {_MINE_OPEN} ORDER BY claimed_at DESC, rating.id DESC LIMIT 1")
        return None if row is None else int(row["id"])

    def choose(self, order: Order, shares: ControlShares) -> Chosen | None:
        """A new item for them, or None when nothing is left."""
        if self._calibration_left(shares) > 0:
            return self._new(_GOLD, _TURN, "calibration")
        ordinary = self._ordinary(order)
        if ordinary is None:
            return None
        draw = next(self._draws())
        if draw < shares.gold:
            return self._new(_GOLD, _TURN, "gold") or ordinary
        if draw < shares.gold + shares.repeat:
            return self._repeat() or ordinary
        return ordinary

    def ahead(self, shares: ControlShares) -> int:
        """How many answers they still have to give if everybody else stops now and they skip nothing.

        Controls are counted where the draws will put them: a total that grew with each would give them away.
        """
        open_rows = self._count(f"SELECT count(*) {_MINE_OPEN}")
        calibration = self._calibration_left(shares)
        ordinary = self._count(f"SELECT count(*) {_ORDINARY}")
        gold = self._count(f"SELECT count(*) {_GOLD}") - calibration
        return open_rows + calibration + ordinary + self._controls_ahead(shares, calibration, ordinary, gold)

    def sides(self, key: str, count: int) -> list[int]:
        """The order in which they see the completions of an item."""
        order = list(range(count))
        random.Random(f"sides:{self._seed}:{self._name}:{key}").shuffle(order)
        return order

    def _ordinary(self, order: Order) -> Chosen | None:
        if order == "uncertain" and self._given() % 2 == 0:
            doubted = self._new(_DOUBTED, "uncertainty, id", "uncertain")
            if doubted is not None:
                return doubted
        return self._new(_NEXT, "turn", "random") or self._new(_ORDINARY, f"{_TURN}, id", "random")

    def _new(self, where: str, order_by: str, why: Why) -> Chosen | None:
        row = self._one(
            "SELECT id, key, json_array_length(completions) AS count FROM item"
            f" WHERE id = (SELECT id {where} ORDER BY {order_by} LIMIT 1)"
        )
        return None if row is None else Chosen(row["id"], self.sides(row["key"], row["count"]), why)

    def _repeat(self) -> Chosen | None:
        """An own pair at least a gap old: any such; in a session too short for the gap, half the session old."""
        gap = self._gap(self._count(f"SELECT count(*) {_ORDINARY}"))
        rows = self._db.execute(
            f"SELECT item, order_shown FROM rating WHERE labeler = :me AND {_REPEATABLE} AND id NOT IN ({_NEWEST})"
            " ORDER BY id",
            self._values | {"gap": gap},
        ).fetchall()
        if not rows:
            return None
        row = random.Random(f"repeat:{self._seed}:{self._name}:{self.tally.total()}").choice(rows)
        return Chosen(row["item"], json.loads(row["order_shown"])[::-1], "repeat")

    def _given(self) -> int:
        return sum(count for (why, _), count in self.tally.items() if why in ("random", "uncertain"))

    def _gap(self, ordinary: int) -> int:
        return max(1, min(REPEAT_GAP, (self._given() + ordinary) // 2))

    def _calibration_left(self, shares: ControlShares) -> int:
        given = sum(count for (why, _), count in self.tally.items() if why == "calibration")
        if given >= shares.calibration:
            return 0
        return min(shares.calibration - given, self._count(f"SELECT count(*) {_GOLD}"))

    def _controls_ahead(self, shares: ControlShares, calibration: int, ordinary: int, gold: int) -> int:
        if ordinary == 0 or shares.gold + shares.repeat == 0:
            return 0
        gap = self._gap(ordinary)
        # Whether a pair that may come again, of the newest answers and those to come; older ones are only counted.
        newest = f"SELECT {_REPEATABLE} FROM rating WHERE id IN ({_NEWEST}) ORDER BY done_at, id"
        to_come = f"SELECT kind = 'pair' AND {COUNTS} {_MINE_OPEN}"
        flags = [self._db.execute(query, self._values | {"gap": gap}).fetchall() for query in (newest, to_come)]
        recent = deque(bool(row[0]) for rows in flags for row in rows)
        old = self._repeatable() - sum(bool(row[0]) for row in flags[0])
        recent.extend([False] * calibration)
        pairs = self._one(f"SELECT 1 FROM item INDEXED BY item_open WHERE {_NEEDED} AND kind = 'pair'") is not None
        draws = self._draws(calibration)
        controls = 0
        while ordinary:
            while len(recent) > gap:
                old += recent.popleft()
            draw = next(draws)
            if gold and draw < shares.gold:
                gold -= 1
                controls += 1
                recent.append(False)
            elif old > 0 and shares.gold <= draw < shares.gold + shares.repeat:
                old -= 1
                controls += 1
                recent.append(False)
            else:
                ordinary -= 1
                recent.append(pairs)
        return controls

    def _repeatable(self) -> int:
        pairs = sum(
            count
            for (why, choice), count in self.tally.items()
            if why in ("random", "uncertain") and choice in ("first", "second", "tie")
        )
        return pairs - sum(count for (why, _), count in self.tally.items() if why == "repeat")

    def _draws(self, skip: int = 0) -> Iterator[float]:
        """One number in [0, 1) for each item that they get, from the next one (or `skip` later) on."""
        place = self.tally.total() + skip
        while True:
            block = random.Random(f"mix:{self._seed}:{self._name}:{place // _BLOCK}")
            numbers = [block.random() for _ in range(_BLOCK)]
            yield from numbers[place % _BLOCK :]
            place += _BLOCK - place % _BLOCK

    def _one(self, query: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(query, self._values).fetchone()
        return row

    def _count(self, query: str) -> int:
        row = self._one(query)
        assert row is not None
        return int(row[0])
