"""Accuracy by properties of pairs and votes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.data.records import Vote
from alignment.intervals import Estimate
from reward.evaluation.judged import RESAMPLES, ScoredPair, accuracy

_MOST = 20
_STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}
_LENGTHS = ("the longer one", "the shorter one", "both as long")


def slices(pairs: Sequence[ScoredPair]) -> dict[str, list[dict[str, Any]]]:
    """Accuracy by properties of pairs and votes."""
    return {
        "difference": _by_difference(pairs),
        "strength": _by_vote(pairs, lambda pair, vote: vote.strength, lambda key: _STRENGTHS.get(key, "not asked")),
        "labeler": _by_vote(
            pairs, lambda pair, vote: vote.labeler, lambda key: "not named" if key is None else str(key)
        ),
        "source": _by_pair(pairs, lambda pair: source_of(pair.comparison.place), _source_names(pairs)),
        "size": _by_pair(pairs, lambda pair: pair.comparison.size, lambda key: f"{key} answers"),
        "length": _by_vote(pairs, _length_preferred, _LENGTHS.__getitem__),
    }


def _by_difference(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Accuracy in fifths of the pairs by score difference (fewer parts if there are fewer than 50 pairs)."""
    by_size = sorted(pairs, key=lambda pair: abs(pair.delta))
    parts = max(1, min(5, len(pairs) // 10))
    rows = []
    for part in range(parts):
        inside = by_size[len(pairs) * part // parts : len(pairs) * (part + 1) // parts]
        low, high = abs(inside[0].delta), abs(inside[-1].delta)
        rows += _named(f"{low:.2g} to {high:.2g}", accuracy(inside, RESAMPLES), low=low, high=high)
    return rows


def _by_pair(
    pairs: Sequence[ScoredPair], key: Callable[[ScoredPair], Any], name: Callable[[Any], str]
) -> list[dict[str, Any]]:
    parts: dict[Any, list[ScoredPair]] = {}
    for pair in pairs:
        parts.setdefault(key(pair), []).append(pair)
    return _largest({name(part): inside for part, inside in sorted(parts.items())})


def _by_vote(
    pairs: Sequence[ScoredPair], key: Callable[[ScoredPair, Vote], Any], name: Callable[[Any], str]
) -> list[dict[str, Any]]:
    """Accuracy on groups of votes with the same key; ties do not count."""
    parts: dict[Any, list[ScoredPair]] = {}
    for pair in pairs:
        votes: dict[Any, list[Vote]] = {}
        for vote in pair.comparison.votes:
            votes.setdefault(key(pair, vote), []).append(vote)
        for part, part_votes in votes.items():
            parts.setdefault(part, []).append(
                replace(pair, comparison=replace(pair.comparison, votes=tuple(part_votes)))
            )
    ordered = sorted(parts, key=lambda part: (part is None, part))
    return _largest({name(part): parts[part] for part in ordered})


def _length_preferred(pair: ScoredPair, vote: Vote) -> int:
    """0 if a vote is for the longer answer, 1 for the shorter, 2 for equal lengths."""
    first, second = pair.lengths if vote.choice == "first" else pair.lengths[::-1]
    return 0 if first > second else 1 if first < second else 2


def _largest(parts: Mapping[str, Sequence[ScoredPair]]) -> list[dict[str, Any]]:
    """Accuracy of each part, in the given order; at most the twenty largest, and one row for the rest."""
    sizes = Counter({name: len(inside) for name, inside in parts.items()})
    shown = {name for name, _ in sizes.most_common(_MOST)}
    rows = [row for name, inside in parts.items() if name in shown for row in _named(name, accuracy(inside, RESAMPLES))]
    rest = [pair for name, inside in parts.items() if name not in shown for pair in inside]
    return rows + (_named(f"{len(parts) - len(shown)} others", accuracy(rest, RESAMPLES)) if rest else [])


def _named(name: str, estimate: Estimate | None, **more: float) -> list[dict[str, Any]]:
    return [] if estimate is None else [{"name": name, **estimate, **more}]


def source_of(place: str) -> str:
    """The file of a `file:line` or `file:item number`."""
    return place.rpartition(":")[0] or place


def _source_names(pairs: Sequence[ScoredPair]) -> Callable[[str], str]:
    """A function that returns file names without their folders, if these are unique."""
    paths = {source_of(pair.comparison.place) for pair in pairs}
    short = {path: os.path.basename(path) or "not named" for path in paths}
    return (lambda path: short[path]) if len(set(short.values())) == len(paths) else (lambda path: path)
