"""Which ratings stand behind a model, and which models a labeler's ratings have reached."""

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
    """One database, or file of judgements, behind a model, with all that its versions together took from it."""

    name: str
    database: str | None
    """The database's own id; None for a plain file, whose `sha256` tells it."""
    sha256: str | None
    ratings: int = 0
    """Different ratings; of a plain file the judgements in it."""
    items: int | None = None
    simulated: bool = False
    labelers: dict[str, int] | None = None
    """Ratings by hash of the labeler; None where nobody wrote down who rated."""
    models: list[str] = field(default_factory=list)
    """The versions that learned from it or were judged on it."""


@dataclass(frozen=True)
class Reached:
    """A model that learned from a labeler's ratings, by itself or through those that it was made with."""

    ref: str
    digest: str
    stage: str
    ratings: int
    """How many it learned from itself."""
    through: dict[str, int]
    """How many each of its ancestors did; those alone that did."""


def ratings_behind(root: LineageNode) -> list[RatingSource]:
    """The sources of ratings in a lineage, nearest first.

    Several rounds take more and more of one database: each rating counts once, by its number.
    """
    found: dict[tuple[str, str], RatingSource] = {}
    numbers: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for node in walk(iter([root])):
        for data in node.data:
            if not _holds_ratings(node, data):
                continue
            key = ("db", data.database) if data.database else ("file", data.sha256 or data.name)
            source = found.setdefault(key, RatingSource(data.name, data.database, data.sha256))
            if node.ref not in source.models:
                source.models.append(node.ref)
            _add(source, node, data, numbers.setdefault(key, []))
    return list(found.values())


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
            source.labelers[who] = max(count, source.labelers.get(who, 0))  # later rounds hold the earlier ones
    if data.rating_ids and _RANGES.fullmatch(data.rating_ids):
        numbers += [_ends(part) for part in data.rating_ids.split(",")]
        source.ratings = _size(numbers)
    elif data.ratings is not None:
        source.ratings = max(source.ratings, data.ratings)
    else:
        parts = [part.rows or 0 for part in node.data if (part.name, part.sha256) == (data.name, data.sha256)]
        source.ratings = max(source.ratings, sum(parts))  # the training and the held-out part of one file


def _ends(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)


def _size(ranges: list[tuple[int, int]]) -> int:
    """How many different numbers are in these ranges."""
    total, done = 0, -1
    for first, last in sorted(ranges):
        total += max(0, last - max(first, done + 1) + 1)
        done = max(done, last)
    return total


def reached_by(registry: Registry, labeler_hash: str) -> tuple[list[Reached], list[str]]:
    """The versions that learned from a labeler's ratings, directly first, and all that were made with those. One that
    was only judged on the ratings has not learned from them.

    Returns:
        Them; and the versions whose manifest cannot be read, each with the reason, of which nobody knows.
    """
    found, unreadable = [], []
    tracer = Tracer(registry.resolve)
    for ref in (f"{name}@v{number}" for name in registry.names() for number in registry.numbers(name)):
        try:
            version = registry.resolve(ref)
        except RegistryError as error:
            unreadable.append(f"{ref}: {error}")
            continue
        counts = {node.ref: _learned(labeler_hash, node) for node in walk(iter([tracer.root(version)]))}
        own = counts.pop(ref)
        through = {parent: count for parent, count in sorted(counts.items()) if count}
        if own or through:
            found.append(Reached(ref, version.digest, version.manifest.stage, own, through))
    return sorted(found, key=lambda each: (not each.ratings, each.ref)), unreadable


def _learned(labeler_hash: str, node: LineageNode) -> int:
    return max((data.labeler_hashes.get(labeler_hash, 0) for data in node.data if data.use == "train"), default=0)
