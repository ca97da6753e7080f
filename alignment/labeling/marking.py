"""Passages of an answer that a labeler marks as wrong: where they are in its text, and how they are typed.

A mark is [start, end, kind], in characters of the answer as it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignment.terminal import clean, one_line

Mark = tuple[int, int, str]


def stored_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Where a passage of the cleaned text is in the text itself, in which a line may end with CR LF."""
    places = [match.start() for match in re.finditer(r"\r\n|.", text, re.DOTALL)] + [len(text)]
    return places[start], places[end]


def find_passage(text: str, quote: str, taken: Sequence[Mark], kind: str) -> Mark | None:
    """The first passage with these words that is not marked so yet, however it is broken into lines; None if there is
    none."""
    words = clean(quote).split()
    if not words:
        return None
    for match in re.finditer(r"\s+".join(map(re.escape, words)), clean(text)):
        mark = (*stored_span(text, *match.span()), kind)
        if mark not in taken:
            return mark
    return None


def in_lines(text: str, marks: Sequence[Mark], kinds: Sequence[str]) -> list[str]:
    """Marks as they are typed: the number of the kind and the words."""
    return [f"{kinds.index(kind) + 1} {one_line(text[start:end])}" for start, end, kind in marks]


def marks_in(text: str, lines: Sequence[str], kinds: Sequence[str]) -> tuple[list[Mark], list[str]]:
    """The marks that are typed so, in the order of the text, and the lines that are none."""
    marks: list[Mark] = []
    wrong = []
    for line in filter(str.strip, lines):
        number, _, quote = line.strip().partition(" ")
        kind = kinds[int(number) - 1] if re.fullmatch("[1-9]", number) and int(number) <= len(kinds) else None
        mark = None if kind is None else find_passage(text, quote, marks, kind)
        if mark is None:
            wrong.append(line.strip())
        else:
            marks.append(mark)
    return sorted(marks), wrong
