"""Split a data set into a training and a test file that share no prompt, nor nearly equal prompts."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.duplicates import Groups, Sketches, digest
from alignment.data.keys import PASSAGE_NAMES
from alignment.data.opening import suffix_of
from alignment.data.parsing import to_examples, to_prompts
from alignment.data.reading import check_bad, is_held_out
from alignment.data.records import Demonstration, Document, Prompt
from alignment.data.row_files import LINES, BadRow, DataError, data_files, file_fingerprint, jsonl_lines, read_rows
from alignment.data.sources import single_rows
from alignment.files import new_file

PASSAGE_KEYS = (*PASSAGE_NAMES, "context", "documents")
"""Keys of a row that identify its source passage: rows of one passage stay together."""
TRAIN, TEST = "train.jsonl", "test.jsonl"


@dataclass(frozen=True)
class Split:
    """The side of each row of a source: `is_test`, (rows,), in the order of reading; None for a row set aside."""

    is_test: list[bool | None]
    bad: list[tuple[str, str]]
    num_groups: int
    num_unseen: int

    @property
    def counts(self) -> dict[str, int]:
        return {"train": self.is_test.count(False), "test": self.is_test.count(True)}


def plan_split(
    path: str | Path, share: float, seed: int, advance: Callable[[], None] = lambda: None, max_bad_share: float = 0.01
) -> Split:
    """Assign each row of a path to a side.

    Rows with the same prompt (the first human turn, normalized), nearly the same prompt, or the same passage form a
    group. `alignment.data.reading.is_held_out` of one row decides for its group; about `share` of the groups are test.

    Raises:
        DataError: there are too many bad rows, or one side is empty.
    """
    usable = bytearray()
    sides, groups, sketches = bytearray(), array("Q"), Sketches()
    passages: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    for where, row in single_rows(path):
        advance()
        try:
            group, is_test = _place(row, share, seed)
        except BadRow as error:
            bad.append((where, str(error)))
            usable.append(False)
            continue
        for key in PASSAGE_KEYS:
            if row.get(key) not in (None, "", [], {}):
                value = json.dumps(row[key], sort_keys=True, default=str)
                passages.append((len(groups), digest(f"{key}\0{value}")))
        usable.append(True)
        sides.append(is_test)
        groups.append(digest(group))
        sketches.add(group)
    check_bad(str(path), len(groups), bad, max_bad_share)
    labels = _group_labels(groups, sketches, passages)
    deciders = _deciders(labels, np.frombuffer(groups, np.uint64))
    test = np.frombuffer(sides, np.uint8).astype(bool)[deciders]
    for side, empty_side in ((test, "test"), (~test, "train")):
        if not side.any():
            raise DataError(
                f"{path}: all {len(groups)} rows fell on one side, so {empty_side} is empty; "
                "change --test or --seed, or give more rows"
            )
    assigned = iter(test.tolist())
    return Split([next(assigned) if ok else None for ok in usable], bad, len(np.unique(labels)), sketches.num_unseen)


def _place(row: Any, share: float, seed: int) -> tuple[str, bool]:
    """A row's prompt group, and whether `is_held_out` selects it."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
    try:
        records: Sequence[Demonstration | Document | Prompt] = to_examples(row)
    except BadRow as error:
        try:
            records = to_prompts(row)
        except BadRow:
            raise error from None
    # The records of one row (a tree, the instances of an instruction) stay together; the first decides.
    return records[0].group, is_held_out(records[0], share, seed)


def _group_labels(groups: array[int], sketches: Sketches, passages: list[tuple[int, int]]) -> NDArray[np.int64]:
    disjoint_sets = Groups(len(groups))
    disjoint_sets.join_equal(np.frombuffer(groups, np.uint64))
    disjoint_sets.join_equal(sketches.labels())
    rows = sorted(passages, key=lambda passage: passage[1])
    for (one, key), (other, next_key) in itertools.pairwise(rows):
        if key == next_key:
            disjoint_sets.join(one, other)
    return disjoint_sets.labels()


def _deciders(labels: NDArray[np.int64], groups: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The row that decides for each row's group: the one with the smallest prompt hash, whatever the order of rows."""
    order = np.lexsort((groups, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    chosen = np.empty(len(labels), np.int64)
    chosen[labels[order][starts]] = order[starts]
    return chosen[labels]


def write_split(path: str | Path, split: Split, folder: Path) -> dict[str, Any]:
    """Write train.jsonl and test.jsonl: lines of JSONL files are copied byte for byte, other rows become JSON lines.

    Returns:
        The fingerprint of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        new_file(folder / TRAIN) as train_part,
        new_file(folder / TEST) as test_part,
        train_part.open("wb") as train,
        test_part.open("wb") as test,
    ):
        for line, is_test in zip(_lines(path), split.is_test, strict=True):
            if is_test is not None:
                (test if is_test else train).write(line.rstrip(b"\n") + b"\n")
    counts = split.counts
    return {side: file_fingerprint(folder / f"{side}.jsonl", counts[side]) for side in ("train", "test")}


def _lines(path: str | Path) -> Iterator[bytes]:
    """Yield one line for each row of `read_rows`."""
    for file in data_files(path):
        if suffix_of(file.name) in LINES:
            for _, line in jsonl_lines(file):
                yield line
        else:
            for _, row in read_rows(file):
                yield json.dumps(row, ensure_ascii=False).encode() if isinstance(row, Mapping) else b""
