"""Read, mix, check and split records: prompts, demonstrations, documents and comparisons.

`alignment.data.sources` finds the rows of a path, and `alignment.data.formats` the conversation in a row. A bad row is
reported by file and line with the reason, set aside and counted. A fraction of bad rows above `data.max_bad_share`
stops the run before training. Splits are by prompt group (the first human turn), never by row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from alignment.config.sections import DataConfig, DataPart, Format
from alignment.data.formats import unused_keys, warnings_of
from alignment.data.importers import PassedOver
from alignment.data.messages import unused_of_turns
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import RowSource, open_source
from alignment.data.votes import UncertainChoice

# --- one pass over a data section ----------------------------------------------------------------------------------

R = TypeVar("R", bound=Prompt | Demonstration | Document | Comparison | CompletionRating)
Convert = Callable[[Mapping[str, Any], Format], Sequence[R]]
Use = Literal["train", "eval"]


WARNED = {
    "held_out": "kept for tests by a key of theirs, and read all the same",
    "flagged": "flagged as harmful by a key of theirs, and read all the same",
}
"""What notes say of marked rows, by the effect of the mark."""


class Reading(Generic[R]):
    """One streaming pass over the sources of a `data` section; its counts and fingerprints are final when it ends.

    Iterating yields ("train" or "eval", record): held-out records once, training records as often as the weight of
    their part says. With `data.eval`, rows of `data.train` that have one of its prompts are left out.

    Args:
        convert: one of to_examples, to_demonstrations, to_comparisons, to_judgements, to_prompts.
        open: returns the rows of a part.
        also_read: keys that `convert` reads beside those of the row's shape.

    Raises:
        DataError: raised while iterating, for an empty source, too many bad rows, or no rows left to train on.
    """

    def __init__(
        self,
        config: DataConfig,
        convert: Convert[R],
        open: Callable[[DataPart, DataConfig], RowSource] = open_source,
        also_read: Collection[str] = (),
    ) -> None:
        self.config, self._convert, self._open, self._also_read = config, convert, open, frozenset(also_read)
        self.bad: list[tuple[str, str]] = []
        self.passed_over: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.unused: dict[str, dict[str, None]] = {}
        self._unused_of_turns: dict[str, set[str]] = {}
        self._are_prompts = False
        self.leaked = 0
        self._source_notes: list[str] = []
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
        if not sum(fingerprint["rows"] for fingerprint in self.fingerprints["train"]):
            if config.eval is None:
                num_eval = sum(fingerprint["rows"] for fingerprint in self.fingerprints["eval"])
                raise DataError(f"{config.parts[0].path}: all {num_eval} rows are held out; lower data.eval_share")
            raise DataError(f"{config.parts[0].path}: each of its prompts is in data.eval={config.eval} too")

    def notes(self) -> list[str]:
        """Notes about how files were read, and about rows that were neither bad nor used."""
        notes = self._source_notes + [f"{count} skipped: {reason}" for reason, count in self.passed_over.items()]
        notes += [f"{count} rows: {remark}" for remark, count in self.remarks.items()]
        where = "given to reward functions alone" if self._are_prompts else "not used"
        notes += [f"{path}: {where}: {', '.join(sorted(names))}" for path, names in self.unused.items() if names]
        notes += [
            f"{path}: not used in turns: {', '.join(sorted(names))}"
            for path, names in self._unused_of_turns.items()
            if names
        ]
        if self.leaked:
            notes.append(
                f"{self.leaked} rows of data.train left out: their prompts are in data.eval={self.config.eval}"
            )
        return notes

    def unused_keys(self) -> list[str]:
        """The keys that mean nothing to us, of all sources."""
        return list(dict.fromkeys(name for names in self.unused.values() for name in names))

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
                repeats = _num_repeats(part.weight, f"{config.split_seed}\0{num_read}")
                counts["train"] += repeats
                for _ in range(repeats):
                    yield "train", record
            if num_read == part.cap:
                break
        self.bad += bad
        self._source_notes += source.notes
        if not num_read and not bad and self.passed_over:
            reason, count = self.passed_over.most_common(1)[0]
            raise DataError(f"{part.path}: none of its rows gives an example: {count} skipped: {reason}")
        check_bad(part.path, num_read, bad, config.max_bad_share)
        is_split = config.eval is None and config.eval_share > 0
        uses: tuple[Use, ...] = ("train", "eval") if is_split else (use,)
        split = {"split": self._split()} if is_split else {}
        fingerprint = source.fingerprint() | _mixing_settings(part) | split
        for side in uses:
            self.fingerprints[side].append(fingerprint | {"rows": counts[side], "use": side})

    def _records(self, source: RowSource, part: DataPart, bad: list[tuple[str, str]]) -> Iterator[R]:
        format, unused = part.format or "auto", self.unused.setdefault(part.path, {})
        of_turns = self._unused_of_turns.setdefault(part.path, set())
        for where, row in source.rows:
            try:
                if isinstance(row, BadRow):
                    raise row
                if not isinstance(row, Mapping):
                    yield replace(row, place=where)
                    continue
                unused.update(dict.fromkeys(key for key in unused_keys(row, format) if key not in self._also_read))
                of_turns |= unused_of_turns(row)
                for record in self._convert(row, format):
                    if isinstance(record, Demonstration):
                        self.remarks.update(record.notes)
                    self._are_prompts = isinstance(record, Prompt)
                    yield replace(record, place=where)
                self.remarks.update(f"{WARNED[effect]} ({key})" for effect, key in warnings_of(row, format))
            except UncertainChoice as error:
                raise DataError(f"{where}: {error}") from None
            except PassedOver as error:
                self.passed_over[str(error)] += 1
            except BadRow as error:
                bad.append((where, str(error)))

    def _split(self) -> str:
        return f"by prompt group, {self.config.eval_share:g} held out, seed {self.config.split_seed}"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _num_repeats(weight: float, key: str) -> int:
    """Number of times a row of this weight is used: its integer part, plus one with the probability of the fraction."""
    whole, fraction = divmod(weight, 1)
    return int(whole) + (fraction > 0 and int.from_bytes(_digest(key)[:8], "big") < fraction * 2**64)


def _mixing_settings(part: DataPart) -> dict[str, Any]:
    """The settings of a part that decide which rows are used, for its fingerprint; defaults are left out."""
    settings = {"weight": part.weight, "cap": part.cap, "format": part.format, "columns": part.columns}
    defaults: dict[str, Any] = {"weight": 1.0, "cap": None, "format": "auto", "columns": {}}
    return {key: value for key, value in settings.items() if value != defaults[key]}


def is_held_out(
    record: Prompt | Demonstration | Document | Comparison | CompletionRating, share: float, seed: int
) -> bool:
    """Return whether a record's prompt group is held out.

    A hash of the group's text decides, so that adding rows never moves a prompt from one side to the other.
    """
    digest = hashlib.sha256(f"{seed}\0{record.group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_bad(source: str, num_good: int, bad: Sequence[tuple[str, str]], max_bad_share: float) -> None:
    """Raise DataError if a source is empty or too many of its rows are bad."""
    total = num_good + len(bad)
    if total == 0:
        raise DataError(f"{source}: the data set is empty; expected at least one row")
    if len(bad) > max_bad_share * total:
        where, reason = bad[0]
        more = f" ({len(bad)} of {total} rows are bad, data.max_bad_share is {max_bad_share:g})"
        raise DataError(f"{where}: {reason}{more}; fix the rows or raise data.max_bad_share")


# --- a whole data section in memory --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records(Generic[R]):
    """Records for one use, the rows set aside, and the fingerprints of their sources."""

    items: list[R]
    bad: list[tuple[str, str]]
    fingerprints: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Keys that mean nothing to us."""


def read_records(path: str | Path, convert: Convert[R], config: DataConfig) -> Records[R]:
    """Every record of one path; nothing is held out.

    Raises:
        DataError: see `Reading`.
    """
    whole = config.model_copy(update={"train": str(path), "eval": None, "eval_share": 0.0})
    return train_and_eval(whole, convert)[0]


def train_and_eval(
    config: DataConfig,
    convert: Convert[R],
    open: Callable[[DataPart, DataConfig], RowSource] = open_source,
    also_read: Collection[str] = (),
) -> tuple[Records[R], Records[R]]:
    """The training and held-out records that a `data` section names.

    Args:
        convert, open, also_read: see `Reading`.

    Raises:
        DataError: see `Reading`.
    """
    reading = Reading(config, convert, open, also_read)
    items: dict[Use, list[R]] = {"train": [], "eval": []}
    for use, record in reading:
        items[use].append(record)
    fingerprints = reading.fingerprints
    train = Records(items["train"], reading.bad, fingerprints["train"], reading.notes(), reading.unused_keys())
    return train, Records(items["eval"], [], fingerprints["eval"])
