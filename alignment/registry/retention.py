"""Garbage collection of versions: mark those to keep, move the rest to the trash, and purge old trash.

Kept are: the target of each alias and the `keep` versions it pointed to before; protected versions; the newest of each
name, so that the highest number stays known and none is reused; versions younger than `grace`, since a job may have
started from them; and the ancestors of all these, an adapter's base among them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from alignment.registry import aliases
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, one_line_errors
from alignment.registry.manifest import Manifest
from alignment.registry.store import Registry
from alignment.registry.trash import (
    PROTECTED,
    Key,
    TrashItem,
    filesystem_now,
    move_to_trash,
    noted,
    parents_of,
    purge,
    restore_used,
    trash_items,
    version_folder,
    version_ref,
    write_note,
)
from alignment.registry.version import open_version

WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class CollectionPlan:
    """A collection's plan: `kept` maps versions to reasons; `removed` has children before their parents."""

    kept: dict[Key, str]
    removed: list[Key]
    purged: list[TrashItem]
    returned: list[Key]
    """Versions in the trash that a kept version needs."""


def collect(
    registry: Registry, *, keep: int = 2, grace: float = WEEK, purge_after: float = WEEK, delete: bool = False
) -> CollectionPlan:
    """Plan a collection and, with `delete`, carry it out. Ages are in seconds.

    Raises:
        RegistryError: a version's parents are unknown because it cannot be read; nothing is removed then.
    """
    root = registry.path
    if not entries(root / "models"):
        return CollectionPlan({}, [], [], [])
    now = time.time()
    if delete:
        with one_line_errors(f"{root} cannot be cleaned up"):
            now = filesystem_now(root)
    manifests = read_manifests(registry)
    kept = mark(registry, manifests, keep=keep, grace=grace, now=now)
    removed = _children_first({key: manifest for key, manifest in manifests.items() if key not in kept})
    if not delete:
        needed = {key for manifest in manifests.values() for key in parents_of(manifest)}
        items = trash_items(root)
        returned = [item.key for item in items if item.key in needed]
        purged = [item for item in items if now - item.at >= purge_after and item.key not in needed]
        return CollectionPlan(kept, removed, purged, returned)
    removed = [key for key in removed if move_to_trash(root, key, "gc")]
    returned = restore_used(root, _uses(registry))  # a job may have taken one of them as a parent meanwhile
    purged = [item for item in trash_items(root) if now - item.at >= purge_after]
    for item in purged:
        purge(item)
    return CollectionPlan(kept, [key for key in removed if key not in returned], purged, returned)


def mark(registry: Registry, manifests: dict[Key, Manifest], *, keep: int, grace: float, now: float) -> dict[Key, str]:
    """The versions that stay, each with its reason."""
    kept: dict[Key, str] = {}
    for name in {name for name, _ in manifests}:
        folder = registry.path / "models" / name / "aliases"
        for alias in aliases.alias_names(folder):
            moves = aliases.read_history(folder / alias)
            chosen = list(dict.fromkeys(entry.version for entry in reversed(moves)))
            if not moves[-1].demoted:
                kept.setdefault((name, chosen.pop(0)), f"alias {alias}")
            for number in chosen[:keep]:
                kept.setdefault((name, number), f"alias {alias} pointed to it before")
        for number in noted(registry.path, name, PROTECTED):
            kept.setdefault((name, number), "protected")
        kept.setdefault((name, max(registry.numbers(name))), "the newest")
    for key, manifest in manifests.items():
        # The folder's time counts too, since the publisher's clock may have been wrong.
        if now - max(manifest.created_at.timestamp(), _changed(registry.path, key)) < grace:
            kept.setdefault(key, "younger than the grace period")
    waiting = list(kept)
    while waiting:
        child = waiting.pop()
        for parent in parents_of(manifests[child]) if child in manifests else ():
            if parent not in kept:
                kept[parent] = f"parent of {version_ref(child)}"
                waiting.append(parent)
    return {key: why for key, why in kept.items() if key in manifests}


