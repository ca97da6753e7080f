"""Open the source named by `data.train` or `data.eval`: its kind, its rows and its fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.config.sections import DataConfig, DataPart
from alignment.data.annotations import annotation_format, refusal
from alignment.data.importers import TEXT_SUFFIXES, document_rows, faq_rows, text_files
from alignment.data.keys import BY_NAME, is_empty
from alignment.data.nested import MISSING as MISSING_VALUE
from alignment.data.nested import inner_value, lost_beside
from alignment.data.openassistant import flat_trees, is_flat_tree
from alignment.data.opening import PassedOver
from alignment.data.row_files import (
    MISSING,
    SUFFIXES,
    BadRow,
    DataError,
    Note,
    data_files,
    file_fingerprint,
    folders_of_data,
    has_data_files,
    read_rows,
)
from alignment.data.shapes import SHAPES
from alignment.data.slack import is_slack_export, slack_rows
from alignment.data.tickets import is_ticket, ticket_rows

Rows = Iterator[tuple[str, Any]]
# The keys that tell the shape of a row, and those that may stand beside them.
_KNOWN = frozenset(
    name for shape in SHAPES.values() for slot in (*shape.needs, *shape.reads) for name in slot.split("|")
) | {*BY_NAME, "conversation_id", "role", "ts"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?(@[\w.-]+)?")


def is_hub_name(name: str) -> bool:
    """Whether a data set's name has the form of one on the hub, and is no data file's by its suffix."""
    return not Path(name).suffix.startswith((*SUFFIXES, ".gz", ".zip")) and bool(_HUB_NAME.fullmatch(name))


class RowSource(NamedTuple):
    """The rows of a source with their places, and a function that returns its fingerprint (name, sha256, ...).

    `notes` are lines about how the files were read; they are complete when the rows are read to their end.
    """

    rows: Rows
    fingerprint: Callable[[], dict[str, Any]]
    notes: Sequence[str] = ()


def open_source(part: DataPart, config: DataConfig) -> RowSource:
    """Open the rows of a part, with keys renamed by `columns`. A row that cannot be used is yielded as its BadRow.

    Raises:
        DataError: the source is missing or cannot be read.
    """
    path = Path(part.path)
    notes: list[str] = []
    note = notes.append
    if path.is_dir() and _is_saved(path):
        return _from_datasets(_load_saved(path), part)
    if path.exists() and (part.format == "slack" or (part.format == "auto" and is_slack_export(path))):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        return RowSource(slack_rows(path, config.agents, note), _hashed(path.name, files), notes)
    if path.suffix.lower() in TEXT_SUFFIXES or (path.is_dir() and not _has_data_files(path) and text_files(path)):
        if not path.exists():
            raise DataError(f"{path}: no such file; {MISSING}")
        files = text_files(path)
        if path.is_dir() and all(file.stem.lower() in _ABOUT for file in files) and folders_of_data(path):
            data_files(path)  # says which folders hold the data that the text is about
        rows = faq_rows(files, note) if part.format == "faq" else document_rows(files, note)
        return RowSource(rows, _hashed(path.name, files), notes)
    if not path.exists() and is_hub_name(part.path):
        return _from_datasets(_load_hub(part.path), part)
    rows = _tickets(_file_rows(part, note), part, config, note)
    return RowSource(rows, lambda: file_fingerprint(path, 0), notes)


def single_rows(path: str | Path, note: Note = lambda text: None) -> Rows:
    """The rows of data files as training reads them, one for each row of the files.

    Raises:
        DataError: several rows make one example, as the messages of tickets do; or an annotation tool wrote them.
    """
    rows = _file_rows(DataPart(path=str(path), format="auto"), note)
    for where, row in rows:
        if isinstance(row, Mapping) and (is_flat_tree(row) or is_ticket(row, where)):
            raise DataError(
                f"{where}: a message, of which several make a conversation; put them together first: "
                f"alignment data convert {shlex.quote(str(path))} chats.jsonl --to chat"
            )
        yield where, row
        break
    yield from rows


def _file_rows(part: DataPart, note: Note) -> Rows:
    """The rows of data files under the names that `columns` gives, and the reason in place of each that is refused."""
    columns = part.columns or {}
    rows = _renamed_rows(_known_case(read_rows(part.path, note), columns, note), columns)
    return _without_annotations(rows, part)


_ABOUT = ("readme", "license", "licence", "changelog", "contributing", "citation")
"""Names of texts about a data set, which are not learned beside it."""


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`; its `state.json` alone may have stayed behind."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and any(file.suffix == ".arrow" for file in path.iterdir())
    )


def _has_data_files(folder: Path) -> bool:
    try:
        return has_data_files(folder)
    except PermissionError:
        return False


def _tickets(rows: Rows, part: DataPart, config: DataConfig, note: Note) -> Rows:
    """The rows unchanged, or the conversations of support tickets, or trees of single messages; the first row tells."""
    first = list(itertools.islice(rows, 1))
    rows = itertools.chain(first, rows)
    is_tree = first and isinstance(first[0][1], Mapping) and is_flat_tree(first[0][1])
    if part.format in ("auto", "tree") and is_tree:
        return flat_trees(rows)
    if part.format == "tickets" or (part.format == "auto" and first and is_ticket(first[0][1], first[0][0])):
        return ticket_rows(rows, config.agents, lambda text: note(f"{part.path}: {text}"), part.columns)
    return rows


def _known_case(rows: Rows, columns: Mapping[str, str | None], note: Note) -> Rows:
    """The rows with keys such as `Prompt` or `COMPLETION ` in the case in which they are known.

    A key that `columns` names, or that stands beside the known one, is left as it is.
    """
    renames: dict[str, str] = {}
    for index, (where, row) in enumerate(rows):
        if not isinstance(row, dict):
            yield where, row
            continue
        if not index:
            renames = {
                key: known
                for key in row
                if isinstance(key, str)
                and (known := key.strip().lower()) != key
                and known in _KNOWN
                and known not in row
                and key not in columns.values()
            }
            if renames and len(set(renames.values())) == len(renames):
                note(f"{where}: read as {', '.join(renames.values())}: the keys {', '.join(map(repr, renames))}")
            else:
                renames = {}
        yield where, {renames.get(key, key): value for key, value in row.items()} if renames else row


def _without_annotations(rows: Rows, part: DataPart) -> Rows:
    """The rows, with the reason in place of those that an annotation tool exported; a named format is obeyed.

    Raises:
        DataError: the first row is one, so the file is an export.
    """
    for number, (where, row) in enumerate(rows):
        tool = annotation_format(row) if part.format == "auto" and isinstance(row, Mapping) else None
        if tool is not None and number == 0:
            raise DataError(f"{where}: {refusal(tool, part.path)}")
        yield where, row if tool is None else BadRow(refusal(tool, part.path))


def _renamed_rows(rows: Rows, columns: Mapping[str, str | None]) -> Rows:
    for where, row in rows:
        try:
            yield where, row if isinstance(row, BadRow) else renamed(row, columns)
        except BadRow as reason:
            yield where, reason


def renamed(row: Any, columns: Mapping[str, str | None]) -> Mapping[str, Any]:
    """The row with keys renamed by `columns`. A renamed column replaces one that already has the new name, and a name
    for which the file has nothing (None) is left out. A name may be a path into objects and lists
    (`response.choices.0.message`); the rest of such an outer key is not read.

    Raises:
        BadRow: the row is not an object, or a key is missing.
    """
    if not isinstance(row, dict):
        fix = '; write it as {"prompt": ..., "completion": ...}' if isinstance(row, list) else ""
        raise BadRow(f"expected an object with named keys, found a {type(row).__name__}{fix}")
    theirs = {ours: name for ours, name in columns.items() if name is not None}
    values = {ours: row[name] if name in row else inner_value(row, name) for ours, name in theirs.items()}
    missing = [theirs[ours] for ours, value in values.items() if value is MISSING_VALUE]
    if missing:
        failed = next((key for key in ("error", "exception") if not is_empty(row.get(key))), None)
        if failed:
            raise PassedOver(f"marked as failed ('{failed}'), and it has no '{missing[0]}'")
        raise BadRow(f"no key '{missing[0]}', which data.columns names; found {', '.join(map(str, row))[:300]}")
    for name in theirs.values():
        if name not in row and (lost := lost_beside(row, name, columns)):
            raise BadRow(lost)
    outer = {name.partition(".")[0].partition("[")[0] for name in theirs.values() if name not in row}
    taken = {*columns, *theirs.values(), *outer}
    return {key: row[key] for key in row if key not in taken} | values


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
    named = _without_annotations(_renamed_rows(rows, part.columns or {}), part)
    notes: list[str] = []
    return RowSource(_tickets(named, part, DataConfig(train=part.path), notes.append), fingerprint, notes)


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
