"""Read JSON files: a list of rows is streamed; wrappers around a list and pandas' layouts are read whole."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from alignment.data.json_values import RowDecoder
from alignment.data.opening import BadRow, DataError, DataFile, Note, not_utf8

LONGEST_ROW = 16 << 20
"""Characters of one row."""
LARGEST_OBJECT = 64 << 20
"""Characters of a file that is one object: it is read whole, as some five times as many bytes."""
_SPACE = re.compile(r"[ \t\r\n]*")
# Turns have a role, or from and value: a list of them is a conversation, not a list of rows. An export's messages have:
_MESSAGE_KEYS = frozenset(("id", "date", "createdDateTime", "created_at", "timestamp", "to", "from_id", "message_id"))


def json_rows(file: DataFile, note: Note, line_rows: Any) -> Iterator[tuple[str, Any]]:
    """Yield (`file:row N`, row) for each row of a JSON file; `line_rows` reads a file of one object a line.

    Raises:
        DataError: not valid JSON, no list of rows, or too large to be read.
    """
    encoding = file.marked_encoding()
    if encoding not in ("utf-8", "utf-8-sig"):
        note(f"{file}: read as {encoding[:6].upper()}")
    with file.utf8(encoding) as stream:
        text = _JsonText(stream, file)
        start = text.next_char()
        if start == "[":
            yield from _list_rows(text, file)
            return
        if start != "{":
            raise text.error_here("Expecting value")
        value, has_more = text.whole()
        if has_more and text.is_apart:
            note(f"{file}: objects one after the other, of several lines each")
            yield from _following_rows(text, file, value)
            return
    if has_more:
        note(f"{file}: one object a line, read as .jsonl")
        yield from line_rows(file, note)
        return
    rows, said = _rows_of(value, file)
    if said:
        note(f"{file}: {said}")
    for index, row in enumerate(rows, 1):
        yield f"{file}:row {index}", _viewer_row(row)


class _JsonText:
    """The text of a JSON file, of which a bounded part is in memory."""

    def __init__(self, stream: IO[bytes], file: DataFile) -> None:
        self._stream, self._file = stream, file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rows = RowDecoder()
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        self.is_apart = False
        """Whether the file is objects one after the other, the first of which takes several lines."""

    def _more(self, size: int = 1 << 20) -> None:
        """Drop what was used, and read on."""
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        raw = self._stream.read(size)
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + error.object[: error.start].count(10)
            raise DataError(f"{self._file}:{line}: {not_utf8(error)}") from None

    def next_char(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """The JSON value at the current position; a BadRow if it has a key twice."""
        self.next_char()
        while True:
            try:
                value, end = self._rows.row_at(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 20
                if self._ended or not is_cut:
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self._file}: not valid JSON: {error}") from None
            if len(self._text) - self._at > LONGEST_ROW:
                raise DataError(f"{self._file}:{self._line}: one row of more than {LONGEST_ROW >> 20} MiB; split it")
            self._more(max(1 << 20, len(self._text) - self._at))

    def whole(self) -> tuple[Any, bool]:
        """The value that the file begins with, and whether an object follows it."""
        with contextlib.suppress(ValueError, RecursionError):  # perhaps the first of many objects, one a line
            value, end = self._rows.row_at(self._text, self._at)
            if self._text[end:].lstrip().startswith("{"):
                self.is_apart = "\n" in self._text[self._at : end]
                self._at = end
                return value, True
        while not self._ended and len(self._text) <= LARGEST_OBJECT:
            self._more()
        try:
            value, self._at = self._rows.row_at(self._text, self._at)
        except json.JSONDecodeError as error:
            if not self._ended:
                raise self._too_large() from None
            raise self.error(error.msg, error.pos) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._file}: not valid JSON: {error}") from None
        following = self.next_char()
        if following not in ("", "{"):
            raise self.error_here("Extra data")
        return value, following == "{"

    def _too_large(self) -> DataError:
        return DataError(
            f"{self._file}: one object of more than {LARGEST_OBJECT >> 20} MiB; only a list of rows is read in pieces: "
            "write the rows as .jsonl"
        )

    def error(self, problem: str, position: int) -> DataError:
        line = self._line + self._text.count("\n", 0, position)
        return DataError(f"{self._file}:{line}: not valid JSON: {problem}; one object a line is .jsonl")

    def error_here(self, problem: str) -> DataError:
        return self.error(problem, self._at)


def _following_rows(text: _JsonText, file: DataFile, first: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a file with objects one after the other, of which the first was read."""
    yield f"{file}:row 1", first
    index = 1
    while text.next_char():
        index += 1
        yield f"{file}:row {index}", text.value()


