"""Records: prompts, demonstrations, texts and comparisons; reading, mixing, checking and splitting them.

`alignment.data.sources` finds the rows behind a path, `alignment.data.formats` the conversation in a row. A bad row is
named by file and line with the reason, set aside and counted; more than `data.max_bad_share` of them stops the run
before training. Splits are by prompt group (the first human turn), never by row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.importers import PassedOver
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import RowSource, open_source

# --- rows to records -----------------------------------------------------------------------------------------------


# --- one pass over a data section ----------------------------------------------------------------------------------

R = TypeVar("R", bound=Prompt | Demonstration | Document | Comparison | CompletionRating)
Convert = Callable[[Mapping[str, Any], Format], Sequence[R]]
Use = Literal["train", "eval"]


class Reading(Generic[R]):
    """One pass over the sources that a `data` section names, row by row; what it met is known when it is through.

    Iterating yields ("train" or "eval", record): held-out records once, those to train on as often as the weight of
    their part says. Where `data.eval` is named, rows of `data.train` with one of its prompts are left out.

    Args:
        convert: one of to_examples, to_demonstrations, to_comparisons, to_judgements, to_prompts.
        open: what finds the rows behind a part.

    Raises:
        DataError: from the iteration: nothing there, too large a share of bad rows, or nothing left to train on.
    """

    def __init__(
        self, config: DataConfig, convert: Convert[R], open: Callable[[DataPart, DataConfig], RowSource] = open_source
    ) -> None:
        self.config, self._convert, self._open = config, convert, open
        self.bad: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()
        self.leaked = 0
        self.fingerprints: dict[Use, list[dict[str, Any]]] = {"train": [], "eval": []}

    def __iter__(self) -> Iterator[tuple[Use, R]]:
        config = self.config
        held_out: set[bytes] = set()
        if config.eval_part is not None:
            for use, record in self._read(config.eval_part, "eval"):
                held_out.add(_digest(record.group))
                yield use, record
        for part in config.parts:
            yield from self._read(part, "train", held_out)
        if not sum(mark["rows"] for mark in self.fingerprints["train"]):
            if config.eval is None:
                rows = sum(mark["rows"] for mark in self.fingerprints["eval"])
                raise DataError(
                    f"{config.parts[0].path}: all {rows} rows fell into the held-out share; lower data.eval_share"
                )
            raise DataError(f"{config.parts[0].path}: each of its prompts stands in data.eval={config.eval} too")

    def notes(self) -> list[str]:
        """What a person should know about rows that were neither bad nor used."""
        notes = [f"{count} passed over: {reason}" for reason, count in self.passed_over.items()]
        if self.leaked:
            notes.append(
                f"{self.leaked} rows of data.train left out: their prompts stand in data.eval={self.config.eval}"
            )
        return notes

    def _read(self, part: DataPart, use: Use, held_out: Collection[bytes] = ()) -> Iterator[tuple[Use, R]]:
        config = self.config
        source = self._open(part, config)
        num_read = 0
        bad: list[tuple[str, str]] = []
        counts: Counter[Use] = Counter()
        for record in self._records(source, part, bad):
            num_read += 1
            if use == "eval" or (config.eval is None and is_held_out(record, config.eval_share, config.split_seed)):
                counts["eval"] += 1
                yield "eval", record
            elif _digest(record.group) in held_out:
                self.leaked += 1
            else:
                times = _times(part.weight, f"{config.split_seed}\0{num_read}")
                counts["train"] += times
                for _ in range(times):
                    yield "train", record
            if num_read == part.cap:
                break
        self.bad += bad
        check_bad(part.path, num_read, bad, config.max_bad_share)
        is_split = config.eval is None and config.eval_share > 0
        uses: tuple[Use, ...] = ("train", "eval") if is_split else (use,)
        split = {"split": self._split()} if is_split else {}
        mark = source.fingerprint() | _mixing(part) | split
        for side in uses:
            self.fingerprints[side].append(mark | {"rows": counts[side], "use": side})

    def _records(self, source: RowSource, part: DataPart, bad: list[tuple[str, str]]) -> Iterator[R]:
        for where, row in source.rows:
            try:
                if isinstance(row, BadRow):
                    raise row
                for record in self._convert(row, part.format or "auto") if isinstance(row, Mapping) else [row]:
                    yield replace(record, place=where)
            except PassedOver as reason:
                self.passed_over[str(reason)] += 1
            except BadRow as reason:
                bad.append((where, str(reason)))

    def _split(self) -> str:
        return f"by prompt group, {self.config.eval_share:g} held out, seed {self.config.split_seed}"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _times(weight: float, key: str) -> int:
    """How often a row of this weight is used: the whole part, and once more with the probability of the rest."""
    whole, rest = divmod(weight, 1)
    return int(whole) + (rest > 0 and int.from_bytes(_digest(key)[:8], "big") < rest * 2**64)


def _mixing(part: DataPart) -> dict[str, Any]:
    """What of a part's settings decides which rows are used, for its fingerprint."""
    settings = {"weight": part.weight, "cap": part.cap, "format": part.format, "columns": part.columns}
    defaults: dict[str, Any] = {"weight": 1.0, "cap": None, "format": "auto", "columns": {}}
    return {key: value for key, value in settings.items() if value != defaults[key]}


def is_held_out(
    record: Prompt | Demonstration | Document | Comparison | CompletionRating, share: float, seed: int
) -> bool:
    """Whether a record's prompt group is held out.

    A group goes by the hash of its own text, so that adding rows never moves a prompt from one side to the other.
    """
    digest = hashlib.sha256(f"{seed}\0{record.group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_bad(source: str, num_good: int, bad: Sequence[tuple[str, str]], max_bad_share: float) -> None:
    """Stop before training when a source is empty or too much of it is bad."""
    total = num_good + len(bad)
    if total == 0:
        raise DataError(f"{source}: the data set is empty; expected at least one row")
    if len(bad) > max_bad_share * total:
        where, reason = bad[0]
        more = f" ({len(bad)} of {total} rows are bad, data.max_bad_share is {max_bad_share:g})"
        raise DataError(f"{where}: {reason}{more}; mend the rows or raise data.max_bad_share")


# --- a whole data section in memory --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records(Generic[R]):
    """Records for one use, what was set aside of them, and what identifies their sources."""

    items: list[R]
    bad: list[tuple[str, str]]
    fingerprints: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def read_records(path: str | Path, convert: Convert[R], config: DataConfig) -> Records[R]:
    """Every record behind one path; nothing is held out.

    Raises:
        DataError: see `Reading`.
    """
    whole = config.model_copy(update={"train": str(path), "eval": None, "eval_share": 0.0})
    return train_and_eval(whole, convert)[0]


def train_and_eval(
    config: DataConfig, convert: Convert[R], open: Callable[[DataPart, DataConfig], RowSource] = open_source
) -> tuple[Records[R], Records[R]]:
    """The training and held-out records that a `data` section names.

    Raises:
        DataError: see `Reading`.
    """
    reading = Reading(config, convert, open)
    items: dict[Use, list[R]] = {"train": [], "eval": []}
    for use, record in reading:
        items[use].append(record)
    marks = reading.fingerprints
    train = Records(items["train"], reading.bad, marks["train"], reading.notes())
    return train, Records(items["eval"], [], marks["eval"])
