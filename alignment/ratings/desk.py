"""Look-ups in a ratings file that only its organiser needs."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from hashlib import sha256
from typing import NamedTuple

from alignment.ratings.file import COUNTS, RatingsFile
from alignment.ratings.refereeing import disputed, settled_items

_GIVEN = f"done AND choice <> 'skip' AND {COUNTS} AND why <> 'import'"


class Activity(NamedTuple):
    """What one labeler has done. Times are None where everything was imported."""

    votes: int
    verdicts: int
    controls: int
    skips: int
    began: float | None
    seen: float | None


class OpenItem(NamedTuple):
    """An item that needs answers: how many are missing, and who has finished with it."""

    item: int
    missing: int
    done_by: frozenset[str]


class Group(NamedTuple):
    """How many items are of one kind and need as many votes."""

    kind: str
    is_gold: bool
    need: int
    items: int


class Desk:
    """The organiser's look-ups in one ratings file."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    def activity(self) -> dict[str, Activity]:
        """What each labeler with a rating or an open item has done, by name."""
        rows = self._file.db.execute(
            f"SELECT labeler, sum(done AND choice <> 'skip' AND {COUNTS}) AS votes,"
            " sum(done AND choice <> 'skip' AND why = 'verdict') AS verdicts,"
            f" sum(done AND choice <> 'skip' AND NOT {COUNTS} AND why <> 'verdict') AS controls,"
            " sum(done AND choice = 'skip') AS skips,"
            " min(claimed_at) FILTER (WHERE why <> 'import') AS began,"
            " max(max(claimed_at, ifnull(done_at, 0))) FILTER (WHERE why <> 'import') AS seen"
            " FROM rating GROUP BY labeler ORDER BY labeler"
        )
        return {row["labeler"]: Activity(*tuple(row)[1:]) for row in rows}

    def votes_since(self, since: float) -> dict[str, int]:
        """The number of votes that each labeler has given here since then; imported ones were given elsewhere."""
        rows = self._file.db.execute(
            f"SELECT labeler, count(*) AS n FROM rating WHERE {_GIVEN} AND done_at >= ? GROUP BY labeler", (since,)
        )
        return {row["labeler"]: row["n"] for row in rows}

    def first_vote(self) -> float:
        """When the first vote was given here; 0 if there is none."""
        row = self._file.db.execute(f"SELECT min(done_at) FROM rating WHERE {_GIVEN}").fetchone()
        return float(row[0] or 0.0)

    def wanted(self) -> list[OpenItem]:
        """The items that need answers."""
        rows = self._file.db.execute(
            "SELECT id, need - answered AS missing, (SELECT json_group_array(labeler) FROM rating WHERE item = item.id"
            " AND done) AS done_by FROM item WHERE gold IS NULL AND answered < need ORDER BY id"
        )
        return [OpenItem(row["id"], row["missing"], frozenset(json.loads(row["done_by"]))) for row in rows]

    def disputes(self) -> tuple[int, int]:
        """The number of disputed items, and of those without a verdict."""
        found = disputed(self._file.db)
        return len(found), len(found.keys() - settled_items(self._file.db))

    def verdicts_changed(self, item: int) -> frozenset[str]:
        """The referees who took back a verdict on the item after they had seen the votes."""
        rows = self._file.db.execute(
            "SELECT DISTINCT labeler FROM event WHERE item = ? AND kind = 'undo'"
            " AND json_extract(payload, '$.why') = 'verdict' AND json_extract(payload, '$.choice') <> 'skip'",
            (item,),
        )
        return frozenset(row["labeler"] for row in rows)

    def numbers(self) -> tuple[int, int] | None:
        """The lowest and the highest number of an item; None if there are none."""
        low, high = self._file.db.execute("SELECT min(id), max(id) FROM item").fetchone()
        return None if low is None else (low, high)

    def groups(self) -> list[Group]:
        """The items by kind, gold or not, and need."""
        rows = self._file.db.execute("SELECT kind, gold IS NOT NULL, need, count(*) FROM item GROUP BY 1, 2, 3")
        return [Group(row[0], bool(row[1]), row[2], row[3]) for row in rows]

    def gold_answers(self) -> tuple[list[str], list[str]]:
        """The attributes and the reasons that gold answers say something to, each once."""
        rows = self._file.db.execute("SELECT gold FROM item WHERE gold IS NOT NULL")
        found = [json.loads(row["gold"]) for row in rows]
        names = dict.fromkeys(name for gold in found for name in gold.get("attributes") or {})
        return list(names), list(dict.fromkeys(tag for gold in found for tag in gold.get("tags") or ()))

    def is_set(self, setting: str) -> bool:
        """Whether a setting was ever changed here."""
        return self._file.meta(setting, "") != ""

    def equal_pairs(self) -> int:
        """The number of pairs whose two answers are the same text."""
        row = self._file.db.execute(
            "SELECT count(*) FROM item WHERE kind = 'pair'"
            " AND json_extract(completions, '$[0].text') = json_extract(completions, '$[1].text')"
        )
        return int(row.fetchone()[0])

    def new_link(self) -> str:
        """A new secret for the organiser's page; the previous one ends. The file holds only its digest."""
        token = secrets.token_urlsafe(32)
        with self._file.transaction():
            self._file.set_meta("organiser", sha256(token.encode()).hexdigest())
            self._file.log(time.time(), "", None, "organiser", {})
        return token

    def opens(self, token: str) -> bool:
        """Whether this is the secret of the organiser's page."""
        known = self._file.meta("organiser", "")
        return bool(known) and hmac.compare_digest(sha256(token.encode("utf-8", "replace")).hexdigest(), known)
