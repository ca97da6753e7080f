"""Aliases: movable names for versions, kept as an append-only history of numbered files.

A move writes a temporary file and hard-links it to the next free number. Linking fails if the number is taken, so two
moves never overwrite each other and `expect` is a compare-and-swap, without locks (flock is unreliable on NFS). An NFS
client may show an old listing for up to a minute: a job pins what it resolved, with its digest, when it starts.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from alignment.files import sync_folder
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, make_folder, passing_file, read_entry
from alignment.registry.manifest import Digest, first_problem
from alignment.registry.references import MAX_NUMBER, NAME
from alignment.terminal import one_line

ENTRY = re.compile(r"(?!0{8})([0-9]{8})\.json")
LAST_ENTRY = 99_999_999
"""The highest number in a history of numbered files: readers know eight digits."""


class Anything(enum.Enum):
    """The type of ANY."""

    ANY = "any"


ANY = Anything.ANY
"""A value of `expect`: move the alias wherever it points now."""


class AliasEntry(BaseModel):
    """One move: the version that the alias points to since `at`, with its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1, le=MAX_NUMBER)
    digest: Digest
    at: AwareDatetime
    by: str | None = None
    """user@host that moved it."""
    reviewed_by: str | None = None
    required: tuple[str, ...] = ()
    """The conditions that were met: `eval_win_rate_low>=0.5` on its metrics, or `review`."""
    rollback: bool = False
    """Whether it is a return to an earlier version rather than a new choice."""
    demoted: bool = False
    """Whether the alias was taken away: since then it points nowhere, and `version` is where it pointed."""
    why: str = ""


def alias_names(folder: Path) -> Iterator[str]:
    """The aliases that have a history in `folder`, sorted; those that were taken away are among them."""
    for entry in entries(folder):
        if NAME.fullmatch(entry) and _last_number(folder / entry):
            yield entry


def read_alias(history: Path) -> tuple[int, AliasEntry | None]:
    """The newest entry of an alias's history folder and its number; (0, None) if there is none.

    Raises:
        RegistryError: the entry is damaged.
    """
    number = _last_number(history)
    return (number, read_entry_of(history, number)) if number else (0, None)


def taken_away(ref: str, entry: AliasEntry) -> str:
    """Who took an alias away, when and why."""
    why = f" ({one_line(entry.why)})" if entry.why else ""
    by = one_line(entry.by or "somebody")
    return f"{ref} was taken away from v{entry.version} on {entry.at:%Y-%m-%d} by {by}{why}, and points nowhere"


def is_demoted(history: Path) -> bool:
    """Whether an alias was taken away; False if its newest entry cannot be read."""
    try:
        entry = read_alias(history)[1]
    except RegistryError:
        return False
    return entry is not None and entry.demoted


def read_history(history: Path) -> list[AliasEntry]:
    """All entries of an alias's history folder, oldest first.

    Raises:
        RegistryError: one is damaged.
    """
    return [read_entry_of(history, number) for number in entry_numbers(history)]


def read_entry_of(history: Path, number: int) -> AliasEntry:
    """One move of an alias.

    Raises:
        RegistryError: it is damaged.
    """
    path = history / f"{number:08d}.json"
    try:
        return AliasEntry.model_validate_json(read_entry(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RegistryError(f"{path} cannot be read: {error.strerror}; set the alias again") from None
    except ValidationError as error:
        raise RegistryError(f"{path} is damaged: {first_problem(error)}; set the alias again") from None


def move_alias(history: Path, staging: Path, entry: AliasEntry, expect: int | Anything | None) -> None:
    """Append an entry to an alias's history; `expect` is the version it must point to now (None: the alias is new).

    Raises:
        RegistryError: the alias points elsewhere than expected.
    """
    make_folder(history)
    with passing_file(staging, json.dumps(entry.model_dump(mode="json")).encode() + b"\n") as temporary:
        while True:
            number, now = _last_number(history), None
            if expect is not ANY:
                number, entry_now = read_alias(history)
                now = entry_now.version if entry_now and not entry_now.demoted else None
                if now != expect:
                    raise RegistryError(
                        f"alias {history.name!r} is {_named(now)}, expected {_named(expect)}: look again, then move it"
                    )
            if link_new(temporary, next_entry(history, number)):
                break
        sync_folder(history)


def version_before(moves: Sequence[AliasEntry]) -> int | None:
    """The target of a rollback: the version chosen before the current one, None if there is none.

    A second rollback goes one further back, since a rollback is not a choice: after 1, 2, 3, back to 2 comes 1. After
    a version was taken away, the one before it comes back.
    """
    chosen: list[int] = []
    for entry in moves:
        if entry.demoted:
            if chosen[-1:] == [entry.version]:
                chosen.pop()
        elif entry.rollback and entry.version in chosen:
            while chosen[-1] != entry.version:
                chosen.pop()
        elif chosen[-1:] != [entry.version]:
            chosen.append(entry.version)
    gone = bool(moves) and moves[-1].demoted
    return next(iter(chosen[-1 if gone else -2 :]), None) if len(chosen) > (0 if gone else 1) else None


def link_new(temporary: Path, target: Path) -> bool:
    """Atomically give a finished file its final name; False if that name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.stat(temporary).st_nlink > 1  # NFS repeats a request whose reply was lost: the first one succeeded
    return True


def entry_numbers(history: Path) -> list[int]:
    """The numbers of a history's entries, ascending."""
    return sorted(int(match[1]) for entry in entries(history) if (match := ENTRY.fullmatch(entry)))


def next_entry(history: Path, last: int) -> Path:
    """The file that follows number `last` in a history.

    Raises:
        RegistryError: nothing can follow, since somebody put a file of the highest number there.
    """
    if last >= LAST_ENTRY:
        raise RegistryError(
            f"{history / f'{last:08d}.json'} has the highest number, so nothing can follow it and readers would not "
            "see it; nobody made so many entries: move that file elsewhere, then try again"
        )
    return history / f"{last + 1:08d}.json"


def append_entry(history: Path, staging: Path, data: bytes) -> None:
    """Add a file with the next number to a history; earlier ones are never changed."""
    make_folder(history)
    make_folder(staging)
    with passing_file(staging, data) as temporary:
        while not link_new(temporary, next_entry(history, _last_number(history))):
            pass  # another job took the number
    sync_folder(history)


def _last_number(history: Path) -> int:
    return max(entry_numbers(history), default=0)


def _named(version: int | Anything | None) -> str:
    return "not set" if version is None else f"v{version}"
