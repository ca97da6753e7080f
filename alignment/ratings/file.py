"""The SQLite file of a ratings store: tables, opening, migration and transactions."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alignment.errors import UserError
from alignment.ratings.records import CONTROLS, NO_VOTES, dump

APPLICATION_ID = 0x616C7261  # "alra", in the file's header: identifies ratings files among SQLite files
SCHEMA_VERSION = 6
BUSY_SECONDS = 30.0

BROKEN = (sqlite3.OperationalError, sqlite3.DatabaseError)
"""Errors of a file that is locked, read-only, damaged or on a full disk. Their subclasses are programming errors."""

# Rows that count toward an item's `need`; see records.NO_VOTES.
COUNTS = f"why NOT IN {NO_VOTES}"
LEARNED = f"why NOT IN {CONTROLS}"  # rows that a model's training reads
EVENT_TRIGGERS = {
    name: f"CREATE TRIGGER {name} BEFORE {verb} ON event"
    " BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;"
    for name, verb in {"event_kept": "DELETE", "event_fixed": "UPDATE"}.items()
}

_META = "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);"
_EVENT = """
CREATE TABLE event(
  id INTEGER PRIMARY KEY, at REAL NOT NULL, labeler TEXT NOT NULL, item INTEGER, kind TEXT NOT NULL,
  payload TEXT NOT NULL);
"""
# `answered` counts the finished answers toward `need`. Only the triggers below write it, so it cannot drift
# from the ratings, and a claim need not count ratings for each item.
_RATED = f"(new.done AND new.choice <> 'skip' AND new.{COUNTS})"
_WAS_RATED = _RATED.replace("new.", "old.")
# What a rating was given under: versions of guideline and questions, NULL if there were none or they are not known; how
# the answers were shown; and the answers to the questions, as JSON.
_GIVEN_UNDER = (
    "guideline INTEGER",
    "questions INTEGER",
    "view TEXT CHECK(view IN ('raw', 'rendered'))",
    "answers TEXT",
)
_DRAFT = "draft TEXT"  # what was given to an open item so far, as JSON; see drafts.py
_TRIGGERS = f"""
CREATE TRIGGER rating_added AFTER INSERT ON rating WHEN {_RATED} BEGIN
  UPDATE item SET answered = answered + 1 WHERE id = new.item; END;
CREATE TRIGGER rating_changed AFTER UPDATE OF done, choice, why, item ON rating BEGIN
  UPDATE item SET answered = answered - 1 WHERE id = old.item AND {_WAS_RATED};
  UPDATE item SET answered = answered + 1 WHERE id = new.item AND {_RATED}; END;
CREATE TRIGGER rating_removed AFTER DELETE ON rating WHEN {_WAS_RATED} BEGIN
  UPDATE item SET answered = answered - 1 WHERE id = old.item; END;
"""
_TABLES = f"""
CREATE TABLE item(
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK(kind IN ('pair', 'rank', 'single')),
  need INTEGER NOT NULL CHECK(need >= 1), answered INTEGER NOT NULL DEFAULT 0, place INTEGER NOT NULL,
  created REAL NOT NULL, uncertainty REAL, gold TEXT, prompt TEXT NOT NULL,
  completions TEXT NOT NULL CHECK(json_array_length(completions) BETWEEN 1 AND 9), metadata TEXT NOT NULL);
CREATE INDEX item_open ON item(place, kind, need, answered, gold) WHERE gold IS NULL AND answered < need;
CREATE INDEX item_doubted ON item(uncertainty) WHERE gold IS NULL AND answered < need AND uncertainty IS NOT NULL;
CREATE INDEX item_gold ON item(place) WHERE gold IS NOT NULL;
CREATE TABLE rating(
  id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES item(id), labeler TEXT NOT NULL,
  order_shown TEXT NOT NULL, choice TEXT CHECK(choice IN ('first', 'second', 'tie', 'ranked', 'scored', 'skip')),
  strength INTEGER CHECK(strength BETWEEN 1 AND 3), ranks TEXT, score INTEGER CHECK(score BETWEEN 1 AND 7),
  given REAL, seconds REAL, comment TEXT NOT NULL DEFAULT '', flags TEXT NOT NULL DEFAULT '[]',
  why TEXT NOT NULL DEFAULT 'random', claimed_at REAL NOT NULL, done_at REAL, done INTEGER NOT NULL DEFAULT 0,
  {", ".join(_GIVEN_UNDER)}, {_DRAFT},
  CHECK(done = (choice IS NOT NULL) AND done = (done_at IS NOT NULL)),
  CHECK((ranks IS NOT NULL) = (choice IS 'ranked') AND (score IS NOT NULL) = (choice IS 'scored')));