def remove(registry: Registry, ref: str) -> Key:
    """Move one version to the trash.

    Raises:
        RegistryError: an alias points to it, another version was made from it, it is protected, or the newest.
    """
    key = registry.locate(ref)
    name, number = key
    pointing = [alias for alias, target in registry.aliases(name).items() if target == number]
    if pointing:
        fix = f"move the alias first: alignment models promote {name}@vN {pointing[0]}"
        raise RegistryError(f"{version_ref(key)} is not deleted: alias {pointing[0]!r} points to it; {fix}")
    children = [
        child for child, manifest in read_manifests(registry, skip_damaged=True).items() if key in parents_of(manifest)
    ]
    if children:
        more = f" and {len(children) - 1} more" if len(children) > 1 else ""
        raise RegistryError(
            f"{version_ref(key)} is not deleted: {version_ref(children[0])}{more} was made from it; delete that first"
        )
    if number in noted(registry.path, name, PROTECTED):
        raise RegistryError(f"{version_ref(key)} is not deleted: it is protected; alignment models unprotect it first")
    if number == max(registry.numbers(name)):
        raise RegistryError(
            f"{version_ref(key)} is not deleted: it is the newest, which fixes the next number; publish another first"
        )
    if not move_to_trash(registry.path, key, "deleted"):
        raise RegistryError(f"{version_ref(key)} is not deleted: another job is moving it; look again in a minute")
    if restore_used(registry.path, _uses(registry) & {key}):
        raise RegistryError(f"{version_ref(key)} is not deleted: another job began to use it just now; look again")
    return key


def protect(registry: Registry, ref: str, why: str = "") -> Key:
    """Keep a version from being removed, until it is unprotected."""
    key = registry.locate(ref)
    with one_line_errors(f"{version_ref(key)} cannot be protected in {registry.path}"):
        write_note(registry.path, key, PROTECTED, why)
        restore_used(registry.path, [key])
    return key


def read_manifests(registry: Registry, skip_damaged: bool = False) -> dict[Key, Manifest]:
    """Every version's manifest.

    Args:
        skip_damaged: skip damaged ones.

    Raises:
        RegistryError: one is damaged.
    """
    manifests = {}
    for key in [(name, number) for name in registry.names() for number in registry.numbers(name)]:
        folder = version_folder(registry.path, key)
        try:
            manifests[key] = open_version(folder, *key).manifest
        except RegistryError as error:
            if folder.exists() and not skip_damaged:  # otherwise it was removed after it was listed
                raise RegistryError(
                    f"nothing is removed: what {version_ref(key)} was made from is not known ({error}); "
                    f"publish it again, then alignment models delete {version_ref(key)}"
                ) from None
    return manifests


def _uses(registry: Registry) -> set[Key]:
    """Every version that is a parent, has an alias, or is protected."""
    used = {key for manifest in read_manifests(registry, skip_damaged=True).values() for key in parents_of(manifest)}
    for name in registry.names():
        used |= {(name, number) for number in registry.aliases(name).values()}
        used |= {(name, number) for number in noted(registry.path, name, PROTECTED)}
    return used


def _children_first(manifests: dict[Key, Manifest]) -> list[Key]:
    """Order versions so that a removal that is killed half-way leaves no version without its parents."""
    order: dict[Key, None] = {}
    waiting = sorted(manifests, reverse=True)
    children: dict[Key, list[Key]] = {}
    for child in waiting:
        for parent in parents_of(manifests[child]):
            children.setdefault(parent, []).append(child)
    while waiting:
        key = waiting[-1]
        open_children = [child for child in children.pop(key, []) if child not in order and child in manifests]
        if open_children:
            waiting += open_children
        else:
            order.setdefault(waiting.pop())
    return list(order)


def _changed(root: Path, key: Key) -> float:
    try:
        return os.stat(version_folder(root, key)).st_mtime
    except FileNotFoundError:
        return 0.0
