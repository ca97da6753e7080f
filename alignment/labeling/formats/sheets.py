"""The rows of a file of ratings: those of any data file, and of an Excel sheet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.data.row_files import BadRow, DataError, Note, read_rows
from alignment.errors import require_extra


def rating_rows(path: str | Path, note: Note) -> Iterator[tuple[str, Any]]:
    """Yield (`file:line`, row) of a data file, or of the first sheet of an Excel file; `note` takes how it was read."""
    if Path(path).suffix.lower() in (".xlsx", ".xlsm"):
        return _sheet_rows(Path(path))
    return read_rows(path, note)


def _sheet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    require_extra("rating", "openpyxl", purpose=f"{path}: an Excel file")
    import openpyxl

    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        rows = enumerate(sheet.iter_rows(values_only=True), 1)
        header = [str(name).strip() if name is not None else "" for name in next(rows, (0, ()))[1]]
        for number, values in rows:
            cells = dict(itertools.zip_longest(header, values))
            row = {name: value for name, value in cells.items() if name}
            if any(value is not None for value in values):
                where = f"{path}:row {number}"
                yield (
                    where,
                    BadRow("two columns have one name") if len(set(header) - {""}) < sum(map(bool, header)) else row,
                )
    except Exception as error:  # noqa: BLE001 - a broken file ends in many kinds: zip, XML, key
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not an Excel file that can be read: {reason}; save it as .csv (UTF-8)") from None
