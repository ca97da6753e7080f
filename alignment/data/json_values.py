"""Parse JSON rows strictly: a key that stands twice in an object would lose one of its values in silence."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from alignment.data.opening import BadRow

_FITS = 308
"""Digits of whole numbers that a float can be made of, whatever they are."""
_TOO_LARGE = re.compile(rf"\d{{{_FITS + 1}}}")


def whole_number(digits: str) -> int | float:
    """For `parse_int`: a number too large for a float, at which arithmetic fails, is infinite and refused as that."""
    return int(digits) if len(digits) <= _FITS else float(digits)


def json_or_python(text: str) -> Any:
    """The value of a text that is JSON or what Python prints of a list, say; the text itself if it is neither."""
    try:
        return json.loads(text, parse_int=whole_number)
    except (ValueError, RecursionError):
        pass
    if _TOO_LARGE.search(text):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


class RowDecoder:
    """A JSON decoder that tells of keys that stand twice."""

    def __init__(self) -> None:
        self._twice: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=whole_number)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            seen: set[str] = set()
            self._twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return row

    def row(self, text: str) -> Any:
        """The value of a whole text, or the BadRow of a text that has a key twice.

        Raises:
            ValueError, RecursionError: not JSON.
        """
        self._twice = None
        return self._checked(self._decoder.decode(text))

    def row_at(self, text: str, start: int) -> tuple[Any, int]:
        """As `row` for the value that begins at a position, and where it ends."""
        self._twice = None
        value, end = self._decoder.raw_decode(text, start)
        return self._checked(value), end

    def _checked(self, value: Any) -> Any:
        if self._twice is None:
            return value
        return BadRow(f"the key '{self._twice[:80]}' stands twice in one object; only one of its values can be meant")
