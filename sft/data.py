"""Demonstrations and texts as token ids and labels, on disk: the rows are never all in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from alignment.config.sections import DataConfig, TooLong
from alignment.data.check import Inspector
from alignment.data.encoding import encode_record, fit_record
from alignment.data.parsing import to_examples
from alignment.data.reading import Reading, Use, check_bad
from alignment.data.records import Demonstration, Document
from alignment.templates.rendering import Encoded, Unrenderable
from alignment.terminal import progress

IGNORED = -100
"""Label of a token without loss, as torch's cross entropy has it."""
FEATURES = datasets.Features(
    {name: datasets.Sequence(datasets.Value("int32")) for name in ("input_ids", "labels")},
)
_BATCH = 128  # rows that are in memory as Python numbers, at 36 bytes a token
_SHOWN_BYTES = 32 << 20  # progress of encoding is shown for training files of this size together


@dataclass(frozen=True)
class EncodedData:
    """The rows of a `data` section as `input_ids` and `labels`, and what became of those that are not among them."""

    train: datasets.Dataset
    eval: datasets.Dataset
    bad: list[tuple[str, str]]
    left_out: int
    """Rows that are too long, by `data.max_length` and `data.too_long`."""
    notes: list[str]
    fingerprints: dict[Use, list[dict[str, Any]]]
    shown: list[Demonstration]
    """The first held-out conversations, to be answered for people to read; tools are not offered to those."""
    _folder: tempfile.TemporaryDirectory[str]  # holds the rows; removed when nobody has them any more


def training_texts(config: DataConfig) -> Iterator[str]:
    """Every text that is trained on, and the roles: what a new tokenizer learns from."""
    for use, example in Reading(config, to_examples):
        if use == "eval":
            continue
        if isinstance(example, Document):
            yield example.text
        else:
            yield from (part for message in example.messages for part in (message["role"], message["content"]))


def encode_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    runs: Path | None = None,
    show: bool = False,
    inspector: Inspector | None = None,
    num_shown: int = 0,
) -> EncodedData:
    """Read and encode all rows, one after the other, into Arrow files that are mapped, not loaded.

    Args:
        runs: folder for the files, which may be as large as the data; the system's own for temporary files by default.
        show: progress, for long data.
        inspector: looks at each row on its way; what it reports must be refused where no row is left.
        num_shown: how many held-out conversations to keep as text.

    Raises:
        DataError: see `alignment.data.reading.Reading`; or too large a share of rows that the template cannot render.
    """
    folder = tempfile.TemporaryDirectory(prefix="rows-", dir=runs, ignore_cleanup_errors=True)
    reading = Reading(config, to_examples)
    uses: tuple[Use, ...] = ("train", "eval")
    writers = {
        use: ArrowWriter(features=FEATURES, path=f"{folder.name}/{use}.arrow", writer_batch_size=_BATCH) for use in uses
    }
    unrenderable: list[tuple[str, str]] = []
    written = dict.fromkeys(uses, 0)
    left_out = 0
    shown: list[Demonstration] = []
    with progress("encoding", 0, show and _size(config) >= _SHOWN_BYTES) as line:
        for use, example in reading:
            line.advance()
            note = _no_note if inspector is None else partial(inspector.look, held_out=use == "eval")
            try:
                rows = encode_example(example, tokenizer, config.max_length, config.too_long, note)
            except Unrenderable as reason:
                unrenderable.append((example.place, str(reason)))
                continue
            left_out += not rows
            written[use] += len(rows)
            if use == "eval" and rows and len(shown) < num_shown and isinstance(example, Demonstration):
                shown += [] if example.tools else [example]
            for row in rows:
                writers[use].write(row)
    check_bad(config.parts[0].path, sum(written.values()) + left_out, unrenderable, config.max_bad_share)
    for writer in writers.values():
        writer.finalize()
    empty = datasets.Dataset.from_dict({name: [] for name in FEATURES}, FEATURES)
    train, held_out = (
        datasets.Dataset.from_file(f"{folder.name}/{use}.arrow") if written[use] else empty for use in uses
    )
    bad = [*reading.bad, *unrenderable]
    if inspector is not None:
        for place, fault in bad:
            inspector.add_bad(place, fault)
    return EncodedData(train, held_out, bad, left_out, reading.notes(), reading.fingerprints, shown, folder)


def _no_note(example: Demonstration | Document, encoded: Encoded, fitted: Encoded | None) -> None:
    pass


def encode_example(
    example: Demonstration | Document,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong = "trim_prompt",
    note: Callable[[Demonstration | Document, Encoded, Encoded | None], None] = _no_note,
) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels`: a demonstration's labels are the assistant's tokens through EOS, everything else is
    ignored; none if it is too long (see `alignment.data.trimming.fit`). A text is trained on whole, in pieces.

    Args:
        note: is told all tokens, and those that are left (None: the example is left out as too long).

    Raises:
        Unrenderable: the template cannot render it.
    """
    encoded = encode_record(example, tokenizer)
    if isinstance(example, Document):
        note(example, encoded, encoded)
        ids = encoded.input_ids
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) > 1]
    fitted = fit_record(example, encoded, tokenizer, max_length, too_long)
    note(example, encoded, fitted)
    if fitted is None:
        return []
    kept = zip(fitted.input_ids, fitted.loss_mask, strict=True)
    return [{"input_ids": fitted.input_ids, "labels": [token if trained else IGNORED for token, trained in kept]}]


def row_groups(rows: datasets.Dataset) -> list[int]:
    """A number for each row, from 0 in order of appearance: the same for rows that begin alike, up to the first token
    that is trained on, so that several answers to one prompt stay together. A text without a prompt is its own."""
    groups: dict[bytes, int] = {}
    numbers = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        begin = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
        key = hashlib.sha256(np.asarray(ids[:begin] or ids, dtype=np.int64).tobytes()).digest()
        numbers.append(groups.setdefault(key, len(groups)))
    return numbers


def _size(config: DataConfig) -> int:
    paths = [Path(part.path) for part in config.parts]
    return sum(path.stat().st_size for path in paths if path.is_file())
