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
from alignment.registry.files import entries, make_folder, one_line_errors, passing_file
from alignment.registry.manifest import Digest, first_problem
from alignment.registry.references import NAME

_ENTRY = re.compile(r"([0-9]{8})\.json")


class Anything(enum.Enum):
    """The type of ANY."""

    ANY = "any"


ANY = Anything.ANY
"""A value of `expect`: move the alias wherever it points now."""


class AliasEntry(BaseModel):
    """One move: the version that the alias points to since `at`, with its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    digest: Digest
    at: AwareDatetime
    by: str | None = None
    """user@host that moved it."""
    reviewed_by: str | None = None
    required: tuple[str, ...] = ()
    """The conditions that were met: `eval_win_rate_low>=0.5` on its metrics, or `review`."""
    rollback: bool = False
    """Whether it is a return to an earlier version rather than a new choice."""


def alias_names(folder: Path) -> Iterator[str]:
    """The aliases that have a history in `folder`, sorted."""
    for entry in entries(folder):
        if NAME.fullmatch(entry) and _last_number(folder / entry):
            yield entry


def read_alias(history: Path) -> tuple[int, AliasEntry | None]:
    """The newest entry of an alias's history folder and its number; (0, None) if there is none.

    Raises:
        RegistryError: the entry is damaged.
    """
    number = _last_number(history)
    return (number, _read_entry(history, number)) if number else (0, None)


def read_history(history: Path) -> list[AliasEntry]:
    """All entries of an alias's history folder, oldest first.

    Raises:
        RegistryError: one is damaged.
    """
    return [_read_entry(history, number) for number in entry_numbers(history)]


def _read_entry(history: Path, number: int) -> AliasEntry:
    path = history / f"{number:08d}.json"
    try:
        with one_line_errors(f"{path} cannot be read"):
            return AliasEntry.model_validate_json(path.read_bytes())
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
                now = entry_now.version if entry_now else None
                if now != expect:
                    raise RegistryError(
                        f"alias {history.name!r} is {_named(now)}, expected {_named(expect)}: look again, then move it"
                    )
            if link_new(temporary, history / f"{number + 1:08d}.json"):
                break
        sync_folder(history)


def version_before(moves: Sequence[AliasEntry]) -> int | None:
    """The target of a rollback: the version chosen before the current one, None if there is none.

    A second rollback goes one further back, since a rollback is not a choice: after 1, 2, 3, back to 2 comes 1.
    """
    chosen: list[int] = []
    for entry in moves:
        if entry.rollback and entry.version in chosen:
            while chosen[-1] != entry.version:
                chosen.pop()
        elif chosen[-1:] != [entry.version]:
            chosen.append(entry.version)
    return chosen[-2] if len(chosen) > 1 else None


def link_new(temporary: Path, target: Path) -> bool:
    """Atomically give a finished file its final name; False if that name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.stat(temporary).st_nlink > 1  # NFS repeats a request whose reply was lost: the first one succeeded
    return True


def entry_numbers(history: Path) -> list[int]:
    """The numbers of a history's entries, ascending."""
    return sorted(int(match[1]) for entry in entries(history) if (match := _ENTRY.fullmatch(entry)))


def _last_number(history: Path) -> int:
    return max(entry_numbers(history), default=0)


def _named(version: int | Anything | None) -> str:
    return "not set" if version is None else f"v{version}"
