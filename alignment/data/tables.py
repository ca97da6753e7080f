"""Read CSV and TSV files as spreadsheets write them: the separator and the encoding are found out, and said."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

from alignment.data.json_values import json_or_python
from alignment.data.opening import BadRow, DataError, DataFile, Note

LONGEST_RECORD = 16 << 20
"""Characters of one row: a file without line breaks would exhaust the memory."""
_SAMPLE = 1 << 16  # bytes that tell the separator
_SEPARATORS = {",": "comma-separated", ";": "semicolon-separated", "\t": "tab-separated", "|": "separated by |"}
_SEP_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)  # Excel's own first line
# Columns that hold lists, and columns that may hold a conversation in place of a text.
_LISTS = ("messages", "conversations", "conversation", "completions", "ranks", "tools", "documents", "instances")
_TURNS = ("prompt", "completion", "chosen", "rejected")


def table_rows(file: DataFile, note: Note) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, row) for each row of a table; cells are strings, or lists where a column holds JSON lists.

    Raises:
        DataError: the encoding is unknown, a column's name stands twice, or the quotes do not match.
    """
    encoding = file.guessed_encoding()
    with file.utf8(encoding) as stream:
        sample = stream.read(_SAMPLE)
    names: list[str] = []
    with file.utf8(encoding) as stream:
        lines = _TableLines(stream, file)
        separator, is_named = _separator(sample.decode("utf-8", "ignore"), file.suffix)
        if is_named:
            next(lines)
        if said := _described(file, separator, encoding, sample):  # before the rows: perhaps not all of them are read
            note(f"{file}: read as {', '.join(said)}")
        reader = csv.reader(lines, delimiter=separator)
        num_empty = 0
        try:
            for values in reader:
                _check_quotes(lines.taken_lines(), values, names, separator, f"{file}:{{}}", lines.number)
                where = f"{file}:{lines.number}"
                if not names:
                    names = _header(values, where) if values else []
                    continue
                if not any(value.strip() for value in values):
                    num_empty += 1
                    continue
                yield where, _row(names, values)
        except csv.Error as error:
            raise DataError(f"{file}:{lines.number}: not valid CSV: {error}; write the rows as .jsonl") from None
    if num_empty:
        note(f"{file}: {num_empty} empty lines skipped")


def _described(file: DataFile, separator: str, encoding: str, sample: bytes) -> list[str]:
    """What a file is read as, in words; nothing for commas in UTF-8."""
    extra = []
    if encoding not in ("utf-8", "utf-8-sig"):
        extra.append(encoding if encoding == "cp1252" else encoding[:6].upper())
    if b"\r" in sample and b"\n" not in sample:
        extra.append("old Mac line ends")
    if separator == "," and not extra and file.suffix != ".tsv":
        return []
    return [_SEPARATORS.get(separator, f"separated by {separator}"), *extra]


class _TableLines:
    """The lines of a table, of which one row may not take more than LONGEST_RECORD characters."""

    def __init__(self, stream: IO[bytes], file: DataFile) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        self._file = file
        self.number = self._taken = 0
        self._lines: list[str] = []

    def __iter__(self) -> _TableLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(LONGEST_RECORD + 1)
        self.number += bool(line)
        self._taken += len(line)
        if self._taken > LONGEST_RECORD:
            limit = f"more than {LONGEST_RECORD >> 20} MiB; is a quote missing, or every line break?"
            raise DataError(f"{self._file}:{self.number}: one row of {limit}")
        if not line:
            raise StopIteration
        self._lines.append(line)
        return line

    def taken_lines(self) -> list[str]:
        """The lines since the last call, which are those of one row."""
        lines, self._lines, self._taken = self._lines, [], 0
        return lines


def _separator(sample: str, suffix: str) -> tuple[str, bool]:
    """The separator that splits most rows of a sample as its header, and whether a `sep=` line names it."""
    named = _SEP_LINE.match(sample)
    if named:
        return named[1], True
    candidates = sorted(_SEPARATORS, key=lambda separator: separator != "\t") if suffix == ".tsv" else [*_SEPARATORS]
    scores = {separator: _score(sample, separator) for separator in candidates}
    return max(candidates, key=lambda separator: scores[separator]), False  # the first of the best


def _score(sample: str, separator: str) -> float:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator):
            if row:
                rows.append(row)
    except csv.Error:
        pass  # the sample ends inside a quote, or a field is too long
    rows = rows[:-1] if len(sample) >= _SAMPLE // 4 and len(rows) > 2 else rows
    if not rows or len(rows[0]) < 2:
        return 0.0
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows)


def _check_quotes(
    lines: Sequence[str], values: Sequence[str], names: Sequence[str], separator: str, where: str, last: int
) -> None:
    """Refuse a row of several lines that a quote which is part of a text has joined.

    Raises:
        DataError: the quotes do not stand around whole cells, or the row has fewer cells than the header.
    """
    if len(lines) < 2 or not names:
        return
    try:
        list(csv.reader(lines, delimiter=separator, strict=True))
        is_one = len(values) >= len(names)
    except csv.Error:
        is_one = False
    if not is_one:
        first = last - len(lines) + 1
        raise DataError(
            f"{where.format(first)}: a cell begins with a quote that does not end it, so lines {first} to {last} are "
            'read as one row; write the cell in quotes and quotes in it twice ("""Hi"" he said"), or the rows as .jsonl'
        )


def _header(values: Sequence[str], where: str) -> list[str]:
    names = [value.strip() for value in values]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(f"{where}: the column '{twice[0]}' stands twice in the header; rename or remove one of them")
    return names


def _row(names: Sequence[str], values: Sequence[str]) -> Any:
    """The row as an object, without cells beyond the header and cells of columns without a name that are empty."""
    if any(value.strip() for value in values[len(names) :]):
        # An unquoted comma has split a value.
        return BadRow("more values than the header has columns; put texts with commas in quotes")
    nameless = names.count("")
    row: dict[str, Any] = {}
    for index, name in enumerate(names):
        value = values[index] if index < len(values) else None
        if name or nameless == 1:  # one: the row numbers that pandas writes
            row[name] = _cell(name, value) if value else value
        elif value and value.strip():
            if sum(map(bool, names)) == 1:
                title = next(filter(None, names))
                return BadRow(
                    f"the first line has but one cell, '{title[:60]}': a title, not the header; take out the lines "
                    "above the header"
                )
            return BadRow(f"a value stands in column {index + 1}, which has no name; name it in the header")
    return row


def _cell(name: str, text: str) -> Any:
    """The list that a cell holds as JSON, or as Python prints it (pandas writes that); else its text."""
    if not text.startswith("[") or name not in (*_LISTS, *_TURNS):
        return text
    value = json_or_python(text)
    is_turns = isinstance(value, list) and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if isinstance(value, list) and (name in _LISTS or (is_turns and value)) else text
