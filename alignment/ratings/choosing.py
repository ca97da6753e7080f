"""Choose a labeler's next item and count the remaining ones. This module only reads the file.

The order is: the labeler's own open item; calibration items; then ordinary items, with controls mixed in (a gold item,
or an earlier pair of theirs with the sides flipped). A draw from the seed, the labeler and the number of items so far
decides the positions, so they cannot be predicted without the seed. Controls never come after the last ordinary item.
"""

from __future__ import annotations

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
REPEAT_GAP = 10  # answers between a pair and its repeat, so that it is not answered from memory
_BLOCK = 256
EXACT_ITEMS = 2000  # controls among so many items to come are counted exactly, and expected beyond them

# The labeler's open rows that may still be answered: the lease is valid, or others' answers and leases leave room.
_MINE_OPEN = f"""
FROM rating JOIN item ON item.id = rating.item
WHERE rating.labeler = :me AND done = 0 AND why <> 'verdict' AND (
  NOT {COUNTS} OR claimed_at > :cutoff OR need > answered + (SELECT count(*) FROM rating AS other
  WHERE other.item = item.id AND other.labeler <> :me AND NOT other.done AND other.claimed_at > :cutoff
  AND other.{COUNTS}))
"""
# Items whose need is covered by others' valid leases; a handful at any time.
_TAKEN = f"""
SELECT other.item FROM rating AS other INDEXED BY rating_open JOIN item AS held ON held.id = other.item
WHERE NOT other.done AND other.claimed_at > :cutoff AND other.labeler <> :me AND other.{COUNTS}
GROUP BY other.item HAVING count(*) >= held.need - held.answered
"""
_NEEDED = "gold IS NULL AND answered < need"
_NEW_TO_ME = "NOT EXISTS (SELECT 1 FROM rating WHERE rating.item = item.id AND labeler = :me AND (why = 'repeat') = 0)"
_FREE = f"id NOT IN ({_TAKEN}) AND {_NEW_TO_ME}"
# Multiplication modulo a prime gives each labeler a different permutation, and is cheap in SQL.
_TURN = "place * :turn % :places"
_GOLD = f"FROM item WHERE gold IS NOT NULL AND {_NEW_TO_ME}"
_ORDINARY = f"FROM item INDEXED BY item_open WHERE {_NEEDED} AND {_FREE}"
# The next few items in the labeler's order. One of them is nearly always free, which saves a scan of all items.
_NEXT = f"""
FROM (SELECT id, {_TURN} AS turn FROM item INDEXED BY item_open WHERE {_NEEDED} AND {_TURN} > (
  SELECT {_TURN} FROM item JOIN rating ON rating.item = item.id
  WHERE rating.id = (SELECT max(id) FROM rating WHERE labeler = :me AND why = 'random'))
  ORDER BY {_TURN} LIMIT 8) AS item WHERE {_FREE}
"""
_UNCERTAIN = f"FROM item INDEXED BY item_doubted WHERE {_NEEDED} AND uncertainty IS NOT NULL AND {_FREE}"
_REPEATABLE = """
why IN ('random', 'uncertain') AND choice IN ('first', 'second', 'tie')
AND item NOT IN (SELECT item FROM rating WHERE labeler = :me AND why = 'repeat')
"""
_NEWEST = "SELECT id FROM rating WHERE labeler = :me AND done = 1 ORDER BY done_at DESC, id DESC LIMIT :gap"


@dataclass(frozen=True)
class ControlShares:
    """Number of calibration items at the start, and fractions of controls among the other items."""

    calibration: int
    gold: float
    repeat: float


@dataclass(frozen=True)
class Chosen:
    """A new item for the labeler."""

    item: int
    order_shown: list[int]
    why: Why