CREATE UNIQUE INDEX rating_once ON rating(item, labeler, (why = 'repeat'));
CREATE INDEX rating_by_labeler ON rating(labeler, done, done_at);
CREATE INDEX rating_by_why ON rating(labeler, why, choice);
CREATE INDEX rating_open ON rating(claimed_at) WHERE NOT done;
CREATE TABLE invitation(labeler TEXT PRIMARY KEY, token_sha256 TEXT NOT NULL UNIQUE, at REAL NOT NULL) WITHOUT ROWID;
{_TRIGGERS}"""
_IS_OPEN = "({0}.gold IS NULL AND {0}.answered < {0}.need)"
_OLD_OPEN, _NEW_OPEN = _IS_OPEN.format("old"), _IS_OPEN.format("new")
# The number of ordinary items that need answers, which the progress of every labeler shows after each answer.
_COUNTER = f"""
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter SELECT 'open', count(*) FROM item WHERE {_IS_OPEN.format("item")};
CREATE TRIGGER item_added AFTER INSERT ON item WHEN {_NEW_OPEN} BEGIN
  UPDATE counter SET value = value + 1 WHERE name = 'open'; END;
CREATE TRIGGER item_changed AFTER UPDATE OF need, answered, gold ON item WHEN {_OLD_OPEN} <> {_NEW_OPEN} BEGIN
  UPDATE counter SET value = value + {_NEW_OPEN} - {_OLD_OPEN} WHERE name = 'open'; END;
CREATE TRIGGER item_removed AFTER DELETE ON item WHEN {_OLD_OPEN} BEGIN
  UPDATE counter SET value = value - 1 WHERE name = 'open'; END;
"""
_WORDING = """
CREATE TABLE wording(
  kind TEXT NOT NULL CHECK(kind IN ('guideline', 'questions')), version INTEGER NOT NULL, at REAL NOT NULL,
  text TEXT NOT NULL, PRIMARY KEY(kind, version)) WITHOUT ROWID;
"""
# The event log has every earlier guideline and its time. Imported ratings were given elsewhere, under another one.
_GUIDELINES = """
INSERT INTO wording SELECT 'guideline', row_number() OVER (ORDER BY id), at, json_extract(payload, '$.guideline')
  FROM event WHERE kind = 'setting' AND json_type(payload, '$.guideline') = 'text';
UPDATE rating SET guideline = (SELECT max(version) FROM wording WHERE kind = 'guideline' AND at <= rating.done_at)
  WHERE done AND why <> 'import';
INSERT INTO wording SELECT key, 1, strftime('%s', 'now'), value FROM meta
  WHERE key = 'guideline' AND value <> '' AND NOT EXISTS (SELECT 1 FROM wording);
DELETE FROM meta WHERE key = 'guideline';
"""
_HEADER = f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA_VERSION};\n"
# Schema 1 had pairs only, one row per item and labeler, and no counter. Its tables are replaced.
_FROM_1 = f"""
ALTER TABLE rating RENAME TO rating_1;
ALTER TABLE item RENAME TO item_1;
DROP INDEX rating_by_labeler;
{_TABLES}
INSERT INTO item(id, key, kind, prompt, completions, need, place, created, metadata)
  SELECT id, key, kind, prompt, completions, need, place, created, metadata FROM item_1;
INSERT INTO rating(id, item, labeler, order_shown, choice, strength, seconds, comment, flags, claimed_at, done_at, done)
  SELECT id, item, labeler, order_shown, choice, strength, seconds, comment, flags, claimed_at, done_at, done
  FROM rating_1 ORDER BY id;
