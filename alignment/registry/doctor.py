"""Problems in a registry, each with its fix; the safe fixes can be applied at once."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alignment.files import file_kind, host_name, is_alive
from alignment.registry import aliases
from alignment.registry.errors import RegistryError
from alignment.registry.evaluations import EVALUATIONS, evaluations_of
from alignment.registry.files import entries, one_line_errors
from alignment.registry.layout import STAGING
from alignment.registry.references import NAME, VERSION, check_alias
from alignment.registry.reviews import REVIEWS, reviews_of
from alignment.registry.signatures import SIGNATURES
from alignment.registry.store import Registry
from alignment.registry.trash import (
    PROTECTED,
    REMOVED,
    TRASH,
    Key,
    delete_tree,
    drop_note,
    in_transit,
    noted,
    parents_of,
    restore_version,
    trash_items,
    version_folder,
    version_ref,
)
from alignment.registry.version import open_version

DAY = 24 * 3600
_WORK = re.compile(r"(?:purging-)?(.*)-([0-9]+)-[0-9a-f]{32}(?:\.json)?")
_VERSION = re.compile(VERSION)
_NOTE = re.compile(rf"{VERSION}\.json")

_HOLDS = {
    "aliases": (NAME, aliases.ENTRY),
    REVIEWS: (_VERSION, aliases.ENTRY),
    EVALUATIONS: (_VERSION, aliases.ENTRY),
    SIGNATURES: (_VERSION, aliases.ENTRY),
    REMOVED: (_NOTE,),
    PROTECTED: (_NOTE,),
}
"""The folders in a model's folder beside its versions, with the names that the entries of each have."""


@dataclass(frozen=True)
class RegistryProblem:
    """A problem. `kind` is one word or two; `repair` applies the fix if that loses nothing, else it is None."""

    kind: str
    where: str
    problem: str
    fix: str
    repair: Callable[[], object] | None = None


def examine(registry: Registry, *, hash_files: bool = True, cold: bool = False) -> Iterator[RegistryProblem]:
    """All problems; `hash_files` and `cold` as in Version.verify."""
    yield from _leftovers(registry.path)
    needed: dict[Key, Key] = {}
    for name in registry.names():
        for number in registry.numbers(name):
            yield from _version(registry, (name, number), hash_files, cold, needed)
        yield from _gaps(registry, name)
        yield from _aliases(registry, name)
    yield from _missing_parents(registry, needed)
    yield from _strangers(registry)


def fix_findings(findings: list[RegistryProblem]) -> list[RegistryProblem]:
    """Apply the safe fixes; returns the findings that were fixed.

    Raises:
        RegistryError: a fix failed.
    """
    fixed = []
    for finding in findings:
        if finding.repair:
            with one_line_errors(f"{finding.where} cannot be fixed"):
                finding.repair()
            fixed.append(finding)
    return fixed


def is_leftover(path: Path) -> bool:
    """Whether the job that made this is gone: its process on this host has ended, or nothing changed for a day."""
    match = _WORK.fullmatch(path.name)
    if match and match[1] == host_name() and not is_alive(int(match[2])):
        return True
    try:
        newest = max(os.lstat(place).st_mtime for place in [path, *path.rglob("*")])
    except OSError:  # another job is changing it, or there is no permission
        return False
    return time.time() - newest > DAY


def _leftovers(root: Path) -> Iterator[RegistryProblem]:
    purging = [TRASH + "/" + entry for entry in entries(root / TRASH) if entry.startswith("purging-")]
    for place in [*(f"{STAGING}/{entry}" for entry in entries(root / STAGING)), *purging]:
        path = root / place
        if is_leftover(path):
            what = "a job that is gone left it behind"
            yield RegistryProblem("leftover", place, what, f"remove {path}", partial(delete_tree, path))


def _version(
    registry: Registry, key: Key, hash_files: bool, cold: bool, needed: dict[Key, Key]
) -> Iterator[RegistryProblem]:
    try:
        version = open_version(version_folder(registry.path, key), *key)
        for parent in parents_of(version.manifest):
            needed.setdefault(parent, key)
        problems = version.problems(hash_files, cold)
        shared = version.shared_files()
        if problem := _first_error(reviews_of, registry, version):
            yield RegistryProblem("review", version_ref(key), problem, "move that file elsewhere and review it again")
        if problem := _first_error(evaluations_of, registry, version):
            yield RegistryProblem("evaluation", version_ref(key), problem, "move that file away and evaluate again")
    except RegistryError as error:
        if not version_folder(registry.path, key).exists():
            return  # removed since it was listed
        problems, shared = [str(error)], []
    remedy = f"publish it again, then alignment models delete {version_ref(key)}"
    for problem in problems:
        yield RegistryProblem("damaged version", version_ref(key), problem, remedy)
    for path in shared:
        problem = f"{path} has another hard link, through which it can be changed"
        yield RegistryProblem(
            "shared file", version_ref(key), problem, "remove the other link, or copy the file in its place"
        )


def _gaps(registry: Registry, name: str) -> Iterator[RegistryProblem]:
    numbers, removed = set(registry.numbers(name)), set(noted(registry.path, name, REMOVED))
    for first, last in _missing(numbers | removed):
        where = f"{name}@v{first}" + (f" to v{last}" if last > first else "")
        problem = "it is gone, and the registry did not remove it"
        fix = "restore its folder from a backup; its number stays unused"
        if last > first:
            problem = "they are gone, and the registry did not remove them"
            following = version_folder(registry.path, (name, last + 1))
            fix = f"restore their folders from a backup; or, if nobody made v{last + 1}, move {following} elsewhere"
        yield RegistryProblem("gap", where, problem, fix)
    for key in [(name, number) for number in sorted(numbers & removed)]:
        if in_transit(registry.path, key):
            continue
        number = key[1]
        problem = "it is noted as removed and still here: a removal was cut off"
        fix = f"delete models/{name}/{REMOVED}/v{number:06d}.json"
        yield RegistryProblem(
            "cut off", version_ref(key), problem, fix, partial(drop_note, registry.path, key, REMOVED)
        )


