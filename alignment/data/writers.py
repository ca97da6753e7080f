"""Write rows to files (JSONL, also .gz, JSON, CSV, Parquet) that appear once complete, or not at all."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.files import new_file

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_BATCH = 1024  # rows of a Parquet file in memory at a time

Write = Callable[[Any], object]


@contextmanager
def row_writer(path: Path, option: str = "", suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Write]:
    """Yield a function that writes one row to a new file. A table's rows have the keys and types of the first.

    Args:
        option: the command-line option that names the file, for errors.
        suffixes: the allowed ones; `.json` writes a list.

    Raises:
        UserError: the suffix is not allowed, the file exists, or it cannot be written.
    """
    name = f"{option} {path}".strip()
    if not path.name.endswith(suffixes):
        raise UserError(f"{name}: this file type is not supported; use {', '.join(suffixes)}")
    if path.exists():
        raise UserError(f"{name}: exists already; remove it or name another file")
    open_writer = {".json": _json, ".csv": _csv, ".parquet": _parquet}.get(path.suffix, _jsonl)
    try:
        with new_file(path) as part, open_writer(part, path.suffix == ".gz") as write:
            yield write
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror or error}; name another file") from None


@contextmanager
def _jsonl(part: Path, compressed: bool) -> Iterator[Write]:
    with gzip.open(part, "wt", encoding="utf-8") if compressed else part.open("w", encoding="utf-8") as file:
        yield lambda row: file.write(_json_line(row))


@contextmanager
def _json(part: Path, compressed: bool) -> Iterator[Write]:
    with part.open("w", encoding="utf-8") as file:
        separators = itertools.chain(["[\n"], itertools.repeat(",\n"))
        yield lambda row: file.write(next(separators) + _json_line(row).rstrip("\n"))
        file.write(("" if next(separators) == ",\n" else "[") + "\n]\n")


def _json_line(row: Any) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)
    if not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):
        line = json.dumps(row, default=str)  # a lone surrogate cannot be encoded as UTF-8
    return line + "\n"


@contextmanager
def _csv(part: Path, compressed: bool) -> Iterator[Write]:
    with part.open("w", encoding="utf-8", newline="") as file:
        writers: list[csv.DictWriter[str]] = []

        def write(row: Mapping[str, Any]) -> None:
            if not writers:
                writers.append(csv.DictWriter(file, list(row)))
                writers[0].writeheader()
            writers[0].writerow(row)

        yield write


@contextmanager
def _parquet(part: Path, compressed: bool) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    rows: list[Mapping[str, Any]] = []
    writers: list[pyarrow.parquet.ParquetWriter] = []

    def flush() -> None:
        table = pyarrow.Table.from_pylist(rows, writers[0].schema if writers else None)
        if not writers:
            writers.append(pyarrow.parquet.ParquetWriter(part, table.schema))
        writers[0].write_table(table)
        rows.clear()

    def write(row: Mapping[str, Any]) -> None:
        rows.append(row)
        if len(rows) == _BATCH:
            flush()

    try:
        yield write
        if rows:
            flush()
    finally:
        for writer in writers:
            writer.close()
