"""Rows of data files (JSONL, JSON, CSV, Parquet; `.gz` too; or a folder of them), with the place of every row."""

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
"""Bytes. A longer line of a JSONL file is a bad row: it is a file without line breaks, and would fill the memory."""
MISSING = "give data.train, data.eval or ptx.train the path of a data file or folder"
_BATCH = 256  # rows of a Parquet file in memory at a time


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
    """Yield (`file:line`, row) of every data file behind a path. A line that does not parse yields its BadRow.

    Files are read as streams, a row or a batch of rows at a time; a JSON list alone is read whole.
    """
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    for file in data_files(path):
        yield from readers[_suffix(file)](file)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, as a stream."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}; copy or compress the file again") from None


def jsonl_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file with their numbers, blank ones left out; no more than LONGEST_LINE + 1 bytes of each.

    Lines end at a line feed and nowhere else: JSON allows U+2028 and the like inside a string.
    """
    with _opened(file) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            rest = line
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = stream.readline(LONGEST_LINE + 1)  # of one line that would fill the memory
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, line


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in jsonl_lines(file):
        yield f"{file}:{number}", _parse_line(line)


def _parse_line(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        return BadRow(f"a line of more than {LONGEST_LINE >> 20} MiB; a row stands on a line of its own")
    try:
        # rstrip: where a row is cut off, the reason would be the line break that follows
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return BadRow(_not_utf8(error))
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a thousand brackets
        return BadRow(f"not valid JSON: {error}")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"


def _csv_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        try:
            for row in reader:
                where = f"{file}:{reader.line_num}"
                if None in row:  # a comma that is not quoted has cut a text in two
                    yield where, BadRow("more values than the header has columns; put texts with commas in quotes")
                else:
                    yield where, row
        except csv.Error as error:
            raise DataError(f"{file}:{reader.line_num + 1}: not valid CSV: {error}; write the rows as .jsonl") from None
        except UnicodeDecodeError:
            raise _undecodable(file) from None


def _undecodable(file: Path) -> DataError:
    """Where a file stops being UTF-8: a stream's decoder does not know its line."""
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

    with _opened(file) as packed, tempfile.TemporaryFile() as unpacked:
        source: Any = file
        if file.suffix == ".gz":  # its index stands at the end, and a packed stream cannot be read from there
            shutil.copyfileobj(packed, unpacked)
            source = unpacked
        number = 0
        try:
            # pre_buffer is on by default and holds a whole row group, which is the whole file more often than not.
            parquet = pyarrow.parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
            for batch in parquet.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:row {number}", row
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        raw = stream.read()
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{number}: {_not_utf8(error)}") from None
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
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return {"name": Path(path).name, "rows": rows, "sha256": digest.hexdigest()}