def _list_rows(text: _JsonText, file: DataFile) -> Iterator[tuple[str, Any]]:
    text.skip()
    index = 0
    if text.next_char() == "]":
        text.skip()
    else:
        while True:
            index += 1
            yield f"{file}:row {index}", _viewer_row(text.value())
            following = text.next_char()
            if following not in (",", "]"):
                raise text.error_here("Expecting ',' delimiter")
            text.skip()
            if following == "]":
                break
    if text.next_char():
        raise text.error_here("Extra data")


def _rows_of(value: Any, file: DataFile) -> tuple[list[Any], str]:
    """The rows of an object that is no row itself, and how it was read."""
    if isinstance(value, BadRow):
        raise DataError(f"{file}: {value}; write the rows as .jsonl")
    if isinstance(value, Mapping) and value:
        for layout in (_viewer_layout, _split_layout, _column_layout, _wrapped):
            if found := layout(value, file):
                return found
    kind = f"an object with {_named(value)}" if isinstance(value, Mapping) else type(value).__name__
    raise DataError(f"{file}: expected a JSON list of rows, found {kind}; put the rows between [ and ]")


def _viewer_layout(value: Mapping[str, Any], _: DataFile) -> tuple[list[Any], str] | None:
    """The answer of the hub's viewer: {"features": [...], "rows": [{"row_idx": 0, "row": {...}}, ...]}."""
    rows = value.get("rows")
    if "features" not in value or not (isinstance(rows, list) and rows and all(map(_is_viewer_row, rows))):
        return None
    total = value.get("num_rows_total")
    return rows, f"the hub's viewer: {len(rows)} rows" + (f" of {total}" if isinstance(total, int) else "")


def _is_viewer_row(item: Any) -> bool:
    return isinstance(item, Mapping) and "row_idx" in item and isinstance(item.get("row"), Mapping)


def _viewer_row(item: Any) -> Any:
    """The row inside one of the hub's viewer, or the reason why it is not whole; anything else as it is."""
    if not _is_viewer_row(item):
        return item
    cut = item.get("truncated_cells")
    return BadRow(f"the viewer has cut the cells {cut}; use the data set's own file") if cut else item["row"]


def _split_layout(value: Mapping[str, Any], _: DataFile) -> tuple[list[Any], str] | None:
    """pandas' `orient="split"`: {"columns": ["prompt", ...], "data": [["...", ...], ...]}."""
    columns, data = value.get("columns"), value.get("data")
    if not (isinstance(columns, list) and isinstance(data, list) and len(set(map(str, columns))) == len(columns)):
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        return None
    return [dict(zip(map(str, columns), row, strict=True)) for row in data], "pandas' layout of columns and data"


def _column_layout(value: Mapping[str, Any], file: DataFile) -> tuple[list[Any], str] | None:
    """pandas' `columns` {"prompt": {"0": "..."}, ...}, `index` {"0": {"prompt": "..."}} or `list` {"prompt": [...]}."""
    columns = list(value.values())
    if all(isinstance(column, Mapping) for column in columns):
        if all(key.isdigit() for key in value):
            return columns, "pandas' layout by row number"
        keys = list(columns[0])
        if not keys or any(list(column) != keys for column in columns):
            return None
        return [{name: value[name][key] for name in value} for key in keys], "pandas' layout by column"
    if all(isinstance(column, list) for column in columns) and len(columns) > 1:
        if any(isinstance(item, Mapping) and not _is_turn(item) for column in columns for item in column):
            return None
        if len({len(column) for column in columns}) != 1:
            lengths = ", ".join(f"{name}: {len(column)}" for name, column in value.items())
            raise DataError(f"{file}: lists of different lengths ({lengths[:200]}); write one object for each row")
        names = list(value)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], "a list for each column"
    return None


def _wrapped(value: Mapping[str, Any], file: DataFile) -> tuple[list[Any], str] | None:
    """The one list of objects in {"version": 1, "data": [{...}, ...]}."""
    every = {key: item for key, item in value.items() if isinstance(item, list) and _is_rows(item)}
    lists = {key: item for key, item in every.items() if item} or every
    if len(lists) > 1:
        sizes = ", ".join(f"'{key}' with {len(item)}" for key, item in lists.items())
        raise DataError(f"{file}: holds several lists ({sizes[:200]}); write the one that is meant as its own file")
    if not lists:
        return None
    key, rows = next(iter(lists.items()))
    others = [other for other in value if other != key]
    return rows, f"read from its list '{key}'" + (f"; not used: {', '.join(others)[:200]}" if others else "")


def _is_rows(items: list[Any]) -> bool:
    """Whether a list holds rows; an empty one does where nothing else is there."""
    return all(isinstance(item, Mapping) and not _is_turn(item) for item in items)


def _is_turn(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    return "role" in item or "value" in item or ("from" in item and not item.keys() & _MESSAGE_KEYS)


def _named(value: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(value)[:200]}" if value else "no keys"
