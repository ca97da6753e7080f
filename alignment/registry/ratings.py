"""The ratings behind a model, and the models that a labeler's ratings have reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from alignment.registry.errors import RegistryError
from alignment.registry.lineage import LineageNode, Tracer, walk
from alignment.registry.manifest import DataFingerprint
from alignment.registry.store import Registry

_RANGES = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?(,[0-9]{1,15}(-[0-9]{1,15})?)*")


@dataclass
class RatingSource:
    """One database, or file of ratings, behind a model, and its total use by the model's lineage."""

    name: str
    database: str | None
    """The database's id; None for a plain file, which its `sha256` identifies."""
    sha256: str | None
    ratings: int = 0
    """Number of distinct ratings."""
    items: int | None = None
    simulated: bool = False
    labelers: dict[str, int] | None = None
    """Number of ratings per labeler's hash; None if the labelers are unknown."""
    models: list[str] = field(default_factory=list)
    """The versions that were trained or evaluated on it."""


@dataclass(frozen=True)
class Reached:
    """A model that learned from a labeler's ratings, directly or through its ancestors."""

    ref: str
    digest: str
    stage: str
    ratings: int
    """Number of ratings that it learned from directly."""
    through: dict[str, int]
    """Number of ratings that each ancestor learned from, without ancestors that learned from none."""


def ratings_behind(root: LineageNode) -> list[RatingSource]:
    """The sources of ratings in a lineage, nearest first.

    Several rounds may use the same ratings of one database; each rating counts once, by its number.
    """
    sources: dict[tuple[str, str], RatingSource] = {}
    numbers: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for node in walk(iter([root])):
        for data in node.data:
            if not _holds_ratings(node, data):
                continue
            key = ("db", data.database) if data.database else ("file", data.sha256 or data.name)
            source = sources.setdefault(key, RatingSource(data.name, data.database, data.sha256))
            if node.ref not in source.models:
                source.models.append(node.ref)
            _add(source, node, data, numbers.setdefault(key, []))
    return list(sources.values())


def _holds_ratings(node: LineageNode, data: DataFingerprint) -> bool:
    learns = node.version is not None and node.version.manifest.stage == "reward"
    return data.ratings is not None or (learns and data.rows is not None)


def _add(source: RatingSource, node: LineageNode, data: DataFingerprint, numbers: list[tuple[int, int]]) -> None:
    source.simulated |= data.simulated
    if data.items is not None:
        source.items = max(source.items or 0, data.items)
    if data.labeler_hashes:
        source.labelers = source.labelers or {}
        for who, count in data.labeler_hashes.items():
            source.labelers[who] = max(count, source.labelers.get(who, 0))  # later rounds include the earlier ones
    if data.rating_ids and _RANGES.fullmatch(data.rating_ids):
        numbers += [_ends(part) for part in data.rating_ids.split(",")]
        source.ratings = _size(numbers)
    elif data.ratings is not None:
        source.ratings = max(source.ratings, data.ratings)
    else:
        parts = [part.rows or 0 for part in node.data if (part.name, part.sha256) == (data.name, data.sha256)]
        source.ratings = max(source.ratings, sum(parts))  # one file has a training and a held-out part


def _ends(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)


def _size(ranges: list[tuple[int, int]]) -> int:
    """The number of distinct integers in these ranges."""
    total, done = 0, -1
    for first, last in sorted(ranges):
        total += max(0, last - max(first, done + 1) + 1)
        done = max(done, last)
    return total


def reached_by(registry: Registry, labeler_hash: str) -> tuple[list[Reached], list[str]]:
    """The versions that learned from a labeler's ratings directly, then those that did through their ancestors.

    A version that was only evaluated on the ratings has not learned from them.

    Returns:
        These versions, and the versions whose manifest cannot be read, each with the reason.
    """
    reached, unreadable = [], []
    tracer = Tracer(registry.resolve)
    for ref in (f"{name}@v{number}" for name in registry.names() for number in registry.numbers(name)):
        try:
            version = registry.resolve(ref)
        except RegistryError as error:
            unreadable.append(f"{ref}: {error}")
            continue
        counts = {node.ref: _learned(labeler_hash, node) for node in walk(iter([tracer.root(version)]))}
        direct = counts.pop(ref)
        through = {parent: count for parent, count in sorted(counts.items()) if count}
        if direct or through:
            reached.append(Reached(ref, version.digest, version.manifest.stage, direct, through))
    return sorted(reached, key=lambda model: (not model.ratings, model.ref)), unreadable


def _learned(labeler_hash: str, node: LineageNode) -> int:
    return max((data.labeler_hashes.get(labeler_hash, 0) for data in node.data if data.use == "train"), default=0)