def _aliases(registry: Registry, name: str) -> Iterator[RegistryProblem]:
    folder = registry.path / "models" / name / "aliases"
    for alias in aliases.alias_names(folder):
        where, fix = f"{name}@{alias}", f"alignment models promote {name} {alias}, or rollback {name} {alias}"
        if not aliases.is_demoted(folder / alias) and (problem := _first_error(registry.resolve, where)):
            yield RegistryProblem("alias", where, problem, fix)
        elif problem := _first_error(aliases.read_history, folder / alias):
            yield RegistryProblem("alias", where, problem, "move that file elsewhere; the alias itself works")
        moves = aliases.entry_numbers(folder / alias)
        for first, last in _missing(set(moves)):
            following = folder / alias / f"{last + 1:08d}.json"
            problem = f"its history lacks move {first}"
            fix = "restore the file from a backup; the alias itself works"
            if last > first:
                problem = f"its history jumps from move {first - 1} to {last + 1}"
                fix = f"restore the files from a backup; or, if nobody made move {last + 1}, move {following} elsewhere"
            if last + 1 == aliases.LAST_ENTRY:
                problem += ", and nothing can follow"
                fix = f"move {following} elsewhere: the alias is then where move {first - 1} put it"
            yield RegistryProblem("alias", where, problem, fix)


def _first_error(work: Callable[..., object], *arguments: object) -> str | None:
    try:
        work(*arguments)
    except RegistryError as error:
        return str(error)
    return None


def _missing(numbers: set[int]) -> Iterator[tuple[int, int]]:
    """The ranges (first, last) of numbers that lack below the highest one."""
    before = 0
    for number in sorted(numbers):
        if number > before + 1:
            yield before + 1, number - 1
        before = number


def _missing_parents(registry: Registry, needed: dict[Key, Key]) -> Iterator[RegistryProblem]:
    trash = {item.key for item in trash_items(registry.path)}
    for parent, child in sorted(needed.items()):
        if version_folder(registry.path, parent).exists():
            continue
        problem = f"{version_ref(child)} was made from it"
        if parent in trash:
            fix = f"alignment models restore {version_ref(parent)}"
            repair = partial(restore_version, registry.path, parent)
            yield RegistryProblem(
                "in the trash", version_ref(parent), f"{problem}, and it is in the trash", fix, repair
            )
        elif registry.numbers(parent[0]):
            yield RegistryProblem(
                "missing", version_ref(parent), f"{problem}, and it is gone", "restore it from a backup"
            )


def _strangers(registry: Registry) -> Iterator[RegistryProblem]:
    """Files and folders that do not belong to a registry, and FIFOs, devices and links in the place of those that do.

    The files of a version are left to `Version.problems`.
    """
    models = registry.path / "models"
    if models.is_symlink():
        yield _stray(models, "a link, which can lead anywhere", "models")
    for entry in entries(registry.path / TRASH):
        path = registry.path / TRASH / entry
        if (kind := _kind(path)) not in ("a folder", "gone") and not entry.startswith("purging-"):
            yield _stray(path, f"it is {kind} in the place of a removed version", f"{TRASH}/{entry}")
    for name in entries(models):
        folder = models / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            yield _stray(folder, "it is no model's folder", f"models/{name}")
            continue
        if folder.is_symlink():
            yield _stray(folder, "it is a symbolic link, which can lead out of the registry", f"models/{name}")
        for entry in entries(folder):
            yield from _entry(folder / entry, f"models/{name}/{entry}")


def _entry(path: Path, where: str) -> Iterator[RegistryProblem]:
    """What is wrong with an entry of a model's folder."""
    if holds := _HOLDS.get(path.name):
        if (kind := _kind(path)) != "a folder":
            yield _stray(path, f"it is {kind} in the place of a folder", where)
        else:
            yield from _kept(path, where, holds)
    elif not _VERSION.fullmatch(path.name):
        yield _stray(path, "it is no part of a registry", where)


def _kept(folder: Path, where: str, holds: tuple[re.Pattern[str], ...]) -> Iterator[RegistryProblem]:
    """What is wrong below a folder of notes or histories; `holds` has the names of its files, or folders and files."""
    named, *below = holds
    for entry in entries(folder):
        path, place = folder / entry, f"{where}/{entry}"
        kind = _kind(path)
        if not named.fullmatch(entry):
            yield _stray(path, "no reader looks at it", place)
        elif kind != ("a folder" if below else "a file"):
            yield _stray(path, f"it is {kind} in the place of {'a folder' if below else 'a file'}", place)
        elif below:
            yield from _kept(path, place, tuple(below))
        if folder.name == "aliases" and _means_a_version(entry):
            yield _stray(path, "an alias cannot have this name, which already means a version", place)


def _kind(path: Path) -> str:
    try:
        return file_kind(os.lstat(path))
    except FileNotFoundError:
        return "gone"


def _means_a_version(alias: str) -> bool:
    try:
        check_alias(alias)
    except RegistryError:
        return NAME.fullmatch(alias) is not None
    return False


def _stray(path: Path, problem: str, where: str) -> RegistryProblem:
    return RegistryProblem("stray", where, problem, f"move {path} elsewhere")
