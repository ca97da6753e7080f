"""The ratings store: what is to be compared, who looks at it now, and what they said. One SQLite file in WAL mode.

Keep the file on a local disk: WAL does not work over NFS. Any number of processes may use it at once.
"""

import hashlib
import json
import math
import os
import random
import sqlite3
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from alignment.errors import UserError
from alignment.terminal import clean

APPLICATION_ID = 0x616C7261  # "alra", in the file's header: tells our files from other SQLite files
SCHEMA_VERSION = 1
LEASE_SECONDS = 900.0
BUSY_SECONDS = 30.0
_PLACES = 2**31 - 1  # a prime whose square fits SQLite's 64-bit integers

Choice = Literal["first", "second", "tie", "skip"]
ChoiceShown = Literal["left", "right", "tie", "skip"]

_SCHEMA = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE item(
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK(kind IN ('pair', 'rank')),
  prompt TEXT NOT NULL, completions TEXT NOT NULL CHECK(json_array_length(completions) BETWEEN 2 AND 9),
  need INTEGER NOT NULL CHECK(need >= 1), place INTEGER NOT NULL, created REAL NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE rating(
  id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item(id), labeler TEXT NOT NULL,
  order_shown TEXT NOT NULL, choice TEXT, strength INTEGER CHECK(strength BETWEEN 1 AND 3), seconds REAL,
  comment TEXT NOT NULL DEFAULT '', flags TEXT NOT NULL DEFAULT '[]',
  claimed_at REAL NOT NULL, done_at REAL, done INTEGER NOT NULL DEFAULT 0,
  UNIQUE(item, labeler), CHECK(done = (choice IS NOT NULL) AND done = (done_at IS NOT NULL)));
CREATE INDEX rating_by_labeler ON rating(labeler, done, done_at);
CREATE TABLE event(
  id INTEGER PRIMARY KEY, at REAL NOT NULL, labeler TEXT NOT NULL, item INTEGER, kind TEXT NOT NULL,
  payload TEXT NOT NULL);
CREATE TRIGGER event_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# Items that :me may still answer, `mine` being my own row if there is one: I have not finished it, and either my
# lease holds or finished answers and live leases of others leave room. A skip leaves the room to somebody else.
_AVAILABLE = """
FROM item LEFT JOIN rating AS mine ON mine.item = item.id AND mine.labeler = :me
WHERE (mine.id IS NULL OR NOT mine.done) AND (mine.claimed_at > :cutoff OR item.need > (
  SELECT count(*) FROM rating AS other WHERE other.item = item.id AND other.labeler <> :me
  AND CASE WHEN other.done THEN other.choice <> 'skip' ELSE other.claimed_at > :cutoff END))
"""


@dataclass(frozen=True)
class Completion:
    """One answer. `ended`: it stopped by itself, not at a length limit. `model`: registry reference of its maker."""

    text: str
    ended: bool = True
    model: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Item:
    """One thing to rate. `prompt` is a list of `{"role", "content"}`; `need` is how many labelers shall answer."""

    id: int
    key: str
    kind: str
    prompt: tuple[dict[str, str], ...]
    completions: tuple[Completion, ...]
    need: int
    created: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Rating:
    """A finished answer. `choice` is in item order whatever the labeler saw; `order_shown[0]` was on the left."""

    id: int
    item: int
    labeler: str
    order_shown: tuple[int, ...]
    choice: Choice
    strength: int | None
    seconds: float
    comment: str
    flags: tuple[str, ...]
    claimed_at: float
    done_at: float


@dataclass(frozen=True)
class Assignment:
    """An item as one labeler sees it: texts in the order shown and nothing that names a model."""

    rating: int
    item: int
    labeler: str
    prompt: tuple[dict[str, str], ...]
    completions: tuple[str, ...]
    order_shown: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """Where a labeler is: `done` (skips among them) of `total` within reach; `seconds` is the median per answer."""

    done: int
    skipped: int
    total: int
    seconds: float | None


def is_ratings_file(path: str | os.PathLike[str]) -> bool:
    """Whether the file is one of our ratings databases. Any other file, or none, is simply False."""
    if not Path(path).is_file():
        return False
    try:
        # Through SQLite, not open(): closing a plain descriptor would drop the locks of a store open in this process.
        with closing(sqlite3.connect(f"file:{quote(os.fspath(path))}?immutable=1", uri=True)) as db:
            return bool(db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)
    except sqlite3.Error:
        return False


class RatingsStore:
    """Items, claims and ratings in one file. Each public call is one transaction, on disk when it returns.

    `seed` decides the order of items and of sides per labeler; by default the one stored when the file was made.
    Use one instance per process and thread, and close it (or use it in a `with`).
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = False, seed: int | None = None) -> None:
        self.path = Path(path)
        self._open(create, seed or 0)
        self.seed = seed if seed is not None else int(self._meta("seed", "0"))

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
        if self._db.in_transaction:
            yield
            return
        try:
            self._begin()
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):  # locked for long, read-only, disk full
                raise UserError(f"{self.path}: {error}; nothing of this step was saved") from error
            raise

    def add_item(
        self,
        prompt: Sequence[Mapping[str, str]],
        completions: Sequence[Completion | Mapping[str, Any]],
        need: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a pair to rate and return its id; the same prompt and texts again give the same item.

        A completion is a `Completion` or a mapping with its fields. Adding anew can raise `need`, never lower it.
        Raises UserError if the prompt is no list of messages or there are not two completions.
        """
        messages = [_message(message) for message in prompt]
        answers = [each if isinstance(each, Completion) else _completion(each) for each in completions]
        if not messages or len(answers) != 2:
            raise UserError(
                f"an item to rate takes 1 or more messages and 2 completions, found {len(messages)} and {len(answers)}"
            )
        if need < 1:
            raise UserError(f"need is how many labelers rate an item: expected 1 or more, found {need}")
        key = _digest([messages, [[answer.text, answer.ended] for answer in answers]])
        with self.transaction():
            self._db.execute(
                "INSERT INTO item(key, kind, prompt, completions, need, place, created, metadata)"
                " VALUES(:key, 'pair', :prompt, :completions, :need, :place, :created, :metadata)"
                " ON CONFLICT(key) DO UPDATE SET need = max(need, excluded.need)",
                {
                    "key": key,
                    "prompt": _dump(messages),
                    "completions": _dump([asdict(answer) for answer in answers]),
                    "need": need,
                    "place": int(key, 16) % _PLACES,
                    "created": time.time(),
                    "metadata": _dump(dict(metadata or {})),
                },
            )
            return int(self._db.execute("SELECT id FROM item WHERE key = ?", (key,)).fetchone()["id"])

    def claim(self, labeler: str, now: float | None = None, lease_seconds: float = LEASE_SECONDS) -> Assignment | None:
        """What the labeler shall answer next, theirs for the length of the lease, or None when nothing is left.

        Their own unanswered item comes back first, the newest before older ones, which is what undo relies on. Then
        items in an order of their own. Never hands out more than `need` answers and live leases for an item.
        """
        _check_labeler(labeler)
        now = time.time() if now is None else now
        # Multiplying places modulo a prime is a shuffle of its own for each labeler, and cheap enough inside SQL.
        turn = int(_digest(["order", self.seed, labeler]), 16) % (_PLACES - 1) + 1
        limits = {"me": labeler, "cutoff": now - lease_seconds, "turn": turn, "places": _PLACES}
        with self.transaction():
            row = self._db.execute(
                f"SELECT item.id, item.key, item.completions, mine.id AS rating {_AVAILABLE}"
                " ORDER BY mine.id IS NULL, mine.claimed_at DESC, mine.id DESC, item.place * :turn % :places, item.id"
                " LIMIT 1",
                limits,
            ).fetchone()
            if row is None:
                return None
            if row["rating"] is not None:
                self._db.execute("UPDATE rating SET claimed_at = ? WHERE id = ?", (now, row["rating"]))
                return self._assignment(row["rating"])
            order = list(range(len(json.loads(row["completions"]))))
            random.Random(f"sides:{self.seed}:{labeler}:{row['key']}").shuffle(order)
            rating = self._db.execute(
                "INSERT INTO rating(item, labeler, order_shown, claimed_at) VALUES(?, ?, ?, ?)",
                (row["id"], labeler, _dump(order), now),
            ).lastrowid
            assert rating is not None
            self._log(now, labeler, row["id"], "claim", {"order_shown": order})
            return self._assignment(rating)

    def submit(
        self,
        assignment: Assignment,
        choice_shown: ChoiceShown,
        seconds: float,
        strength: int | None = None,
        comment: str = "",
        flags: Sequence[str] = (),
    ) -> None:
        """Store the answer, on disk when this returns. An answer that comes after its lease still counts.

        `strength` is 1 to 3 for left or right, None if not asked. Raises UserError if it was answered meanwhile, say
        by the same labeler in another window; the first answer then stands.
        """
        assert choice_shown in ("left", "right", "tie", "skip"), choice_shown
        assert strength is None or (strength in (1, 2, 3) and choice_shown in ("left", "right")), strength
        assert math.isfinite(seconds) and seconds >= 0, seconds
        now = time.time()
        with self.transaction():
            row = self._db.execute(
                "SELECT * FROM rating WHERE id = ? AND item = ? AND labeler = ?",
                (assignment.rating, assignment.item, assignment.labeler),
            ).fetchone()
            if row is None or row["done"]:
                raise UserError(f"{self.path}: {assignment.labeler} has answered item {assignment.item} already")
            choice: str = choice_shown
            if choice_shown in ("left", "right"):
                chosen = json.loads(row["order_shown"])[choice_shown == "right"]
                choice = ("first", "second")[chosen]
            answer = {
                "choice": choice,
                "strength": strength,
                "seconds": float(seconds),
                "comment": clean(comment),
                "flags": _dump(list(flags)),
            }
            self._db.execute(
                "UPDATE rating SET choice = :choice, strength = :strength, seconds = :seconds, comment = :comment,"
                " flags = :flags, done_at = :now, done = 1 WHERE id = :id",
                answer | {"now": now, "id": row["id"]},
            )
            self._log(now, assignment.labeler, assignment.item, "submit", answer)

    def undo(self, labeler: str) -> Assignment | None:
        """Reopen the labeler's last answer, to be given anew; the old one stays in the event log. None if none."""
        _check_labeler(labeler)
        now = time.time()
        with self.transaction():
            row = self._db.execute(
                "SELECT * FROM rating WHERE labeler = ? AND done ORDER BY done_at DESC, id DESC LIMIT 1", (labeler,)
            ).fetchone()
            if row is None:
                return None
            self._log(now, labeler, row["item"], "undo", dict(row))
            self._db.execute(
                "UPDATE rating SET choice = NULL, strength = NULL, seconds = NULL, comment = '', flags = '[]',"
                " done_at = NULL, done = 0, claimed_at = ? WHERE id = ?",
                (now, row["id"]),
            )
            return self._assignment(row["id"])

    def progress(self, labeler: str) -> Progress:
        """How far the labeler is. `total` shrinks when others answer what nobody else is needed for."""
        _check_labeler(labeler)
        rows = self._db.execute("SELECT choice, seconds FROM rating WHERE labeler = ? AND done", (labeler,)).fetchall()
        limits = {"me": labeler, "cutoff": time.time() - LEASE_SECONDS}
        left = self._db.execute(f"SELECT count(*) AS n {_AVAILABLE}", limits).fetchone()["n"]
        return Progress(
            done=len(rows),
            skipped=sum(row["choice"] == "skip" for row in rows),
            total=len(rows) + left,
            seconds=statistics.median(row["seconds"] for row in rows) if rows else None,
        )

    def items(self) -> list[Item]:
        """All items, in the order they were added."""
        return [
            Item(
                **{name: row[name] for name in ("id", "key", "kind", "need", "created")},
                prompt=tuple(json.loads(row["prompt"])),
                completions=tuple(Completion(**each) for each in json.loads(row["completions"])),
                metadata=json.loads(row["metadata"]),
            )
            for row in self._db.execute("SELECT * FROM item ORDER BY id")
        ]

    def ratings(self, skips: bool = False) -> list[Rating]:
        """All finished ratings, in the order they were claimed; skips only when asked for."""
        names = ("id", "item", "labeler", "choice", "strength", "seconds", "comment", "claimed_at", "done_at")
        return [
            Rating(
                **{name: row[name] for name in names},
                order_shown=tuple(json.loads(row["order_shown"])),
                flags=tuple(json.loads(row["flags"])),
            )
            for row in self._db.execute(
                "SELECT * FROM rating WHERE done AND (choice <> 'skip' OR ?) ORDER BY id", (skips,)
            )
        ]

    def fingerprint(self) -> dict[str, Any]:
        """What a model trained on this store should be traced to: counts, a digest and whether anyone is simulated.

        `sha256` covers the rated texts and the choices, whatever order they came in and whoever made them. `ratings`,
        `items` and `labelers` count finished ratings that are no skips, and the items and labelers they belong to.
        """
        rows = self._db.execute(
            "SELECT item.key, item.id, labeler, choice, strength FROM rating JOIN item ON item.id = rating.item"
            " WHERE done AND choice <> 'skip'"
        ).fetchall()
        return {
            "ratings": len(rows),
            "items": len({row["id"] for row in rows}),
            "labelers": len({row["labeler"] for row in rows}),
            "sha256": _digest(sorted(_dump([row["key"], row["choice"], row["strength"]]) for row in rows)),
            "simulated": bool(self.simulated()),
        }

    def mark_simulated(self, labeler: str) -> None:
        """Say that this labeler is a program. Everything trained on the store then says so."""
        _check_labeler(labeler)
        with self.transaction():
            self._set_meta("simulated", _dump(sorted(self.simulated() | {labeler})))
            self._log(time.time(), labeler, None, "simulated", {})

    def simulated(self) -> frozenset[str]:
        """The labelers that are programs."""
        return frozenset(json.loads(self._meta("simulated", "[]")))

    @property
    def guideline(self) -> str:
        """What labelers are asked to prefer; empty if nobody wrote it."""
        return self._meta("guideline", "")

    @guideline.setter
    def guideline(self, text: str) -> None:
        with self.transaction():
            self._set_meta("guideline", clean(text))

    def _open(self, create: bool, seed: int) -> None:
        if not create and not self.path.is_file():
            raise UserError(f"{self.path}: no such ratings file; make one with scripts/sample.py")
        fresh = create and (not self.path.exists() or (self.path.is_file() and self.path.stat().st_size == 0))
        if not fresh and not is_ratings_file(self.path):
            raise UserError(f"{self.path}: not a ratings file; expected one made by scripts/sample.py")
        try:
            if fresh:
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            for pragma in (f"busy_timeout = {BUSY_SECONDS * 1000:.0f}", "synchronous = FULL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            if fresh:
                self._make(seed)
            # After the header's marks are in the main file, where `is_ratings_file` looks for them.
            self._db.execute("PRAGMA journal_mode = WAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{self.path}: cannot open the ratings file ({error})") from error
        if version != SCHEMA_VERSION:
            self._db.close()
            raise UserError(
                f"{self.path}: ratings schema {version}, this code reads {SCHEMA_VERSION};"
                " use the release of the suite that made the file"
            )

    def _begin(self) -> None:
        """Wait for the write lock by asking often: SQLite's own wait sleeps 0.1 s at a time and starves beside a
        process that writes without a pause."""
        deadline = time.monotonic() + BUSY_SECONDS
        self._db.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self._db.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")

    def _make(self, seed: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")  # two makers at once: the second finds the work done
        if self._db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            self._db.execute("ROLLBACK")
            return
        for statement in _statements(_SCHEMA):
            self._db.execute(statement)
        self._set_meta("seed", str(seed))
        self._db.execute("COMMIT")

    def _meta(self, key: str, default: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row["value"])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", (key, value))

    def _log(self, at: float, labeler: str, item: int | None, kind: str, payload: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO event(at, labeler, item, kind, payload) VALUES(?, ?, ?, ?, ?)",
            (at, labeler, item, kind, _dump(payload)),
        )

    def _assignment(self, rating: int) -> Assignment:
        row = self._db.execute(
            "SELECT rating.item, labeler, order_shown, prompt, completions FROM rating"
            " JOIN item ON item.id = rating.item WHERE rating.id = ?",
            (rating,),
        ).fetchone()
        order, answers = json.loads(row["order_shown"]), json.loads(row["completions"])
        return Assignment(
            rating=rating,
            item=row["item"],
            labeler=row["labeler"],
            prompt=tuple(json.loads(row["prompt"])),
            completions=tuple(answers[place]["text"] for place in order),
            order_shown=tuple(order),
        )


def _statements(script: str) -> Iterator[str]:
    """Single statements of a script; `executescript` would commit the transaction it runs in."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _check_labeler(name: str) -> None:
    if not (1 <= len(name) <= 64 and name.isprintable() and name == name.strip()):
        raise UserError(f"labeler {name!a}: expected a name of 1 to 64 printable characters, no space at its ends")


def _message(message: Mapping[str, str]) -> dict[str, str]:
    fields = dict(message) if isinstance(message, Mapping) else {}
    if set(fields) != {"role", "content"} or not all(isinstance(value, str) for value in fields.values()):
        raise UserError(f'prompt message {clean(str(message))[:80]!r}: expected {{"role": ..., "content": ...}}')
    return fields


def _completion(fields: Mapping[str, Any]) -> Completion:
    if not isinstance(fields.get("text"), str) or not set(fields) <= set(Completion.__dataclass_fields__):
        raise UserError(f"completion with keys {sorted(fields)}: expected text (a string), ended, model and tokens")
    return Completion(**fields)


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, sort_keys=True)  # ASCII: lone surrogates survive as \uXXXX


def _digest(value: Any) -> str:
    return hashlib.sha256(_dump(value).encode()).hexdigest()
