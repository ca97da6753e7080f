"""The index of a Parquet file: what its row groups and columns hold, read without Arrow.

Arrow ends the whole process, with a line of C++, where it is asked about a column whose entry is damaged; no exception
tells. So what has to be known before pages are unpacked is read here. The format is Thrift's compact protocol, and the
numbers of the fields are those of parquet.thrift of the Apache Parquet project.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

TRUE, FALSE, BYTE, INT16, INT32, INT64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
DEEPEST = 32
"""Structures inside each other; an index has about eight."""


class ColumnChunk(NamedTuple):
    """A column in a row group."""

    path_in_schema: str
    num_values: int
    total_uncompressed_size: int
    """Bytes."""
    dictionary_page_offset: int | None
    """Where its dictionary page begins in the file, if it has one."""


class RowGroup(NamedTuple):
    """Rows that are stored together."""

    num_rows: int
    columns: tuple[ColumnChunk, ...]


def read_index(source: IO[bytes]) -> list[RowGroup]:
    """The row groups of a file, which is left where it was.

    Raises:
        ValueError: the index is damaged.
    """
    position = source.tell()
    try:
        end = source.seek(-8, os.SEEK_END)
        length = int.from_bytes(source.read(4), "little")
        if source.read(4) != b"PAR1" or length > end:
            raise ValueError("no index at its end")
        source.seek(end - length)
        return [_row_group(group) for group in dict(Compact(source.read(length)).fields())[4]]
    except (KeyError, TypeError, IndexError, AttributeError) as error:  # a field is missing, or of another type
        raise ValueError(f"the index lacks field {error}" if isinstance(error, KeyError) else f"{error}") from None
    finally:
        source.seek(position)


def _row_group(group: dict[int, Any]) -> RowGroup:
    return RowGroup(_count(group[3]), tuple(_column(chunk[3]) for chunk in group[1]))


def _column(entry: dict[int, Any]) -> ColumnChunk:
    name = b".".join(entry[3]).decode("utf-8", "replace")
    dictionary = entry.get(11)
    if dictionary == 0:  # as old writers say it: the dictionary is the first of the pages
        dictionary = entry[9]
    return ColumnChunk(name, _count(entry[5]), _count(entry[6]), None if dictionary is None else _count(dictionary))


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"a size or a place is {value!r}")
    return value


class Compact:
    """Values of Thrift's compact protocol, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, depth: int = 0) -> Iterator[tuple[int, Any]]:
        """The number and the value of each field of a structure: ints, bytes, lists, and dicts of fields.

        Raises:
            ValueError: the data end before it does, or it is no structure.
        """
        if depth > DEEPEST:
            raise ValueError("structures are nested too deeply")
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            yield number, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (INT16, INT32, INT64):
            return self._integer()
        if kind == BINARY:
            return self._take(self._varint())
        if kind == STRUCT:
            return dict(self.fields(depth + 1))
        if kind in (LIST, SET):
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(self._sized(size))]
        if kind == MAP:
            size = self._sized(self._varint())
            kinds = self._byte() if size else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(size)]
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind == DOUBLE:
            return self._take(8)
        raise ValueError(f"no value has type {kind}")

    def _sized(self, size: int) -> int:
        """The number of values, each of at least a byte: a list of billions is refused before it is made."""
        if size > len(self._data) - self._at:
            raise ValueError("a list is longer than the index")
        return size

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag: 0, -1, 1, -2, ...

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number is longer than 64 bits")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) < size:
            raise ValueError("the index ends early")
        self._at += size
        return found
