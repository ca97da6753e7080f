"""Ratings in and out of files, and out of the world: what `alignment rate import`, `export` and `forget` do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment.data.importers import PassedOver
from alignment.data.row_files import BadRow, Note, read_rows
from alignment.data.writers import row_writer
from alignment.errors import UserError
from alignment.labeling.entries import Entry, Stored
from alignment.labeling.rating_formats import FORMATS, FileFormat
from alignment.ratings import RatingsStore
from alignment.ratings.records import item_key
from alignment.registry import Registry
from alignment.registry.ratings import reached_by
from alignment.terminal import one_line

MAX_BAD_SHARE = 0.01
"""A larger share of rows that cannot be used, and nothing is imported; as `data.max_bad_share` of training."""


def import_file(store: RatingsStore, format: str, path: str | Path) -> dict[str, Any]:
    """Take the items and ratings of a file into the store, all or none; the same file again changes nothing.

    The nth item of the same texts in a file is the nth such item of the store. An answer that contradicts what the
    labeler said in the store already is set aside, as a row is that cannot be used.

    Returns:
        Counts: `rows`, `items`, `new_items`, `ratings`, `new_ratings` and `passed_over` (by reason); `bad`, the
        reason by the place of each row set aside; `notes`, how the file was read; `drops`, in words, what the format or
        this import leaves behind.

    Raises:
        UserError: no such format or file, nothing in it, or more than 1% of its rows are bad; nothing is imported.
    """
    chosen = _format(format)
    if not os.path.lexists(path) and os.access(Path(path).absolute().parent, os.X_OK):
        raise UserError(f"{path}: no such file; name a data file or a folder of them")
    known = {item.id for item in store.items()}
    counts = _Counts()
    with store.transaction():
        for place, read in _entries(path, chosen, counts.notes.append):
            counts.rows += 1
            if isinstance(read, PassedOver):
                counts.passed_over[str(read)] += 1
            elif isinstance(read, BadRow):
                counts.bad[place] = str(read)
            elif reasons := [reason for entry in read for reason in _import(store, entry, counts)]:
                counts.bad[place] = "; ".join(reasons)
        _check(path, counts.rows, counts.bad)
        for labeler in sorted(counts.simulated):
            store.people.mark_simulated(labeler)
    return {
        "format": format,
        "file": str(path),
        "rows": counts.rows,
        "items": len(counts.items),
        "new_items": len(counts.items - known),
        "ratings": counts.ratings,
        "new_ratings": counts.new_ratings,
        "passed_over": dict(counts.passed_over),
        "bad": counts.bad,
        "notes": counts.notes,
        "drops": chosen.import_drops,
    }


@dataclass
class _Counts:
    """How far an import is. `copies` counts the items of the same texts, `bad` has reasons by the place of a row."""

    rows: int = 0
    ratings: int = 0
    new_ratings: int = 0
    items: set[int] = field(default_factory=set)
    simulated: set[str] = field(default_factory=set)
    copies: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _import(store: RatingsStore, entry: Entry, counts: _Counts) -> Iterator[str]:
    """Take an item and its answers into the store; the reasons why it, or some of them, cannot be."""
    try:
        item = _add(store, entry, counts.copies)
    except UserError as reason:
        yield str(reason)
        return
    counts.items.add(item)
    counts.simulated |= entry.simulated
    for answer in entry.answers:
        try:
            counts.new_ratings += store.import_rating(item, **answer)
            counts.ratings += 1
        except UserError as reason:
            yield str(reason).removeprefix(f"{store.path}: ")


def _entries(path: str | Path, chosen: FileFormat, note: Note) -> Iterator[tuple[str, list[Entry] | BadRow]]:
    for place, row in read_rows(path, note):
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, Mapping):
                raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
            yield place, chosen.read(row)
        except BadRow as reason:
            yield place, reason


def _add(store: RatingsStore, entry: Entry, copies: Counter[str]) -> int:
    key = item_key(entry.kind, [dict(turn) for turn in entry.prompt], entry.completions)
    copies[key] += 1
    return store.add_item(
        entry.prompt, entry.completions, entry.need, entry.metadata, entry.kind, entry.gold, copy=copies[key] - 1
    )


def _check(path: str | Path, rows: int, bad: dict[str, str]) -> None:
    if rows == 0:
        raise UserError(f"{path}: no rows in it; expected at least one")
    if len(bad) > MAX_BAD_SHARE * rows:
        place, reason = next(iter(bad.items()))
        raise UserError(
            f"{place}: {reason} ({len(bad)} of {rows} rows cannot be used, 1 in 100 may); nothing "
            "was imported: mend the rows, or name another --format"
        )


def export_file(store: RatingsStore, format: str, path: str | Path) -> dict[str, Any]:
    """Write the store's items and ratings to a new file, in one piece or not at all.

    Returns:
        Counts: `rows` written, `items` and `ratings` of the store (skips and controls too), `left_out` by reason;
        `drops`, in words, what the format has no room for.

    Raises:
        UserError: no such format, a suffix that it is not written with, a file that exists, or nothing to write.
    """
    chosen = _format(format)
    stored = Stored(
        store.items(), store.ratings(skips=True), store.ratings(for_training=True), store.people.simulated()
    )
    left_out: Counter[str] = Counter()
    rows = 0
    with row_writer(Path(path), suffixes=chosen.suffixes) as write:
        for row in chosen.write(stored, left_out):
            write(row)
            rows += 1
        if rows == 0:
            reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it has no items"
            raise UserError(f"{store.path}: nothing to write as {format}: {reasons}")
    return {
        "format": format,
        "file": str(path),
        "rows": rows,
        "items": len(stored.items),
        "ratings": len(stored.ratings),
        "left_out": dict(left_out),
        "drops": chosen.export_drops,
    }


def _format(name: str) -> FileFormat:
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


# --- forget --------------------------------------------------------------------------------------------------------


def forget(db: str | Path, labeler: str, registry_path: str | Path | None = None) -> dict[str, Any]:
    """Remove a labeler from the store and list the models of a registry that learned from their ratings.

    The models stay: what to do about them is a person's decision.

    Returns:
        `ratings` removed; `hash`, which stands for the labeler in manifests; `registry` that was searched and how many
        `versions` it holds; `models`, each with its `ref`, the number
        of `ratings` of theirs that it was trained on itself (0: it was made with such a model), and `through`, the
        references of its own ancestors that were; `unreadable`, versions whose manifest could not be read.

    Raises:
        UserError: no such store; or the labeler's bytes could not be wiped because another program has the file open.
    """
    registry = Registry(registry_path)
    with RatingsStore(db) as store:
        hashed = store.people.labeler_hash(labeler)
        reached, unreadable = reached_by(registry, hashed)  # first: a bad registry stops all
        removed = store.people.forget(labeler)
    return {
        "labeler": labeler,
        "hash": hashed,
        "ratings": removed,
        "registry": str(registry.path),
        "versions": sum(len(registry.numbers(name)) for name in registry.names()),
        "models": [{"ref": each.ref, "ratings": each.ratings, "through": list(each.through)} for each in reached],
        "unreadable": unreadable,
    }


def show_forgotten(found: dict[str, Any], console: Console, called: str = "alignment rate") -> None:
    """Print what `forget` did and found."""
    console.print(f"{one_line(found['labeler'])}: {found['ratings']} ratings removed; {found['hash']} in manifests")
    if not found["ratings"]:
        console.print(f"There are no ratings by this name here (any more); {called} report lists the labelers.")
    for model in found["models"]:
        origin = [f"trained on {model['ratings']} ratings of theirs"] * bool(model["ratings"])
        origin += [f"made with {', '.join(map(one_line, model['through']))}"] * bool(model["through"])
        console.print(f"  {one_line(model['ref'])}: {'; '.join(origin)}")
    if found["models"]:
        console.print("These models stay. Train them anew on what is left, or say why they may stay.")
    elif found["versions"]:
        console.print(f"No model in the registry {one_line(found['registry'])} was trained on their ratings.")
    else:
        console.print(
            f"There are no models in the registry {one_line(found['registry'])}; if yours are in another, run this"
            " again with --registry."
        )
    for problem in found["unreadable"]:
        console.print(f"  cannot be read, so nobody knows: {one_line(problem)}")
