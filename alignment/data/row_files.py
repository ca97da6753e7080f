"""Read rows of data files (JSONL, JSON, CSV, Parquet; `.gz` too; or a folder of them), with the place of every row."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignment.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LONGEST_LINE = 64 << 20
"""Bytes. A longer line of a JSONL file is a bad row: a file without line breaks would exhaust the memory."""
MISSING = "give data.train, data.eval or ptx.train the path of a data file or folder"
_BATCH = 256  # rows of a Parquet file in memory at a time


class DataError(UserError):
    """Data that cannot be used."""


class BadRow(ValueError):
    """The reason why one row is set aside."""


def data_files(path: str | Path) -> list[Path]:
    """The data files of a path, sorted.

    Raises:
        DataError: there is no file, or its type is not supported.
    """
    path = Path(path)
    try:
        return _data_files(path)
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
        if not files:
            raise DataError(f"{path}: no data file in this folder; expected {', '.join(SUFFIXES)} (.gz allowed)")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file; {MISSING}")
    if _suffix(path) == ".db":
        raise DataError(f"{path}: a ratings database, which the reward stage reads; `alignment rate report` shows it")
    if _suffix(path) not in SUFFIXES:
        raise DataError(f"{path}: not a kind of file that is read; expected {', '.join(SUFFIXES)} (.gz allowed)")
    return [path]


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, row) for every data file of a path. A line that does not parse yields its BadRow.

    Files are streamed, a row or a batch of rows at a time; only a JSON list is read whole.
    """
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    for file in data_files(path):
        yield from readers[_suffix(file)](file)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file's decompressed bytes as a stream."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}; copy or compress the file again") from None


def jsonl_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines of a JSONL file without blank ones, each cut to LONGEST_LINE + 1 bytes.

    Lines end at a line feed and nowhere else: JSON allows U+2028 and the like inside a string.
    """
    with _opened(file) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            rest = line
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = stream.readline(LONGEST_LINE + 1)  # skip the rest of an overlong line
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, line


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in jsonl_lines(file):
        yield f"{file}:{number}", _parse_line(line)


def _parse_line(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        return BadRow(f"a line of more than {LONGEST_LINE >> 20} MiB; each row needs its own line")
    try:
        # rstrip: otherwise the error of a truncated row would name the line break that follows
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return BadRow(_not_utf8(error))
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # e.g. a number of 5,000 digits or a thousand nested brackets
        return BadRow(f"not valid JSON: {error}")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"


def _csv_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        try:
            for row in reader:
                where = f"{file}:{reader.line_num}"
                if None in row:  # an unquoted comma has split a value
                    yield where, BadRow("more values than the header has columns; put texts with commas in quotes")
                else:
                    yield where, row
        except csv.Error as error:
            raise DataError(f"{file}:{reader.line_num + 1}: not valid CSV: {error}; write the rows as .jsonl") from None
        except UnicodeDecodeError:
            raise _undecodable(file) from None


def _undecodable(file: Path) -> DataError:
    """The error for the first line that is not UTF-8; a stream's decoder does not know the line."""
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(f"{file}:{number}: {_not_utf8(error)}")
    raise AssertionError(file)


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    with _opened(file) as compressed, tempfile.TemporaryFile() as decompressed:
        source: Any = file
        if file.suffix == ".gz":  # the index is at the end, and a gzip stream cannot seek there
            shutil.copyfileobj(compressed, decompressed)
            source = decompressed
        index = 0
        try:
            # pre_buffer is on by default and loads a whole row group, which is often the whole file.
            parquet = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
            for batch in parquet.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    index += 1
                    yield f"{file}:row {index}", row
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        raw = stream.read()
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line_number = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line_number}: {_not_utf8(error)}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg}; one object a line is .jsonl") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a JSON list of rows, found a {type(rows).__name__}")
    for index, row in enumerate(rows, 1):
        yield f"{file}:row {index}", row


def file_fingerprint(path: str | Path, rows: int) -> dict[str, Any]:
    """A data source's identity in a manifest: its name, usable rows, and the sha256 of its files in order."""
    digest = hashlib.sha256()
    for file in data_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return {"name": Path(path).name, "rows": rows, "sha256": digest.hexdigest()}
