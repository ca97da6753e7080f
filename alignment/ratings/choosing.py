"""What a labeler gets next, and how much is ahead of them. Reads the file; writes nothing.

In this order: the labeler's own open item; calibration items; then ordinary items, in whose place a control now and
then comes (a gold item, or an own earlier pair again with its sides flipped). A draw from the seed, the labeler and the
count of what they got so far decides where, so one who does not know the seed cannot tell. Controls never come after
the last ordinary item.
"""

import json
import random
import sqlite3
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from alignment.ratings.file import COUNTS
from alignment.ratings.records import Order, Why, digest

PLACES = 2**31 - 1  # a prime whose square fits SQLite's 64-bit integers
REPEAT_GAP = 10  # answers between a pair and its repeat, so that it is judged anew and not remembered
_BLOCK = 256

# My open rows that I may still answer: my lease holds, or finished answers and live leases of others leave room.
_MINE_OPEN = f"""
FROM rating JOIN item ON item.id = rating.item
WHERE rating.labeler = :me AND NOT done AND (NOT {COUNTS} OR claimed_at > :cutoff OR need > answered + (
  SELECT count(*) FROM rating AS other WHERE other.item = item.id AND other.labeler <> :me AND NOT other.done
  AND other.claimed_at > :cutoff AND other.{COUNTS}))
"""
# Items without an answer too few whose places are all taken by live leases of others; a handful at any time.
_TAKEN = f"""
SELECT other.item FROM rating AS other JOIN item AS held ON held.id = other.item
WHERE NOT other.done AND other.claimed_at > :cutoff AND other.labeler <> :me AND other.{COUNTS}
GROUP BY other.item HAVING count(*) >= held.need - held.answered
"""
_OPEN = f"""
FROM item INDEXED BY item_open WHERE gold IS NULL AND answered < need AND id NOT IN ({_TAKEN})
AND NOT EXISTS (SELECT 1 FROM rating WHERE rating.item = item.id AND labeler = :me AND (why = 'repeat') = 0)
"""
_GOLD = """
FROM item WHERE gold IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM rating WHERE rating.item = item.id AND labeler = :me AND (why = 'repeat') = 0)
"""
# Multiplying places modulo a prime is a shuffle of its own for each labeler, and cheap enough inside SQL.
_TURN = "item.place * :turn % :places, item.id"
_REPEATABLE = """
FROM rating JOIN item ON item.id = rating.item WHERE rating.labeler = :me AND done AND kind = 'pair' AND gold IS NULL
AND choice <> 'skip' AND why IN ('random', 'uncertain') AND NOT EXISTS (
  SELECT 1 FROM rating AS again WHERE again.item = rating.item AND again.labeler = :me AND again.why = 'repeat')
"""


_NEWEST = "SELECT id FROM rating WHERE labeler = :me AND done ORDER BY done_at DESC, id DESC LIMIT :gap"
_ROWS = "SELECT count(*) FROM rating WHERE labeler = :me"


@dataclass(frozen=True)
class Shares:
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


