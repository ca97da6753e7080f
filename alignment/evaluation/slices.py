"""Slices of the prompts by a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.evaluation.judgments import AnsweredPrompts

MOST_SLICES = 12
"""Values of a column that are shown; the rest is one slice."""
OTHER = "(other)"


def by_slice(contest: AnsweredPrompts, keys: Sequence[str], column: str) -> dict[str, list[str]]:
    """These prompts by the value of a column, the most frequent first; a prompt that comes twice stands twice."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        parts.setdefault(slice_value(contest.prompts[key].columns.get(column)), []).append(key)
    ordered = sorted(parts, key=lambda value: (-len(parts[value]), value))
    shown = ordered if len(ordered) <= MOST_SLICES else ordered[: MOST_SLICES - 1]
    found = {value: parts[value] for value in shown}
    if rest := [key for value in ordered[len(shown) :] for key in parts[value]]:
        found[OTHER] = rest
    return found


def slice_value(value: Any) -> str:
    """A cell as the name of a slice."""
    return "(none)" if value is None or value == "" else str(value)
