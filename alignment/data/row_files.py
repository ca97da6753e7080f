"""Read rows of data files (JSONL, JSON, CSV, TSV, Parquet; `.gz`, `.zip` and folders too), with their places."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from alignment.data.json_files import json_rows
from alignment.data.json_values import RowDecoder
from alignment.data.opening import BadRow, DataError, DataFile, Note, not_utf8, suffix_of
from alignment.data.parquet_files import parquet_rows
from alignment.data.tables import table_rows

__all__ = ["BadRow", "DataError", "Note", "data_files", "file_fingerprint", "jsonl_lines", "read_rows"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LINES = (".jsonl", ".ndjson")
"""Suffixes of files with one object a line."""
LONGEST_LINE = 16 << 20
"""Bytes. A longer line of a JSONL file is a bad row: a file without line breaks would exhaust the memory."""
MISSING = "give data.train, data.eval or ptx.train the path of a data file or folder"
_EXPECTED = f"expected {', '.join(SUFFIXES)} (.gz and .zip allowed)"
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
"""Files that tell of a data set, in lower case; none of them holds rows."""
_HELD_OUT = re.compile(r"(?:\A|[-_. ])(?:test|testing|validation|valid|val|dev|eval|heldout|held[-_]out)(?:\Z|[-_. ])")
_MOST_NAMED = 4
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")


def data_files(path: str | Path) -> list[Path]:
    """The data files of a path, sorted; a zip archive of data files is one of them.

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
        files = sorted(file for file in path.iterdir() if suffix_of(file.name) in SUFFIXES and _is_data(file))
        if not files:
            below = folders_of_data(path)
            inner = f" but in {', '.join(map(str, below[:3]))}; name one" if below else f"; {_EXPECTED}"
            raise DataError(f"{path}: no data file in this folder{inner}")
        _check_parts(path, [file.name for file in files])
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file; {MISSING}")
    suffix = suffix_of(path.name)
    if suffix == ".db":
        raise DataError(
            f"{path}: a ratings database, which the reward stage and SFT (its preferred answers) read; "
            "`alignment rate report` shows it"
        )
    if suffix in _SHEETS:
        raise DataError(f"{path}: a spreadsheet; save its sheet as CSV (UTF-8) and name that file")
    if suffix not in (*SUFFIXES, ".zip"):
        raise DataError(f"{path}: not a kind of file that is read; {_EXPECTED}")
    return [path]


def _is_data(file: Path) -> bool:
    is_hidden = file.name.startswith("._")  # macOS keeps a file's attributes under such a name
    return file.is_file() and not is_hidden and file.name.lower() not in METADATA


def has_data_files(folder: Path) -> bool:
    return any(suffix_of(file.name) in SUFFIXES and _is_data(file) for file in folder.iterdir())


def folders_of_data(path: Path) -> list[Path]:
    """The folders right below a folder that hold data files."""
    folders = (folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith("."))
    return [folder for folder in folders if has_data_files(folder)]


def _check_parts(path: Path, names: list[str]) -> None:
    """Refuse a folder or archive in which files for training stand beside a test or validation part.

    Raises:
        DataError: with the settings that name the parts.
    """
    held_out = [name for name in names if any(_HELD_OUT.search(_part_name(part)) for part in name.split("/"))]
    others = [name for name in names if name not in held_out]
    if not held_out or not others:
        return
    if path.is_file():
        fix = "unpack the archive and name the parts: data.train=FILE data.eval=FILE"
    else:
        listed = ", ".join(f"{{path: {path / name}}}" for name in others)
        train = str(path / others[0]) if len(others) == 1 else f"'[{listed}]'"
        if len(others) > _MOST_NAMED:
            train = f"FOLDER, into which you move the {len(others)} others"
        fix = f"name the parts: data.train={train} data.eval={path / held_out[0]}"
        if len(held_out) > 1:
            fix += f" ({len(held_out) - 1} more such files: move those of one part into a folder)"
    raise DataError(
        f"{path}: '{held_out[0]}' is a test or validation part by its name, which must not be learned with "
        f"'{others[0]}'; {fix}"
    )


