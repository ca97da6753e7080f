"""Open the source named by `data.train` or `data.eval`: its kind, its rows and its fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.config.sections import DataConfig, DataPart
from alignment.data.importers import (
    TEXT_SUFFIXES,
    TICKET_KEYS,
    document_rows,
    faq_rows,
    is_slack_export,
    slack_rows,
    text_files,
    ticket_rows,
)
from alignment.data.openassistant import flat_trees, is_flat_tree
from alignment.data.row_files import MISSING, SUFFIXES, BadRow, DataError, data_files, file_fingerprint, read_rows

Rows = Iterator[tuple[str, Any]]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?(@[\w.-]+)?")


class RowSource(NamedTuple):
    """The rows of a source with their places, and a function that returns its fingerprint (name, sha256, ...)."""

    rows: Rows
    fingerprint: Callable[[], dict[str, Any]]


def open_source(part: DataPart, config: DataConfig) -> RowSource:
    """Open the rows of a part, with keys renamed by `columns`. A row that cannot be used is yielded as its BadRow.

    Raises:
        DataError: the source is missing or cannot be read.
    """
    path = Path(part.path)
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _from_datasets(_load_saved(path), part)
    if path.exists() and (part.format == "slack" or (part.format == "auto" and is_slack_export(path))):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        return RowSource(slack_rows(path, config.agents), _hashed(path.name, files))
    if path.suffix.lower() in TEXT_SUFFIXES or (path.is_dir() and not _has_data_files(path) and text_files(path)):
        if not path.exists():
            raise DataError(f"{path}: no such file; {MISSING}")
        files = text_files(path)
        rows = faq_rows(files) if part.format == "faq" else document_rows(files)
        return RowSource(rows, _hashed(path.name, files))
    if not path.exists() and not path.suffix.startswith((*SUFFIXES, ".gz")) and _HUB_NAME.fullmatch(part.path):
        return _from_datasets(_load_hub(part.path), part)
    rows = _renamed_rows(read_rows(path), part.columns or {})
    return RowSource(_tickets(rows, part, config), lambda: file_fingerprint(path, 0))


def _has_data_files(folder: Path) -> bool:
    try:
        return bool(data_files(folder))
    except DataError:
        return False


def _tickets(rows: Rows, part: DataPart, config: DataConfig) -> Rows:
    """The rows unchanged, or the conversations of support tickets, or trees of single messages; the first row tells."""
    first = list(itertools.islice(rows, 1))
    rows = itertools.chain(first, rows)
    detectable = part.format in ("auto", "tree") and first and isinstance(first[0][1], Mapping)
    if detectable and is_flat_tree(first[0][1]):
        return flat_trees(rows)
    if part.format == "tickets" or (
        part.format == "auto" and detectable and all(key in first[0][1] for key in TICKET_KEYS)
    ):
        return ticket_rows(rows, config.agents)
    return rows


def _renamed_rows(rows: Rows, columns: Mapping[str, str | None]) -> Rows:
    for where, row in rows:
        try:
            yield where, row if isinstance(row, BadRow) else renamed(row, columns)
        except BadRow as reason:
            yield where, reason


def renamed(row: Any, columns: Mapping[str, str | None]) -> Mapping[str, Any]:
    """The row with keys renamed by `columns`. A renamed column replaces one that already has the new name, and a name
    for which the file has nothing (None) is left out.

    Raises:
        BadRow: the row is not an object, or a key is missing.
    """
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
    theirs = {ours: name for ours, name in columns.items() if name is not None}
    missing = [name for name in theirs.values() if name not in row]
    if missing:
        raise BadRow(f"no key '{missing[0]}', which data.columns names; found {', '.join(map(str, row))}")
    taken = {*columns, *theirs.values()}
    return {key: row[key] for key in row if key not in taken} | {ours: row[name] for ours, name in theirs.items()}


def _hashed(name: str, files: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    def fingerprint() -> dict[str, Any]:
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return {"name": name, "sha256": digest.hexdigest()} if files else {"name": name}

    return fingerprint


# --- the datasets library ------------------------------------------------------------------------------------------


def _from_datasets(dataset: Any, part: DataPart) -> RowSource:
    rows = ((f"{part.path}:row {index}", row) for index, row in enumerate(dataset, 1))
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    fingerprint = _hashed(Path(part.path).name if Path(part.path).exists() else part.path, files)
    return RowSource(_tickets(_renamed_rows(rows, part.columns or {}), part, DataConfig(train=part.path)), fingerprint)


def _load_saved(path: Path) -> Any:
    """A data set written by `save_to_disk`; its `train` split if there are several."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a data set that can be loaded: {str(error).splitlines()[0]}") from None
    if isinstance(saved, datasets.DatasetDict):
        if "train" not in saved:
            raise DataError(
                f"{path}: its splits are {', '.join(saved)}; name one of those folders: {path}/{next(iter(saved))}"
            )
        saved = saved["train"]
    return saved


def _load_hub(name: str) -> Any:
    """A data set on the hub, `owner/name[:config][@split]`; the default split is `train`."""
    import datasets

    repo, _, split = name.partition("@")
    repo, _, config = repo.partition(":")
    try:
        return datasets.load_dataset(repo, config or None, split=split or "train")
    except Exception as error:  # noqa: BLE001 - many kinds: network, hub, files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: no such file or folder, and the hub does not give it: {reason}") from None
