"""The ratings store itself: items in, claims and ratings, and what is learned from them."""

import json
import math
import os
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from alignment.errors import UserError
from alignment.ratings.choosing import PLACES, Labeler
from alignment.ratings.file import COUNTS, RatingsFile
from alignment.ratings.records import (
    Assignment,
    ChoiceShown,
    Completion,
    Feedback,
    Gold,
    Item,
    Kind,
    Order,
    Progress,
    Rating,
    Why,
    as_completion,
    as_message,
    check_answer,
    check_item,
    check_labeler,
    dense,
    digest,
    dump,
    flipped,
    is_right,
    item_key,
)
from alignment.ratings.register import Register
from alignment.terminal import clean

LEASE_SECONDS = 900.0


class RatingsStore(Register):
    """Items, claims and ratings in one file. Each public call is one transaction, on disk when it returns.

    `seed` decides the order of items, of sides and of controls per labeler; by default the one stored when the file
    was made. Choose one that labelers do not know if they could read this code. Use one instance per process and
    thread, and close it (or use it in a `with`). The file must be on one local disk: see the package's docstring.
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = False, seed: int | None = None) -> None:
        self._file = RatingsFile(path, create, seed or 0)
        self._db = self._file.db
        self.path = self._file.path
        self.seed = seed if seed is not None else int(self._file.meta("seed", "0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Many calls as one: all of them reach the disk together or none does. Use it to add items in bulk."""
        with self._file.transaction():
            yield

    def add_item(
        self,
        prompt: Sequence[Mapping[str, str]],
        completions: Sequence[Completion | Mapping[str, Any]],
        need: int = 1,
        metadata: Mapping[str, Any] | None = None,
        kind: Kind = "pair",
        gold: Gold | None = None,
        copy: int = 0,
    ) -> int:
        """Add an item to rate and return its id; the same kind, prompt, texts and `copy` again give the same item.

        A completion is a `Completion` or a mapping with its fields; a pair has 2, a `rank` item 2 to 9, a `single` 1.
        `gold` is the right answer of a control item, which goes to each labeler at most once and has no use for
        `need`. Adding anew can raise `need`, never lower it, and can give the item a gold answer. `copy` tells items
        of the same texts apart, in files where two models gave the same answer and people judged it twice. Raises
        UserError if the prompt is no list of messages, completions or gold do not suit the kind, or
        the metadata is not JSON.
        """
        messages = [as_message(message) for message in prompt]
        answers = [as_completion(each) for each in completions]
        check_item(kind, len(messages), len(answers), need, gold)
        key = item_key(kind, messages, answers, copy)
        try:
            told = dump(dict(metadata or {}))
        except ValueError as error:
            raise UserError("an item's metadata has NaN or Infinity, which are not JSON") from error
        with self.transaction():
            self._db.execute(
                "INSERT INTO item(key, kind, prompt, completions, need, place, created, metadata, gold)"
                " VALUES(:key, :kind, :prompt, :completions, :need, :place, :created, :metadata, :gold)"
                " ON CONFLICT(key) DO UPDATE SET need = max(need, excluded.need), gold = ifnull(excluded.gold, gold)",
                {
                    "key": key,
                    "kind": kind,
                    "prompt": dump(messages),
                    "completions": dump([asdict(answer) for answer in answers]),
                    "need": need,
                    "place": int(key, 16) % PLACES,
                    "created": time.time(),
                    "metadata": told,
                    "gold": None if gold is None else dump(asdict(gold)),
                },
            )
            return int(self._db.execute("SELECT id FROM item WHERE key = ?", (key,)).fetchone()["id"])

    def claim(
        self,
        labeler: str,
        now: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
        order: Order = "random",
    ) -> Assignment | None:
        """What the labeler shall answer next, theirs for the length of the lease, or None when nothing is left.

        Their own unanswered item comes back first, the newest before older ones, which is what undo relies on; then
        calibration items; then ordinary items in an order of their own, with controls among them (see `choosing`).
        `order="uncertain"` takes every other ordinary item where the reward model of `set_uncertainty` is least sure.
        Never hands out more than `need` answers and live leases for an ordinary item.
        """
        check_labeler(labeler)
        with self.transaction():
            now = time.time() if now is None else now
            who = Labeler(self._db, labeler, self.seed, now - lease_seconds)
            rating = who.open_row()
            if rating is not None:
                self._db.execute("UPDATE rating SET claimed_at = ? WHERE id = ?", (now, rating))
                return self._assignment(rating)
            chosen = who.choose(order, self._shares())
            if chosen is None:
                return None
            rating = self._db.execute(
                "INSERT INTO rating(item, labeler, order_shown, why, claimed_at) VALUES(?, ?, ?, ?, ?)",
                (chosen.item, labeler, dump(chosen.order_shown), chosen.why, now),
            ).lastrowid
            assert rating is not None
            self._file.log(now, labeler, chosen.item, "claim", {"order_shown": chosen.order_shown, "why": chosen.why})
            return self._assignment(rating)

    def submit(
        self,
        assignment: Assignment,
        choice_shown: ChoiceShown,
        seconds: float,
        strength: int | None = None,
        comment: str = "",
        flags: Sequence[str] = (),
        ranks_shown: Sequence[int] | None = None,
        score: int | None = None,
    ) -> None:
        """Store the answer, on disk when this returns. An answer that comes after its lease still counts.

        Args:
            choice_shown: `left`, `right` or `tie` for a pair, `ranked` for a ranking, `scored` for a single
                completion, `skip` for any.
            strength: 1 (slightly) to 3 (much better) for left or right, None if not asked.
            ranks_shown: of a ranking, one number per completion in the order shown: 1 is best, equal is a tie.
            score: of a single completion, 1 to 7.

        Raises:
            UserError: it was answered meanwhile, say by the same labeler in another window, and that answer stands;
                or the answer does not suit the item.
        """
        assert math.isfinite(seconds) and seconds >= 0, seconds
        with self.transaction():
            now = time.time()  # not before the wait for the lock: by then others may have seen the lease run out
            row = self._db.execute(
                "SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item"
                " WHERE rating.id = ? AND item = ? AND labeler = ?",
                (assignment.rating, assignment.item, assignment.labeler),
            ).fetchone()
            if row is None or row["done"]:
                said = "has answered item" if row else "has no claim any more on item"
                raise UserError(f"{self.path}: {assignment.labeler} {said} {assignment.item}{' already' * bool(row)}")
            order = json.loads(row["order_shown"])
            choice = flipped({"left": "first", "right": "second"}.get(choice_shown, choice_shown), order)
            check_answer(row["kind"], len(order), choice, strength, ranks_shown, score)
            answer = {
                "choice": choice,
                "strength": strength,
                "ranks": None if ranks_shown is None else dump(dense(_in_item_order(ranks_shown, order))),
                "score": score,
                "seconds": float(seconds),
                "comment": clean(comment),
                "flags": dump([clean(flag) for flag in flags]),
            }
            # Later than their last answer though the clock was set back: undo goes by this.
            done_at = max(now, math.nextafter(self._last_done(assignment.labeler), math.inf))
            self._finish(row["id"], answer, done_at)
            self._file.log(now, assignment.labeler, assignment.item, "submit", answer)

    def import_rating(
        self,
        item: int,
        labeler: str,
        choice: str,
        *,
        strength: int | None = None,
        ranks: Sequence[int] | None = None,
        score: int | None = None,
        order_shown: Sequence[int] | None = None,
        seconds: float | None = None,
        comment: str = "",
        flags: Sequence[str] = (),
        claimed_at: float | None = None,
        done_at: float | None = None,
        why: Why = "import",
    ) -> bool:
        """Take in an answer that was given elsewhere, in item order. The same one again changes nothing.

        Returns whether it was new. Raises UserError if there is no such item, the answer does not suit it, or the
        labeler has given another answer here already.
        """
        check_labeler(labeler)
        with self.transaction():
            found = self._db.execute(
                "SELECT kind, json_array_length(completions) AS count FROM item WHERE id = ?", (item,)
            ).fetchone()
            if found is None:
                raise UserError(f"{self.path}: no item {item}")
            check_answer(found["kind"], found["count"], choice, strength, ranks, score)
            order = [] if order_shown is None else list(order_shown)
            if (order or why != "import") and sorted(order) != list(range(found["count"])):
                raise UserError(f"order_shown {order} of item {item}: expected each of 0 to {found['count'] - 1} once")
            answer: dict[str, Any] = {
                "choice": choice,
                "strength": strength,
                "ranks": None if ranks is None else dump(dense(ranks)),
                "score": score,
            }
            row = self._db.execute(
                "SELECT * FROM rating WHERE item = ? AND labeler = ? AND (why = 'repeat') = ?",
                (item, labeler, why == "repeat"),
            ).fetchone()
            if row is not None and row["done"]:
                if any(row[name] != value for name, value in answer.items()):
                    raise UserError(
                        f"{self.path}: {labeler} has answered item {item} already, and otherwise ({row['choice']},"
                        f" found {choice}); the first answer stands"
                    )
                return False
            now = time.time()
            done_at = now if done_at is None else done_at
            rating = row["id"] if row is not None else None
            if rating is None:
                rating = self._db.execute(
                    "INSERT INTO rating(item, labeler, order_shown, why, claimed_at) VALUES(?, ?, '[]', ?, 0)",
                    (item, labeler, why),
                ).lastrowid
            self._db.execute(
                "UPDATE rating SET order_shown = ?, why = ?, claimed_at = ? WHERE id = ?",
                (dump(order), why, done_at if claimed_at is None else claimed_at, rating),
            )
            answer |= {"seconds": seconds, "comment": clean(comment), "flags": dump([clean(flag) for flag in flags])}
            self._finish(rating, answer, done_at)
            self._file.log(now, labeler, item, "import", answer | {"why": why})
            return True

    def assignment(self, rating: int, labeler: str, unanswered: bool = False) -> Assignment | None:
        """What a rating's id stands for, if this labeler claimed it (and, if asked, it is `unanswered`); else None."""
        found = self._db.execute(
            "SELECT 1 FROM rating WHERE id = ? AND labeler = ? AND NOT (done AND ?)", (rating, labeler, unanswered)
        ).fetchone()
        return None if found is None else self._assignment(rating)

    def feedback(self, assignment: Assignment) -> Feedback | None:
        """What to tell the labeler after the answer to a calibration item; None after any other, or before it."""
        row = self._db.execute(
            "SELECT choice, ranks, score, gold FROM rating JOIN item ON item.id = rating.item"
            " WHERE rating.id = ? AND labeler = ? AND why = 'calibration' AND done AND gold IS NOT NULL",
            (assignment.rating, assignment.labeler),
        ).fetchone()
        if row is None:
            return None
        gold, order = _gold(row["gold"]), assignment.order_shown
        assert gold is not None
        right = is_right(gold, row["choice"], json.loads(row["ranks"] or "null"), row["score"])
        if gold.choice is not None:
            gold = Gold(choice=flipped(gold.choice, order))
        if gold.ranks is not None:
            gold = Gold(ranks=tuple(gold.ranks[place] for place in order))
        return Feedback(right, gold)

    def undo(self, labeler: str) -> Assignment | None:
        """Reopen the labeler's last answer, to be given anew; the old one stays in the event log. None if none.

        Stops at a calibration item, whose right answer the labeler has been told.
        """
        check_labeler(labeler)
        with self.transaction():
            now = time.time()
            row = self._db.execute(
                "SELECT * FROM rating WHERE labeler = ? AND done = 1 ORDER BY done_at DESC, id DESC LIMIT 1", (labeler,)
            ).fetchone()
            if row is None or row["why"] == "calibration":
                return None
            self._file.log(now, labeler, row["item"], "undo", dict(row))
            self._db.execute(
                "UPDATE rating SET choice = NULL, strength = NULL, ranks = NULL, score = NULL, seconds = NULL,"
                " comment = '', flags = '[]', done_at = NULL, done = 0, claimed_at = ? WHERE id = ?",
                (now, row["id"]),
            )
            if row["order_shown"] == "[]":  # imported: it was not known how it had been shown
                item = self._db.execute(
                    "SELECT key, json_array_length(completions) AS count FROM item WHERE id = ?", (row["item"],)
                ).fetchone()
                order = Labeler(self._db, labeler, self.seed, now).sides(item["key"], item["count"])
                self._db.execute("UPDATE rating SET order_shown = ? WHERE id = ?", (dump(order), row["id"]))
            return self._assignment(row["id"])

    def progress(self, labeler: str) -> Progress:
        """How far the labeler is.

        `done` counts all answers given, skips and controls too. `total` adds what they would still get if everybody
        else stopped now: their open item, calibration, the ordinary items that need them, and the controls that will
        be mixed in. It shrinks when others answer what nobody else is needed for, and grows when skips, undo or
        expired leases of others make room. `seconds` is the median of the latest 100 answers.
        """
        check_labeler(labeler)
        who = Labeler(self._db, labeler, self.seed, time.time() - LEASE_SECONDS)
        done = sum(count for (_, choice), count in who.tally.items() if choice is not None)
        times = self._db.execute(
            "SELECT seconds FROM rating WHERE labeler = ? AND done = 1 ORDER BY done_at DESC LIMIT 100", (labeler,)
        ).fetchall()
        known = [row["seconds"] for row in times if row["seconds"] is not None]
        return Progress(
            done=done,
            skipped=sum(count for (_, choice), count in who.tally.items() if choice == "skip"),
            total=done + who.ahead(self._shares()),
            seconds=statistics.median(known) if known else None,
        )

    def items(self) -> list[Item]:
        """All items, in the order they were added."""
        return [
            Item(
                **{name: row[name] for name in ("id", "key", "kind", "need", "created")},
                prompt=tuple(json.loads(row["prompt"])),
                completions=tuple(Completion(**each) for each in json.loads(row["completions"])),
                metadata=json.loads(row["metadata"]),
                gold=_gold(row["gold"]),
            )
            for row in self._db.execute("SELECT * FROM item ORDER BY id")
        ]

    def ratings(self, skips: bool = False, for_training: bool = False) -> list[Rating]:
        """All finished ratings, in the order they were claimed; skips only when asked for.

        `for_training` leaves out what tells of the labeler and not of the item: gold, calibration and repeats.
        """
        rows = self._db.execute(
            "SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item WHERE done"
            f" AND (choice <> 'skip' OR :skips) AND ({COUNTS} OR NOT :for_training) ORDER BY rating.id",
            {"skips": skips, "for_training": for_training},
        )
        return [_rating(row) for row in rows]

    def last_rating(self, labeler: str) -> Rating | None:
        """The labeler's newest answer, the one that `undo` would take back; None if none."""
        check_labeler(labeler)
        row = self._db.execute(
            "SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item WHERE labeler = ? AND done"
            " ORDER BY done_at DESC, rating.id DESC LIMIT 1",
            (labeler,),
        ).fetchone()
        return None if row is None else _rating(row)

    def labelers(self) -> list[str]:
        """The names of all who gave a rating that models are trained on."""
        rows = self._db.execute(
            f"SELECT DISTINCT labeler FROM rating WHERE done AND choice <> 'skip' AND {COUNTS} ORDER BY labeler"
        )
        return [row["labeler"] for row in rows]

    def fingerprint(self, labelers: Collection[str] | None = None) -> dict[str, Any]:
        """What a model trained on this store should be traced to: counts, digests and whether anyone is simulated.

        Args:
            labelers: the names of those whose ratings it was trained on; None: everybody's.

        Covers the ratings that models are trained on. `ratings`, `items` and `labelers` count them and what they
        belong to. `sha256` covers the rated texts and the answers, whatever order they came in and whoever made them.
        `database` and `rating_ids` (as "1-40,42") say which rows of which file, and `labeler_hashes` how many of each
        labeler; see `labeler_hash`. `answered_by` counts the rated items that each model wrote a completion of.
        """
        counted = f"done AND choice <> 'skip' AND {COUNTS}"
        if labelers is not None:
            counted += " AND labeler IN (SELECT value FROM json_each(:labelers))"
        values = {"labelers": dump(sorted(labelers or ()))}
        rows = self._db.execute(
            "SELECT rating.id, item.key, item, labeler, choice, strength, ranks, score FROM rating"
            f" JOIN item ON item.id = rating.item WHERE {counted} ORDER BY rating.id",
            values,
        ).fetchall()
        answers = [[row["key"], row["choice"], row["strength"], row["ranks"], row["score"]] for row in rows]
        counts = Counter(row["labeler"] for row in rows)
        writers = self._db.execute(
            "SELECT json_extract(value, '$.model') AS model, count(DISTINCT item.id) AS items"
            " FROM item, json_each(item.completions) WHERE model IS NOT NULL AND EXISTS (SELECT 1 FROM rating"
            f" WHERE rating.item = item.id AND {counted}) GROUP BY model ORDER BY model",
            values,
        ).fetchall()
        simulated = self.simulated() if labelers is None else self.simulated().intersection(labelers)
        return {
            "ratings": len(rows),
            "items": len({row["item"] for row in rows}),
            "labelers": len(counts),
            # A pair's answer as schema 1 digested it.
            "sha256": digest(sorted(dump(each[:3] if each[3:] == [None, None] else each) for each in answers)),
            "simulated": bool(simulated),
            "database": self._file.meta("database", ""),
            "rating_ids": _ranges([row["id"] for row in rows]),
            "labeler_hashes": {self.labeler_hash(name): count for name, count in sorted(counts.items())},
            "answered_by": {row["model"]: row["items"] for row in writers},
        }

    def set_uncertainty(self, uncertainty: Mapping[int, float], model: str) -> None:
        """Say how far from 1/2 a reward model's probability is, per item id: |p - 1/2|, least sure first.

        Takes the place of what another model said. `model` is its registry reference, kept in the event log.
        """
        with self.transaction():
            self._db.execute("UPDATE item SET uncertainty = NULL WHERE uncertainty IS NOT NULL")
            self._db.executemany(
                "UPDATE item SET uncertainty = ? WHERE id = ?", [(value, item) for item, value in uncertainty.items()]
            )
            self._file.log(time.time(), "", None, "uncertainty", {"model": model, "items": len(uncertainty)})

    def has_uncertainty(self) -> bool:
        """Whether any item has one."""
        return self._db.execute("SELECT 1 FROM item WHERE uncertainty IS NOT NULL LIMIT 1").fetchone() is not None

    def _finish(self, rating: int | None, answer: Mapping[str, Any], done_at: float) -> None:
        self._db.execute(
            "UPDATE rating SET choice = :choice, strength = :strength, ranks = :ranks, score = :score,"
            " seconds = :seconds, comment = :comment, flags = :flags, done_at = :done_at, done = 1 WHERE id = :id",
            {**answer, "done_at": done_at, "id": rating},
        )

    def _last_done(self, labeler: str) -> float:
        row = self._db.execute("SELECT max(done_at) FROM rating WHERE labeler = ? AND done = 1", (labeler,)).fetchone()
        return float(row[0] or 0.0)

    def _assignment(self, rating: int) -> Assignment:
        row = self._db.execute(
            "SELECT rating.item, labeler, kind, order_shown, prompt, completions, why FROM rating"
            " JOIN item ON item.id = rating.item WHERE rating.id = ?",
            (rating,),
        ).fetchone()
        order, answers = json.loads(row["order_shown"]), json.loads(row["completions"])
        return Assignment(
            rating=rating,
            item=row["item"],
            labeler=row["labeler"],
            kind=row["kind"],
            prompt=tuple(json.loads(row["prompt"])),
            completions=tuple(answers[place]["text"] for place in order),
            order_shown=tuple(order),
            why=row["why"],
        )


def _gold(text: str | None) -> Gold | None:
    if text is None:
        return None
    fields = json.loads(text)
    return Gold(**fields | {"ranks": tuple(fields["ranks"]) if fields["ranks"] else None})


def _in_item_order(shown: Sequence[int], order: Sequence[int]) -> list[int]:
    return [shown[order.index(place)] for place in range(len(order))]


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: "1-40,42"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _rating(row: sqlite3.Row) -> Rating:
    names = ("id", "item", "labeler", "kind", "choice", "strength", "score", "seconds", "comment", "why")
    return Rating(
        **{name: row[name] for name in (*names, "claimed_at", "done_at")},
        order_shown=tuple(json.loads(row["order_shown"])),
        ranks=tuple(json.loads(row["ranks"])) if row["ranks"] else None,
        flags=tuple(json.loads(row["flags"])),
    )