DROP TABLE rating_1;
DROP TABLE item_1;
{_COUNTER}{_WORDING}{_GUIDELINES}"""
# What each later schema added: 3 the scores on scales of other tools, 4 the counter of items that need answers, 5 the
# questions and the versions, and verdicts, which the triggers must not count, 6 the drafts of open items.
_ADDED = {
    3: "ALTER TABLE rating ADD COLUMN given REAL;\n",
    4: _COUNTER,
    5: "".join(f"ALTER TABLE rating ADD COLUMN {column};\n" for column in _GIVEN_UNDER)
    + _WORDING
    + _GUIDELINES
    + "".join(f"DROP TRIGGER rating_{name};\n" for name in ("added", "changed", "removed"))
    + _TRIGGERS,
    6: f"ALTER TABLE rating ADD COLUMN {_DRAFT};\n",
}


def is_ratings_file(path: str | os.PathLike[str]) -> bool:
    """Return whether the path is a ratings file; False for any other file or a missing one."""
    if not os.path.isfile(path):  # Path.is_file raises if a folder is not accessible
        return False
    # SQLite is used instead of open(), because closing a plain descriptor would drop the locks of a store that this
    # process has open. The first try takes no locks and changes nothing. It fails if a checkpoint of the log is under
    # way or was killed, when the file is shorter than its header says. The second try uses locks, log and recovery.
    for mode in ("immutable=1", "mode=rw"):
        try:
            with closing(sqlite3.connect(f"file:{quote(os.fspath(path))}?{mode}", uri=True)) as db:
                db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
                return bool(db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)
        except sqlite3.Error:
            continue
    return False


class RatingsFile:
    """An open connection to one file of the newest schema; a missing file is created if `create` is true."""

    def __init__(self, path: str | os.PathLike[str], create: bool, seed: int) -> None:
        self.path = Path(path)
        status = _stat(self.path)
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        if not create and not is_file:
            raise UserError(
                f"{self.path}: no such ratings file; create one with `alignment sample` or `alignment rate import`"
            )
        fresh = create and (status is None or (is_file and status.st_size == 0))
        if not fresh and not is_ratings_file(self.path):
            if is_file and not os.access(self.path, os.R_OK):
                raise UserError(f"{self.path}: you may not read this ratings file; its owner can give it to a group")
            raise UserError(
                f"{self.path}: not a ratings file; expected one made by `alignment sample` or `alignment rate import`"
            )
        try:
            if fresh:
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self.db = sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, isolation_level=None)
            self.db.row_factory = sqlite3.Row
            for pragma in (f"busy_timeout = {BUSY_SECONDS * 1000:.0f}", "synchronous = FULL", "foreign_keys = ON"):
                self.db.execute(f"PRAGMA {pragma}")
            if fresh:
                self._make(seed)
            # WAL mode comes after the header is in the main file, where `is_ratings_file` reads it.
            self.db.execute("PRAGMA journal_mode = WAL")
            if self._version() in range(1, SCHEMA_VERSION):
                self._migrate()
            version = self._version()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{self.path}: cannot open the ratings file ({error})") from error
        if version != SCHEMA_VERSION:
            self.db.close()
            raise UserError(
                f"{self.path}: ratings schema {version}, this code reads {SCHEMA_VERSION};"
                " use the release of the suite that made the file"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one atomic transaction. It may be nested; the outermost one commits."""
        if self.db.in_transaction:
            yield
            return
        try:
            self._begin()
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if type(error) in BROKEN:
                raise UserError(f"{self.path}: {error}; nothing of this step was saved") from error
            raise

    def meta(self, key: str, default: str) -> str:
        """A setting, or the default if it is not set."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else str(row["value"])

    def set_meta(self, key: str, value: str) -> None:
        """Store a setting. Call it in a transaction."""
        self.db.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?, ?)", (key, value))

    def log(self, at: float, labeler: str, item: int | None, kind: str, payload: Mapping[str, Any]) -> None:
        """Append to the event log. Call it in the transaction of the logged change."""
        self.db.execute(
            "INSERT INTO event(at, labeler, item, kind, payload) VALUES(?, ?, ?, ?, ?)",
            (at, labeler, item, kind, dump(payload)),
        )

    def scrub(self) -> None:
        """Overwrite deleted rows in the file and its write-ahead log.

        SQLite leaves deleted rows in free pages, and old versions of pages in the write-ahead log. Raises UserError if
        a concurrent reader prevented the truncation of the log.
        """
        try:
            self.db.execute("VACUUM")
            busy = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: {error}; what was deleted may still be in the file, try again") from error
        if busy:
            raise UserError(
                f"{self.path}: another program is reading the file, so what was deleted may still be in"
                f" {self.path.name}-wal; stop it and try again"
            )

    def _version(self) -> int:
        return int(self.db.execute("PRAGMA user_version").fetchone()[0])

    def _begin(self) -> None:
        """Poll for the write lock: SQLite's own wait sleeps 0.1 s at a time and starves beside a continuous writer."""
        deadline = time.monotonic() + BUSY_SECONDS
        self.db.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self.db.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
        finally:
            self.db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")

    def _make(self, seed: int) -> None:
        self.db.execute("BEGIN IMMEDIATE")  # if two processes create the file, the second one stops here
        if self.db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
            self.db.execute("ROLLBACK")
            return
        for statement in _statements(
            _META + _EVENT + "\n".join(EVENT_TRIGGERS.values()) + _TABLES + _COUNTER + _WORDING + _HEADER
        ):
            self.db.execute(statement)
        self.set_meta("seed", str(seed))
        self._name_file()
        self.db.execute("COMMIT")

    def _migrate(self) -> None:
        with self.transaction():
            version = self._version()  # another process may have migrated it already
            script = _FROM_1 if version == 1 else "".join(_ADDED[newer] for newer in _ADDED if newer > version)
            for statement in _statements(script + _HEADER):
                self.db.execute(statement)
            if version == 1:
                self._name_file()

    def _name_file(self) -> None:
        """Set the random id that models' manifests refer to, and the salt of the labelers' hashes."""
        self.set_meta("database", secrets.token_hex(8))
        self.set_meta("salt", secrets.token_hex(16))


def _stat(path: Path) -> os.stat_result | None:
    """The status of a path, or None if it does not exist. Raises UserError if it is not accessible."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot open the ratings file ({error.strerror})") from error


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one by one; `executescript` would commit the open transaction."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
