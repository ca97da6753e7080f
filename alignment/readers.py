"""Rows of data files (JSONL, JSON, CSV, Parquet; `.gz` too; or a folder of them), with the place of every row."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class DataError(UserError):
    """Data that cannot be used."""


class BadRow(ValueError):
    """Why one row is set aside."""


def data_files(path: str | Path) -> list[Path]:
    """The data files behind a path, sorted.

    Raises:
        DataError: nothing there, or a kind of file that is not read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
        if not files:
            raise DataError(f"{path}: no data file in this folder; expected {', '.join(SUFFIXES)} (.gz allowed)")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file; give data.train (or data.eval) the path of a data file or folder")
    if _suffix(path) not in SUFFIXES:
        raise DataError(f"{path}: not a kind of file that is read; expected {', '.join(SUFFIXES)} (.gz allowed)")
    return [path]


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, row) of every data file behind a path. A line that does not parse yields its BadRow."""
    for file in data_files(path):
        suffix = _suffix(file)
        raw = _read_bytes(file)
        if suffix == ".parquet":
            yield from _parquet_rows(file, raw)
            continue
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            number = raw[: error.start].count(b"\n") + 1
            raise DataError(
                f"{file}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
            ) from None
        if suffix == ".csv":
            yield from _csv_rows(file, text)
        elif suffix == ".json":
            yield from _json_rows(file, text)
        else:
            # Not splitlines(): that also splits at U+2028 and the like, which JSON allows inside a string.
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield f"{file}:{number}", _parse_line(line)


def _read_bytes(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}; copy or compress the file again") from None


def _parquet_rows(file: Path, raw: bytes) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows, 1):
        yield f"{file}:row {number}", row


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if None in row:  # a comma that is not quoted has cut a text in two
                yield where, BadRow("more values than the header has columns; put texts with commas in quotes")
            else:
                yield where, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num + 1}: not valid CSV: {error}; write the rows as .jsonl") from None


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a thousand brackets
        return BadRow(f"not valid JSON: {error}")


def _json_rows(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg}; one object a line is .jsonl") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a JSON list of rows, found a {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"{file}:row {number}", row


def file_fingerprint(path: str | Path, rows: int) -> dict[str, Any]:
    """What identifies a data source in a manifest: its name, usable rows, and the sha256 of its files in order."""
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(file.read_bytes())
    return {"name": Path(path).name, "rows": rows, "sha256": digest.hexdigest()}