@dataclass(frozen=True)
class Labeler:
    """Who asks, with what decides for them: the store's seed and the time before which leases have run out."""

    db: sqlite3.Connection
    name: str
    seed: int
    cutoff: float

    def open_row(self) -> int | None:
        """The rating row that they still have to answer, the newest first, which is what undo relies on."""
        row = self._one(f"SELECT rating.id {_MINE_OPEN} ORDER BY claimed_at DESC, rating.id DESC LIMIT 1")
        return None if row is None else int(row["id"])

    def choose(self, order: Order, shares: Shares) -> Chosen | None:
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

    def ahead(self, shares: Shares) -> int:
        """How many answers they still have to give if everybody else stops now and they skip nothing.

        Controls are counted where the draws will put them: a total that grew with each would give them away.
        """
        open_rows = self._count(f"SELECT count(*) {_MINE_OPEN}")
        calibration = self._calibration_left(shares)
        ordinary = self._count(f"SELECT count(*) {_OPEN}")
        gold = self._count(f"SELECT count(*) {_GOLD}") - calibration
        return open_rows + calibration + ordinary + self._controls_ahead(shares, calibration, ordinary, gold)

    def sides(self, key: str, count: int) -> list[int]:
        """The order in which they see the completions of an item."""
        order = list(range(count))
        random.Random(f"sides:{self.seed}:{self.name}:{key}").shuffle(order)
        return order

    def _ordinary(self, order: Order) -> Chosen | None:
        if order == "uncertain":
            given = self._count("SELECT count(*) FROM rating WHERE labeler = :me AND why IN ('random', 'uncertain')")
            if given % 2 == 0:
                chosen = self._new(f"{_OPEN} AND uncertainty IS NOT NULL", f"uncertainty, {_TURN}", "uncertain")
                if chosen is not None:
                    return chosen
        return self._new(_OPEN, _TURN, "random")

    def _new(self, where: str, order_by: str, why: Why) -> Chosen | None:
        row = self._one(
            f"SELECT id, key, json_array_length(completions) AS count FROM item"
            f" WHERE id = (SELECT id {where} ORDER BY {order_by} LIMIT 1)"
        )
        return None if row is None else Chosen(row["id"], self.sides(row["key"], row["count"]), why)

    def _repeat(self) -> Chosen | None:
        """An own pair at least a gap old: any such; in a session too short for the gap, half the session old."""
        gap = self._gap(self._count(f"SELECT count(*) {_OPEN}"))
        rows = self.db.execute(
            f"SELECT rating.item, order_shown {_REPEATABLE} AND rating.id NOT IN ({_NEWEST}) ORDER BY rating.id",
            self._values | {"gap": gap},
        ).fetchall()
        if not rows:
            return None
        row = random.Random(f"repeat:{self.seed}:{self.name}:{self._count(_ROWS)}").choice(rows)
        return Chosen(row["item"], json.loads(row["order_shown"])[::-1], "repeat")

    def _gap(self, ordinary: int) -> int:
        given = self._count("SELECT count(*) FROM rating WHERE labeler = :me AND why IN ('random', 'uncertain')")
        return max(1, min(REPEAT_GAP, (given + ordinary) // 2))

    def _calibration_left(self, shares: Shares) -> int:
        if shares.calibration == 0:
            return 0
        given = self._count("SELECT count(*) FROM rating WHERE labeler = :me AND why = 'calibration'")
        return min(max(0, shares.calibration - given), self._count(f"SELECT count(*) {_GOLD}"))

    def _controls_ahead(self, shares: Shares, calibration: int, ordinary: int, gold: int) -> int:
        if ordinary == 0 or shares.gold + shares.repeat == 0:
            return 0
        gap = self._gap(ordinary)
        # Whether a pair that may come again, of the newest answers and those to come; older ones are only counted.
        recent = deque(
            self._flags(
                f"SELECT id IN (SELECT rating.id {_REPEATABLE}) FROM rating WHERE id IN ({_NEWEST})"
                " ORDER BY done_at, id",
                gap,
            )
        )
        old = self._count(f"SELECT count(*) {_REPEATABLE}") - sum(recent)
        recent.extend(self._flags(f"SELECT kind = 'pair' AND {COUNTS} {_MINE_OPEN}", gap))
        recent.extend([False] * calibration)
        pairs = self._one("SELECT 1 FROM item WHERE gold IS NULL AND answered < need AND kind = 'pair'") is not None
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
            elif old and shares.gold <= draw < shares.gold + shares.repeat:
                old -= 1
                controls += 1
                recent.append(False)
            else:
                ordinary -= 1
                recent.append(pairs)
        return controls

    def _draws(self, skip: int = 0) -> Iterator[float]:
        """One number in [0, 1) for each item that they get, from the next one (or `skip` later) on."""
        place = self._count(_ROWS) + skip
        while True:
            block = random.Random(f"mix:{self.seed}:{self.name}:{place // _BLOCK}")
            numbers = [block.random() for _ in range(_BLOCK)]
            yield from numbers[place % _BLOCK :]
            place += _BLOCK - place % _BLOCK

    def _flags(self, query: str, gap: int) -> list[bool]:
        return [bool(row[0]) for row in self.db.execute(query, self._values | {"gap": gap})]

    @property
    def _values(self) -> dict[str, object]:
        turn = int(digest(["order", self.seed, self.name]), 16) % (PLACES - 1) + 1
        return {"me": self.name, "cutoff": self.cutoff, "turn": turn, "places": PLACES}

    def _one(self, query: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self.db.execute(query, self._values).fetchone()
        return row

    def _count(self, query: str) -> int:
        row = self._one(query)
        assert row is not None
        return int(row[0])
