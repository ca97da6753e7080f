"""The ratings store: items, claims and ratings."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Self, Unpack

from alignment.errors import UserError
from alignment.ratings.choosing import PLACES, Labeler
from alignment.ratings.desk import Desk
from alignment.ratings.drafts import Drafts
from alignment.ratings.draws import Draws
from alignment.ratings.file import LEARNED, RatingsFile
from alignment.ratings.fingerprint import fingerprint_of
from alignment.ratings.importing import ImportedAnswer, import_answer
from alignment.ratings.people import People
from alignment.ratings.questionnaire import as_stored, check_answers
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
    View,
    as_completion,
    as_message,
    check_answer,
    check_item,
    check_labeler,
    dense,
    dump,
    flipped,
    in_item_order,
    item_key,
)
from alignment.ratings.refereeing import Referee, settled
from alignment.ratings.rows import (
    finish_rating,
    insert_rating,
    item_from,
    last_done,
    load_assignment,
    load_feedback,
    rating_from,
)
from alignment.ratings.settings import StoreSettings
from alignment.terminal import clean

LEASE_SECONDS = 900.0


class RatingsStore:
    """Items, claims and ratings in one file. Each public call is one transaction, on disk when it returns.

    `seed` decides the order of items, sides and controls for each labeler; the default is the one stored when the file
    was created. Keep it secret from labelers who could read this code. Use one instance per process and thread, and
    close it (or use `with`). The file must be on one local disk: see the package's docstring.

    Attributes:
        settings: the guideline and the fractions of controls.
        people: invitations, hashed names, simulated labelers, and removal.
        desk: what only the organiser looks up.
        draws: completions that `alignment sample` has drawn.
        drafts: what was given to open items so far.
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = False, seed: int | None = None) -> None:
        self._file = RatingsFile(path, create, seed or 0)
        self._db = self._file.db
        self.path = self._file.path
        self.settings = StoreSettings(self._file)
        self.people = People(self._file)
        self.draws = Draws(self._file)
        self.drafts = Drafts(self._file)
        self.desk = Desk(self._file)
        self.seed = seed if seed is not None else int(self._file.meta("seed", "0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run several calls as one atomic transaction, for example to add items in bulk."""
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
        """Add an item to rate and return its id; the same kind, prompt, texts and `copy` return the same item.

        A completion is a `Completion` or a mapping with its fields; a pair has 2, a `rank` item 2 to 9, a `single` 1.
        `gold` is the right answer of a control item, which each labeler gets at most once, whatever its `need`. Adding
        an item again can raise `need`, never lower it, and can set the gold answer. `copy` distinguishes items with the
        same texts, for files in which two models gave the same answer and people judged it twice.

        Raises:
            UserError: the prompt is not a list of messages, completions or gold answer do not match the kind, or
                the metadata is not JSON.
        """
        messages = [as_message(message) for message in prompt]
        answers = [as_completion(fields) for fields in completions]
        check_item(kind, len(messages), len(answers), need, gold)
        key = item_key(kind, messages, answers, copy)
        try:
            metadata_json = dump(dict(metadata or {}))
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
                    "metadata": metadata_json,
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
        """Lease the labeler's next item, or return None if none is left.

        Their own unanswered items come first, the newest before older ones, which undo relies on; then calibration
        items; then ordinary items in a random order per labeler, with controls among them (see `choosing`).
        With `order="uncertain"`, every other ordinary item is the least certain one by `set_uncertainty`.
        An ordinary item never has more than `need` answers and valid leases. With `order="disputed"` they are a
        referee, here and in the other calls that take an order, and get disputed items alone (see `refereeing`).
        """
        check_labeler(labeler)
        with self.transaction():
            now = time.time() if now is None else now
            asking = self._asking(labeler, order, now - lease_seconds)
            rating = asking.open_row()
            if rating is not None:
                self._db.execute("UPDATE rating SET claimed_at = ? WHERE id = ?", (now, rating))
                return load_assignment(self._db, rating)
            chosen = asking.choose(order, self.settings.shares())
            if chosen is None:
                return None
            rating = insert_rating(self._db, chosen.item, labeler, chosen.order_shown, chosen.why, now)
            self._file.log(now, labeler, chosen.item, "claim", {"order_shown": chosen.order_shown, "why": chosen.why})
            return load_assignment(self._db, rating)

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
        view: View | None = None,
        answers: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the answer; it is on disk when this returns. An answer after the end of its lease still counts.

        Args:
            choice_shown: `left`, `right` or `tie` for a pair, `ranked` for a ranking, `scored` for a single
                completion, `skip` for any.
            strength: 1 (slightly) to 3 (much better) for left or right, None if not asked.
            ranks_shown: for a ranking, one number per completion in display order: 1 is best, equal is a tie.
            score: for a single completion, 1 to 7.
            view: how the answers were shown; None if that is not known.
            answers: those to the assignment's questions, in display order; a skip has none.

        Raises:
            UserError: the item was answered meanwhile, for example in another window, and that answer is kept; or the
                answer does not match the item.
        """
        assert math.isfinite(seconds) and seconds >= 0, seconds
        with self.transaction():
            now = time.time()  # read after waiting for the lock, because the lease may have expired meanwhile
            row = self._db.execute(
                "SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item"
                " WHERE rating.id = ? AND item = ? AND labeler = ?",
                (assignment.rating, assignment.item, assignment.labeler),
            ).fetchone()
            if row is None or row["done"]:
                problem = "has answered item {} already" if row else "has no claim any more on item {}"
                raise UserError(f"{self.path}: {assignment.labeler} {problem.format(assignment.item)}")
            order = json.loads(row["order_shown"])
            choice = flipped({"left": "first", "right": "second"}.get(choice_shown, choice_shown), order)
            check_answer(row["kind"], len(order), choice, strength, ranks_shown, score)
            answer = {
                "choice": choice,
                "strength": strength,
                "ranks": None if ranks_shown is None else dump(dense(in_item_order(ranks_shown, order))),
                "score": score,
                "given": None,
                "seconds": float(seconds),
                "comment": clean(comment),
                "flags": dump([clean(flag) for flag in flags]),
                "guideline": assignment.guideline,
                "questions": assignment.questions,
                "view": view,
                "answers": None if choice == "skip" else self._answers(assignment, answers or {}),
            }
            # Undo needs increasing times, even if the clock was set back.
            done_at = max(now, math.nextafter(last_done(self._db, assignment.labeler), math.inf))
            finish_rating(self._db, row["id"], answer, done_at)
            self._file.log(now, assignment.labeler, assignment.item, "submit", answer)

    def _answers(self, assignment: Assignment, answers: Mapping[str, Any]) -> str | None:
        """The answers to the assignment's questions as they are stored. Raises UserError if they do not match them."""
        asked = self.settings.questionnaire(assignment.questions)
        check_answers(asked, assignment.kind, len(assignment.order_shown), answers)
        stored = as_stored(answers, assignment.order_shown)
        return None if stored is None else dump(stored)

    def import_rating(self, item: int, labeler: str, choice: str, **known: Unpack[ImportedAnswer]) -> bool:
        """Import an answer in item order; see `import_answer`. Importing the same answer again changes nothing.

        Returns:
            Whether the answer is new.

        Raises:
            UserError: the item does not exist, the answer does not match it, or the labeler has given another answer.
        """
        return import_answer(self._file, item, labeler, choice, known)

    def assignment(self, rating: int, labeler: str, unanswered: bool = False) -> Assignment | None:
        """The assignment of a rating, if this labeler claimed it (and, on request, it is `unanswered`); else None."""
        claimed = self._db.execute(
            "SELECT 1 FROM rating WHERE id = ? AND labeler = ? AND NOT (done AND ?)", (rating, labeler, unanswered)
        ).fetchone()
        return load_assignment(self._db, rating) if claimed else None

    def feedback(self, assignment: Assignment) -> Feedback | None:
        """The feedback after the answer to a calibration item; None for other items, or before the answer."""
        return load_feedback(self._db, assignment, self.settings.questionnaire)

    def undo(self, labeler: str, order: Order = "random") -> Assignment | None:
        """Reopen the labeler's last answer, or return None if there is none; the event log keeps the old answer.
        A referee takes back verdicts alone, and others take back none.

        The answer to a calibration item cannot be undone, because the labeler has seen the right one.
        """
        check_labeler(labeler)
        with self.transaction():
            now = time.time()
            row = self._db.execute(
                "SELECT * FROM rating WHERE labeler = ? AND done = 1 AND (why = 'verdict') = ?"
                " ORDER BY done_at DESC, id DESC LIMIT 1",
                (labeler, order == "disputed"),
            ).fetchone()
            if row is None or row["why"] == "calibration":
                return None
            self._file.log(now, labeler, row["item"], "undo", dict(row))
            self._db.execute(
                "UPDATE rating SET choice = NULL, strength = NULL, ranks = NULL, score = NULL, given = NULL,"
                " seconds = NULL, comment = '', flags = '[]', guideline = NULL, questions = NULL, view = NULL,"
                " answers = NULL, done_at = NULL, done = 0, claimed_at = ? WHERE id = ?",
                (now, row["id"]),
            )
            if row["order_shown"] == "[]":  # an imported answer with an unknown display order
                item = self._db.execute(
                    "SELECT key, json_array_length(completions) AS count FROM item WHERE id = ?", (row["item"],)
                ).fetchone()
                sides = Labeler(self._db, labeler, self.seed, now).sides(item["key"], item["count"])
                self._db.execute("UPDATE rating SET order_shown = ? WHERE id = ?", (dump(sides), row["id"]))
            return load_assignment(self._db, row["id"])

    def progress(self, labeler: str, order: Order = "random") -> Progress:
        """The labeler's progress.

        `done` counts all answers, including skips and controls. `total` adds the items that they would still get if
        everybody else stopped now: their open item, calibration, the ordinary items that need answers, and the controls
        that will be mixed in. It shrinks when others answer items, and grows when skips, undo or expired leases of
        others free some. `seconds` is the median of the latest 100 answers.
        """
        check_labeler(labeler)
        asking = self._asking(labeler, order, time.time() - LEASE_SECONDS)
        done = sum(count for (_, choice), count in asking.tally.items() if choice is not None)
        times = self._db.execute(
            "SELECT seconds FROM rating WHERE labeler = ? AND done = 1 AND (why = 'verdict') = ?"
            " ORDER BY done_at DESC LIMIT 100",
            (labeler, order == "disputed"),
        ).fetchall()
        durations = [row["seconds"] for row in times if row["seconds"] is not None]
        return Progress(
            done=done,
            skipped=sum(count for (_, choice), count in asking.tally.items() if choice == "skip"),
            total=done + asking.ahead(self.settings.shares()),
            seconds=statistics.median(durations) if durations else None,
        )

    def items(self) -> list[Item]:
        """All items, in the order in which they were added."""
        return [item_from(row) for row in self._db.execute("SELECT * FROM item ORDER BY id")]

    def ratings(self, skips: bool = False, for_training: bool = False, item: int | None = None) -> list[Rating]:
        """All finished ratings, or those of one item, in the order of their claims; skips only on request.

        `for_training` leaves out gold, calibration and repeats, which measure the labeler, and the votes on an item
        that a referee has decided.
        """
        where = "done AND (choice <> 'skip' OR :skips)" + " AND rating.item = :item" * (item is not None)
        rows = self._db.execute(
            f"SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item WHERE {where} ORDER BY rating.id",
            {"skips": skips, "item": item},
        )
        found = [rating_from(row) for row in rows]
        return settled(found) if for_training else found

    def last_rating(self, labeler: str, order: Order = "random") -> Rating | None:
        """The labeler's newest answer, which `undo` would reopen; None if there is none."""
        check_labeler(labeler)
        row = self._db.execute(
            "SELECT rating.*, kind FROM rating JOIN item ON item.id = rating.item WHERE labeler = ? AND done"
            " AND (why = 'verdict') = ? ORDER BY done_at DESC, rating.id DESC LIMIT 1",
            (labeler, order == "disputed"),
        ).fetchone()
        return None if row is None else rating_from(row)

    def labelers(self) -> list[str]:
        """The names of all labelers with a rating that models are trained on."""
        rows = self._db.execute(
            f"SELECT DISTINCT labeler FROM rating WHERE done AND choice <> 'skip' AND {LEARNED} ORDER BY labeler"
        )
        return [row["labeler"] for row in rows]

    def fingerprint(self, labelers: Collection[str] | None = None) -> dict[str, Any]:
        """The store's fingerprint in a model's manifest: see `fingerprint_of`."""
        return fingerprint_of(self._file, self.people, labelers)

    def set_uncertainty(self, uncertainty: Mapping[int, float], model: str) -> None:
        """Store the distance |p - 1/2| of a reward model's probability from 1/2, per item id.

        It replaces another model's values. `model` is the registry reference, which is kept in the event log.
        """
        with self.transaction():
            self._db.execute("UPDATE item SET uncertainty = NULL WHERE uncertainty IS NOT NULL")
            self._db.executemany(
                "UPDATE item SET uncertainty = ? WHERE id = ?", [(value, item) for item, value in uncertainty.items()]
            )
            self._file.log(time.time(), "", None, "uncertainty", {"model": model, "items": len(uncertainty)})

    def has_uncertainty(self) -> bool:
        """Return whether any item has a stored uncertainty."""
        return self._db.execute("SELECT 1 FROM item WHERE uncertainty IS NOT NULL LIMIT 1").fetchone() is not None

    def _asking(self, labeler: str, order: Order, cutoff: float) -> Labeler:
        return (Referee if order == "disputed" else Labeler)(self._db, labeler, self.seed, cutoff)
