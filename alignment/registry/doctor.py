"""Problems in a registry, each with its fix; the safe fixes can be applied at once."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alignment.files import host_name, is_alive
from alignment.registry import aliases
from alignment.registry.errors import RegistryError
from alignment.registry.evaluations import EVALUATIONS
from alignment.registry.files import entries, one_line_errors
from alignment.registry.layout import STAGING
from alignment.registry.references import NAME
from alignment.registry.reviews import REVIEWS
from alignment.registry.store import Registry
from alignment.registry.trash import (
    PROTECTED,
    REMOVED,
    TRASH,
    Key,
    delete_tree,
    drop_note,
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
_VERSION = re.compile(r"v[0-9]{6,}")


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
    for number in sorted(set(range(1, max(numbers))) - numbers - removed):
        problem = "it is gone, and the registry did not remove it"
        yield RegistryProblem(
            "gap", f"{name}@v{number}", problem, "restore its folder from a backup; its number stays unused"
        )
    for number in sorted(numbers & removed):
        key = (name, number)
        problem = "it is noted as removed and still here: a removal was cut off"
        fix = f"delete models/{name}/{REMOVED}/v{number:06d}.json"
        yield RegistryProblem(
            "cut off", version_ref(key), problem, fix, partial(drop_note, registry.path, key, REMOVED)
        )


def _aliases(registry: Registry, name: str) -> Iterator[RegistryProblem]:
    folder = registry.path / "models" / name / "aliases"
    for alias in aliases.alias_names(folder):
        where, fix = f"{name}@{alias}", f"alignment models promote {name} {alias}, or rollback {name} {alias}"
        try:
            registry.resolve(where)
        except RegistryError as error:
            yield RegistryProblem("alias", where, str(error), fix)
        moves = aliases.entry_numbers(folder / alias)
        if missing := sorted(set(range(1, moves[-1])) - set(moves)):
            problem = f"its history lacks move {missing[0]}"
            yield RegistryProblem("alias", where, problem, "restore the file from a backup; the alias itself works")


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
    """Files and folders that do not belong to a registry."""
    known = {"aliases", REMOVED, PROTECTED, REVIEWS, EVALUATIONS}
    models = registry.path / "models"
    for name in entries(models):
        if not NAME.fullmatch(name) or not (models / name).is_dir():
            yield RegistryProblem(
                "stray", f"models/{name}", "it is no model's folder", f"move {models / name} elsewhere"
            )
            continue
        for entry in entries(models / name):
            if entry not in known and not _VERSION.fullmatch(entry):
                problem = "it is no part of a registry"
                yield RegistryProblem(
                    "stray", f"models/{name}/{entry}", problem, f"move {models / name / entry} elsewhere"
                )