class Labeler:
    """A labeler at one moment. `seed` is the store's; leases from before `cutoff` have expired."""

    def __init__(self, db: sqlite3.Connection, name: str, seed: int, cutoff: float) -> None:
        self._db, self._name, self._seed = db, name, seed
        turn = int(digest(["order", seed, name]), 16) % (PLACES - 1) + 1
        self._values = {"me": name, "cutoff": cutoff, "turn": turn, "places": PLACES, "gap": REPEAT_GAP}

    @cached_property
    def tally(self) -> Counter[tuple[str, str | None]]:
        """Number of their rows by (why, choice), without verdicts; the choice of an open row is None."""
        rows = self._db.execute(
            "SELECT why, choice, count(*) AS n FROM rating WHERE labeler = :me AND why <> 'verdict'"
            " GROUP BY why, choice",
            self._values,
        )
        return Counter({(row["why"], row["choice"]): row["n"] for row in rows})

    def open_row(self) -> int | None:
        """The id of their newest open rating row; undo relies on this order."""
        row = self._one(f"SELECT rating.id {_MINE_OPEN} ORDER BY claimed_at DESC, rating.id DESC LIMIT 1")
        return None if row is None else int(row["id"])

    def choose(self, order: Order, shares: ControlShares) -> Chosen | None:
        """A new item for them, or None if none is left."""
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
        """Number of answers that they still have to give if everybody else stops now and they skip nothing.

        Future controls are included: a total that grew with each control would reveal it.
        """
        open_rows = self._count(f"SELECT count(*) {_MINE_OPEN}")
        calibration = self._calibration_left(shares)
        ordinary = self._ordinary_left()
        gold = self._count(f"SELECT count(*) {_GOLD}") - calibration
        return open_rows + calibration + ordinary + self._controls_ahead(shares, calibration, ordinary, gold)

    def sides(self, key: str, count: int) -> list[int]:
        """The order in which they see an item's completions."""
        order = list(range(count))
        random.Random(f"sides:{self._seed}:{self._name}:{key}").shuffle(order)
        return order

    def _ordinary(self, order: Order) -> Chosen | None:
        if order == "uncertain" and self._given() % 2 == 0:
            uncertain = self._new(_UNCERTAIN, "uncertainty, id", "uncertain")
            if uncertain is not None:
                return uncertain
        return self._new(_NEXT, "turn", "random") or self._new(_ORDINARY, f"{_TURN}, id", "random")

    def _new(self, where: str, order_by: str, why: Why) -> Chosen | None:
        row = self._one(
            "SELECT id, key, json_array_length(completions) AS count FROM item"
            f" WHERE id = (SELECT id {where} ORDER BY {order_by} LIMIT 1)"
        )
        return None if row is None else Chosen(row["id"], self.sides(row["key"], row["count"]), why)

    def _repeat(self) -> Chosen | None:
        """One of their pairs that is at least a gap old; a short session has a smaller gap, half its length."""
        gap = self._gap(self._ordinary_left())
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

    def _ordinary_left(self) -> int:
        """The number of rows of `_ORDINARY`: all open items but the few that others hold, and those that this labeler
        has had, without a look at each item."""
        return self._count("SELECT value FROM counter WHERE name = 'open'") - self._count(
            f"SELECT count(*) FROM (SELECT id FROM item WHERE {_NEEDED} AND id IN ({_TAKEN}) UNION"
            " SELECT item.id FROM rating JOIN item ON item.id = rating.item"
            f" WHERE labeler = :me AND why <> 'repeat' AND {_NEEDED})"
        )

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
        # Flags of the newest and the open answers: true for a repeatable pair. Older answers are only counted.
        newest = f"SELECT {_REPEATABLE} FROM rating WHERE id IN ({_NEWEST}) ORDER BY done_at, id"
        to_come = f"SELECT kind = 'pair' AND {COUNTS} {_MINE_OPEN}"
        flags = [self._db.execute(query, self._values | {"gap": gap}).fetchall() for query in (newest, to_come)]
        recent = deque(bool(row[0]) for rows in flags for row in rows)
        old = self._repeatable() - sum(bool(row[0]) for row in flags[0])
        recent.extend([False] * calibration)
        pairs = self._one(f"SELECT 1 FROM item INDEXED BY item_open WHERE {_NEEDED} AND kind = 'pair'") is not None
        draws = self._draws(calibration)
        controls, beyond = 0, max(0, ordinary - EXACT_ITEMS)
        ordinary -= beyond
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
        # Expected: of n further draws g are gold, r repeat a pair, and the others are the items beyond.
        gold_beyond = min(gold, round(beyond * shares.gold / max(1 - shares.gold - shares.repeat, 1e-9)))
        repeats = round((beyond + gold_beyond) * shares.repeat / (1 - shares.repeat))
        return controls + gold_beyond + min(repeats, old + len(recent) + (beyond if pairs else 0))

    def _repeatable(self) -> int:
        pairs = sum(
            count
            for (why, choice), count in self.tally.items()
            if why in ("random", "uncertain") and choice in ("first", "second", "tie")
        )
        return pairs - sum(count for (why, _), count in self.tally.items() if why == "repeat")

    def _draws(self, skip: int = 0) -> Iterator[float]:
        """Yield a number in [0, 1) for each future item, starting with the next one plus `skip`."""
        position = self.tally.total() + skip
        while True:
            block = random.Random(f"mix:{self._seed}:{self._name}:{position // _BLOCK}")
            numbers = [block.random() for _ in range(_BLOCK)]
            yield from numbers[position % _BLOCK :]
            position += _BLOCK - position % _BLOCK

    def _one(self, query: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(query, self._values).fetchone()
        return row

    def _count(self, query: str) -> int:
        row = self._one(query)
        assert row is not None
        return int(row[0])
