"""Digests of versions that were written down elsewhere: a version whose manifest was rewritten contradicts them.

Whoever rewrites a version's files and its manifest passes its own check. The digest of what stood there before is in
the history of each alias, in its children's manifests, in reviews, in W&B's notes and in the folders of runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from alignment.registry import aliases, reviews
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, read_entry
from alignment.registry.references import parse_reference
from alignment.registry.retention import read_manifests
from alignment.registry.store import Registry
from alignment.registry.trash import Key, version_ref
from alignment.registry.version import Version

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SHOWN = 3


@dataclass(frozen=True)
class Witness:
    """A record that `key` had `digest`; `where` names the file or version that has it."""

    key: Key
    digest: str
    where: str


def witness(ref: object, digest: object, where: str) -> Witness | None:
    """A record of a reference such as `name@v3` and its digest; None if they are something else."""
    if not isinstance(ref, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    try:
        reference = parse_reference(ref)
    except RegistryError:
        return None  # a model from elsewhere
    return Witness((reference.name, reference.number), digest, where) if reference.number else None


def witnesses(registry: Registry) -> Iterator[Witness]:
    """All such records in the registry. Those that cannot be read are left to `doctor`, which names them."""
    for key, manifest in read_manifests(registry, skip_damaged=True).items():
        for parent in [*manifest.parents, *([manifest.base] if manifest.base else [])]:
            if found := witness(parent.ref, parent.digest, f"{version_ref(key)}, which was made from it"):
                yield found
    for name in registry.names():
        yield from _of_aliases(registry, name)
        yield from _of_reviews(registry, name)
        yield from _of_mirror(registry, name)


def contradictions(version: Version, said: Iterable[Witness]) -> list[str]:
    """The records that contradict a version, as problems."""
    others: dict[str, list[str]] = {}
    for each in said:
        if each.key == (version.name, version.number) and each.digest != version.digest:
            others.setdefault(each.digest, []).append(each.where)
    return [
        f"it is not what was published, or the record is wrong: {digest} is what was recorded by "
        f"{', '.join(where[:_SHOWN])}{f' and {len(where) - _SHOWN} more' if len(where) > _SHOWN else ''}, "
        f"found {version.digest}"
        for digest, where in others.items()
    ]


def _of_aliases(registry: Registry, name: str) -> Iterator[Witness]:
    folder = registry.path / "models" / name / "aliases"
    for alias in aliases.alias_names(folder):
        for number in aliases.entry_numbers(folder / alias):
            try:
                entry = aliases.read_entry_of(folder / alias, number)
            except RegistryError:
                continue
            yield Witness((name, entry.version), entry.digest, f"alias {name}@{alias} (move {number})")


def _of_reviews(registry: Registry, name: str) -> Iterator[Witness]:
    for version in registry.numbers(name):
        for path, review in reviews.stored(registry.path, (name, version)):
            if review is not None and review.digest is not None:
                yield Witness((name, version), review.digest, f"the review {path.parent.name}/{path.name}")


def _of_mirror(registry: Registry, name: str) -> Iterator[Witness]:
    folder = registry.path / ".mirror" / name
    for file in entries(folder):
        try:
            note = json.loads(read_entry(folder / file))
        except (OSError, ValueError, RecursionError, RegistryError):
            continue
        digest = note.get("digest") if isinstance(note, dict) else None
        ref = f"{name}@v{file[1:].partition('.')[0].lstrip('0')}"
        if found := witness(ref, digest, "the note of what W&B was told"):
            yield found