def _part_name(name: str) -> str:
    """A file's name without its suffixes and its number among several: `test` of `test-00000-of-00002.parquet`."""
    stem = name.lower().removesuffix(".gz")
    return re.sub(r"[-_.]\d+([-_.]of[-_.]\d+)?\Z", "", stem[: len(stem) - len(suffix_of(name))])


def read_rows(path: str | Path, note: Note = lambda text: None) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, row) for every data file of a path. A line that does not parse yields its BadRow.

    Files are streamed, a row or a batch of rows at a time.

    Args:
        note: takes a line about a file that was not read as its suffix says (separator, encoding, wrapper).
    """
    for file in data_files(path):
        for part in zip_members(file) if file.suffix.lower() == ".zip" else [DataFile(file)]:
            if part.suffix in LINES:
                yield from _jsonl_rows(part, note)
            elif part.suffix == ".json":
                yield from json_rows(part, note, _jsonl_rows)
            elif part.suffix == ".parquet":
                yield from parquet_rows(part)
            else:
                yield from table_rows(part, note)


def zip_members(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[DataFile]:
    """The files of a zip archive that have one of the suffixes, sorted, without what macOS adds.

    Raises:
        DataError: not a zip archive, or no such file in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(f"{path}: cannot be read as a zip archive: {error}; copy or compress it again") from None
    members = [name for name in names if suffix_of(name) in suffixes and not is_macos_copy(name)]
    if suffixes == SUFFIXES:
        members = [name for name in members if PurePosixPath(name).name.lower() not in METADATA]
        _check_parts(path, members)
    if not members:
        shown = ", ".join(name for name in names if not is_macos_copy(name))[:200] or "nothing"
        raise DataError(f"{path}: no data file in this archive but {shown}; expected {', '.join(suffixes)}")
    return [DataFile(path, member) for member in members]


def is_macos_copy(name: str) -> bool:
    """Whether a name in an archive is one of the copies that macOS adds to keep attributes of files."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")


def jsonl_lines(file: Path | DataFile, note: Note = lambda text: None) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines of a JSONL file without blank ones, each cut to LONGEST_LINE + 1 bytes.

    Lines end at a line feed and nowhere else: JSON allows U+2028 and the like inside a string.
    """
    source = DataFile(file) if isinstance(file, Path) else file
    encoding = source.marked_encoding()
    if encoding.startswith(("utf-16", "utf-32")):
        note(f"{source}: read as {encoding[:6].upper()}")
    with source.utf8(encoding) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            rest = line
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = stream.readline(LONGEST_LINE + 1)  # skip the rest of an overlong line
            if line.strip():
                yield number, line


def _jsonl_rows(file: DataFile, note: Note) -> Iterator[tuple[str, Any]]:
    decoder = RowDecoder()
    for number, line in jsonl_lines(file, note):
        yield f"{file}:{number}", _parse_line(line, decoder)


def _parse_line(line: bytes, decoder: RowDecoder) -> Any:
    if len(line) > LONGEST_LINE:
        return BadRow(f"a line of more than {LONGEST_LINE >> 20} MiB; each row needs its own line")
    try:
        # rstrip: otherwise the error of a truncated row would name the line break that follows
        return decoder.row(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return BadRow(not_utf8(error))
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{_json_fix(line)}")
    except (ValueError, RecursionError) as error:  # e.g. a number of 5,000 digits or a thousand nested brackets
        return BadRow(f"not valid JSON: {error}")


def _json_fix(line: bytes) -> str:
    """What to do about a line that is a part of a value, or a row with a comma after it."""
    bare = line.strip()
    if bare == b"[":
        return "; .jsonl has one object a line: name the file of this list .json"
    if bare == b"{":
        return "; an object must stand on one line, or all objects in a .json file between [ and ], commas between them"
    return "; take out the comma after each row" if bare.startswith(b"{") and bare.endswith(b"},") else ""


def file_fingerprint(path: str | Path, rows: int) -> dict[str, Any]:
    """A data source's identity in a manifest: its name, usable rows, and the sha256 of its files in order."""
    digest = hashlib.sha256()
    for file in data_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return {"name": Path(path).name, "rows": rows, "sha256": digest.hexdigest()}
