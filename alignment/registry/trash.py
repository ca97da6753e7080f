"""Removed versions: one rename moves them into .trash, and they can be restored until they are purged.

    .trash/NAME@v000003@1764160000          removed at that time (seconds since 1970)
    models/NAME/removed/v000003.json        when, by whom and why; its number is never reused
    models/NAME/protected/v000004.json      must not be removed

A version may become a parent, or get an alias, at the moment it is removed. So a job that adds such a use checks
afterwards that the version is still there (`restore_used`), and a job that removes a version checks afterwards for
uses. In any order, one of the two sees the other and restores the version.

A folder whose number is noted as removed is in transit: it was restored and its note is about to go, or a slow job has
published to the free number and is about to take its folder back. Whoever moved it once more then would free a number
that has no note, and the next publish would take it. So nobody does, until it has stood there for an hour and the job
was evidently killed.
"""

from __future__ import annotations

import errno
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
from alignment.registry.layout import STAGING
from alignment.registry.manifest import Manifest
from alignment.registry.references import NAME, VERSION, parse_reference
from alignment.registry.version import open_version

Key = tuple[str, int]
"""A version: its name and number."""

TRASH = ".trash"
TRANSIT_SECONDS = 3600.0
"""How long a folder whose number is noted as removed counts as in transit."""
REMOVED = "removed"
PROTECTED = "protected"
_ITEM = re.compile(rf"({NAME.pattern})@{VERSION}@([0-9]{{1,15}})")
_NOTE = re.compile(rf"{VERSION}\.json")


@dataclass(frozen=True)
class TrashItem:
    """A removed version; `at` is in seconds since 1970."""

    name: str
    number: int
    at: int
    path: Path

    @property
    def key(self) -> Key:
        """The version's name and number."""
        return self.name, self.number


def version_ref(key: Key) -> str:
    """The version's reference, such as `name@v3`."""
    return f"{key[0]}@v{key[1]}"


def version_folder(root: Path, key: Key) -> Path:
    """The folder that a version has or would have."""
    return root / "models" / key[0] / f"v{key[1]:06d}"


def parents_of(manifest: Manifest) -> Iterator[Key]:
    """The parents and the base that are pinned to a number, as all models of this registry are."""
    for parent in [*manifest.parents, *([manifest.base] if manifest.base else [])]:
        try:
            reference = parse_reference(parent.ref)
        except RegistryError:
            continue  # a model from elsewhere
        if reference.number:
            yield reference.name, reference.number


def trash_items(root: Path) -> list[TrashItem]:
    """The removed versions in the trash."""
    matches = ((_ITEM.fullmatch(entry), root / TRASH / entry) for entry in entries(root / TRASH))
    found = [TrashItem(match[1], int(match[2]), int(match[3]), path) for match, path in matches if match]
    return [item for item in found if item.path.is_dir() and not item.path.is_symlink()]


def move_to_trash(root: Path, key: Key, why: str) -> bool:
    """Move a version to the trash, with a note of the reason; False if it is gone already, or in transit."""
    with one_line_errors(f"{version_ref(key)} cannot be removed from {root}"):
        make_folder(root / TRASH)
        # The note comes first: a gap without one would look like damage.
        if not write_note(root, key, REMOVED, why) and in_transit(root, key):
            return False
        try:
            os.rename(version_folder(root, key), root / TRASH / f"{key[0]}@v{key[1]:06d}@{int(time.time())}")
        except FileNotFoundError:
            return False
        sync_folder(root / "models" / key[0])
        sync_folder(root / TRASH)
    return True


def restore_version(root: Path, key: Key) -> bool:
    """Move a removed version back to its place; False if it is not in the trash."""
    target = version_folder(root, key)
    with one_line_errors(f"{version_ref(key)} cannot be taken out of the trash of {root}"):
        for item in trash_items(root):
            if item.key != key:
                continue
            try:
                _rename_onto_nothing(item.path, target)
            except FileNotFoundError:  # another job restored it, or it is being purged
                continue
            sync_folder(target.parent)
            drop_note(root, key, REMOVED)
            return True
    return False


def _rename_onto_nothing(old: Path, new: Path) -> None:
    """Rename a folder; wait for a slow job that has published there and is about to take its folder back."""
    for _ in range(100):
        try:
            os.rename(old, new)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        time.sleep(0.01)
    os.rename(old, new)


def in_transit(root: Path, key: Key) -> bool:
    """Whether a folder that is noted as removed has come to its place just now, so that its note is about to go."""
    try:
        came = os.stat(version_folder(root, key)).st_ctime
    except FileNotFoundError:
        return False
    return filesystem_now(root) - came < TRANSIT_SECONDS


def filesystem_now(root: Path) -> float:
    """The earlier of this clock and the filesystem's: a clock that runs ahead would make everything old."""
    make_folder(root / STAGING)
    with passing_file(root / STAGING, b"{}\n") as probe:
        return min(time.time(), os.stat(probe).st_mtime)


def restore_used(root: Path, keys: Iterable[Key]) -> list[Key]:
    """Restore those of these versions that are in the trash, and their ancestors; returns the restored ones."""
    waiting, restored = list(keys), []
    while waiting:
        key = waiting.pop()
        folder = version_folder(root, key)
        for _ in range(50):  # a slow job may stand there for a moment
            if not folder.exists() or key[1] not in noted(root, key[0], REMOVED) or not in_transit(root, key):
                break
            time.sleep(0.01)
        if folder.exists() or not restore_version(root, key):
            continue
        restored.append(key)
        try:
            waiting += parents_of(open_version(folder, *key).manifest)
        except RegistryError:
            continue  # the parents of a damaged version are unknown
    return restored


def purge(item: TrashItem) -> None:
    """Delete a removed version permanently."""
    with one_line_errors(f"{item.path} cannot be purged"):
        doomed = item.path.with_name(f"purging-{work_name()}")
        try:
            os.rename(item.path, doomed)  # a half-deleted version must not be restored
        except FileNotFoundError:
            return
        delete_tree(doomed)


def delete_tree(path: Path) -> None:
    """Delete a folder or a file; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def user_at_host() -> str:
    """The current user and host, as user@host."""
    try:
        return f"{getpass.getuser()}@{host_name()}"
    except (KeyError, OSError):  # a container's user may have no name
        return f"{os.getuid()}@{host_name()}"


def write_note(root: Path, key: Key, kind: str, why: str) -> bool:
    """Mark a version as REMOVED or PROTECTED; False if it is marked already."""
    folder = root / "models" / key[0] / kind
    make_folder(folder)
    make_folder(root / STAGING)
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": user_at_host(), "why": why}
    with passing_file(root / STAGING, json.dumps(note).encode() + b"\n") as temporary:
        new = link_new(temporary, folder / f"v{key[1]:06d}.json")
    sync_folder(folder)
    return new


def drop_note(root: Path, key: Key, kind: str) -> bool:
    """Remove such a mark; False if there is none."""
    path = root / "models" / key[0] / kind / f"v{key[1]:06d}.json"
    with one_line_errors(f"the mark of {version_ref(key)} cannot be removed"):
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def noted(root: Path, name: str, kind: str) -> list[int]:
    """The numbers of a name's versions with such a mark."""
    matches = map(_NOTE.fullmatch, entries(root / "models" / name / kind))
    return [int(match[1]) for match in matches if match]
