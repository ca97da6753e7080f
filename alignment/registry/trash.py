"""Removed versions: one rename into .trash, from which they can come back until they are purged.

    .trash/NAME@v000003@1764160000          removed at that time (seconds since 1970)
    models/NAME/removed/v000003.json        when, by whom and why; its number is never used again
    models/NAME/protected/v000004.json      must not be removed

A version may be taken as a parent, or given an alias, at the moment it is removed. So whoever adds such a use looks
afterwards whether the version is still there (`keep_alive`), and whoever removes looks for uses afterwards: whatever
the order, one of the two sees the other and takes the version back.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from alignment.files import host_name, sync_folder
from alignment.registry.aliases import link_new
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, make_folder, one_line_errors, passing_file, work_name
from alignment.registry.manifest import Manifest
from alignment.registry.references import NAME, parse_reference
from alignment.registry.version import open_version

Key = tuple[str, int]
"""A version: its name and number."""

TRASH = ".trash"
REMOVED = "removed"
PROTECTED = "protected"
_ITEM = re.compile(rf"({NAME.pattern})@v([0-9]{{6,}})@([0-9]+)")
_NOTE = re.compile(r"v([0-9]{6,})\.json")


@dataclass(frozen=True)
class TrashItem:
    """A removed version: `at` in seconds since 1970."""

    name: str
    number: int
    at: int
    path: Path

    @property
    def key(self) -> Key:
        """The version that it was."""
        return self.name, self.number


def spoken(key: Key) -> str:
    """`name@v3`."""
    return f"{key[0]}@v{key[1]}"


def version_folder(root: Path, key: Key) -> Path:
    """Where a version is, or would be."""
    return root / "models" / key[0] / f"v{key[1]:06d}"


def parents_of(manifest: Manifest) -> Iterator[Key]:
    """The parents and the base that are named by number, as all of this registry's are."""
    for parent in [*manifest.parents, *([manifest.base] if manifest.base else [])]:
        try:
            reference = parse_reference(parent.ref)
        except RegistryError:
            continue  # a model from elsewhere
        if reference.number:
            yield reference.name, reference.number


def trash_items(root: Path) -> list[TrashItem]:
    """What is in the trash."""
    found = ((_ITEM.fullmatch(entry), root / TRASH / entry) for entry in entries(root / TRASH))
    return [TrashItem(match[1], int(match[2]), int(match[3]), path) for match, path in found if match]


def move_to_trash(root: Path, key: Key, why: str) -> bool:
    """Remove a version, with a note that says why; False if it is gone already."""
    with one_line_errors(f"{spoken(key)} cannot be removed from {root}"):
        make_folder(root / TRASH)
        write_note(root, key, REMOVED, why)  # first: a gap without a note would look like damage
        try:
            os.rename(version_folder(root, key), root / TRASH / f"{key[0]}@v{key[1]:06d}@{int(time.time())}")
        except FileNotFoundError:
            return False
        sync_folder(root / "models" / key[0])
        sync_folder(root / TRASH)
    return True


def take_back(root: Path, key: Key) -> bool:
    """Put a removed version back where it was; False if it is not in the trash."""
    target = version_folder(root, key)
    with one_line_errors(f"{spoken(key)} cannot be taken out of the trash of {root}"):
        for item in trash_items(root):
            if item.key != key:
                continue
            try:
                os.rename(item.path, target)
            except FileNotFoundError:  # somebody else took it back, or it is being purged
                continue
            sync_folder(target.parent)
            drop_note(root, key, REMOVED)
            return True
    return False


def keep_alive(root: Path, keys: Iterable[Key]) -> list[Key]:
    """Take back those of these versions that are in the trash, and their ancestors; returns what came back."""
    waiting, back = list(keys), []
    while waiting:
        key = waiting.pop()
        folder = version_folder(root, key)
        if folder.exists() or not take_back(root, key):
            continue
        back.append(key)
        try:
            waiting += parents_of(open_version(folder, *key).manifest)
        except RegistryError:
            continue  # damaged: what it was made from is not known
    return back


def purge(item: TrashItem) -> None:
    """Delete a removed version for good."""
    with one_line_errors(f"{item.path} cannot be purged"):
        doomed = item.path.with_name(f"purging-{work_name()}")
        try:
            os.rename(item.path, doomed)  # first: what is half deleted must not be taken back
        except FileNotFoundError:
            return
        delete_tree(doomed)


def delete_tree(path: Path) -> None:
    """Delete a folder or a file; a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mover() -> str:
    """Who does this: user@host."""
    try:
        return f"{getpass.getuser()}@{host_name()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"{os.getuid()}@{host_name()}"


def write_note(root: Path, key: Key, kind: str, why: str) -> bool:
    """Note that a version is REMOVED or PROTECTED; False if that is noted already."""
    folder = root / "models" / key[0] / kind
    make_folder(folder)
    make_folder(root / ".staging")
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": mover(), "why": why}
    with passing_file(root / ".staging", json.dumps(note).encode() + b"\n") as temporary:
        new = link_new(temporary, folder / f"v{key[1]:06d}.json")
    sync_folder(folder)
    return new


def drop_note(root: Path, key: Key, kind: str) -> bool:
    """Take such a note away; False if there is none."""
    try:
        (root / "models" / key[0] / kind / f"v{key[1]:06d}.json").unlink()
    except FileNotFoundError:
        return False
    return True


def noted(root: Path, name: str, kind: str) -> list[int]:
    """The versions of a name with such a note."""
    found = map(_NOTE.fullmatch, entries(root / "models" / name / kind))
    return [int(match[1]) for match in found if match]
