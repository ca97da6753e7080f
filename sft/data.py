"""Encode demonstrations and documents as token ids and labels on disk, so that rows are never all in memory.

Which tokens have a label is decided by `alignment.templates.rendering`; here the mask becomes labels.
"""

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
from alignment.data.encoding import encode_parts, fit_record
from alignment.data.parsing import to_examples
from alignment.data.reading import Reading, Use, check_bad
from alignment.data.records import Demonstration, Document
from alignment.ratings.preferred import open_demonstrations
from alignment.templates.rendering import Encoded, Unrenderable
from alignment.terminal import progress

IGNORED = -100
"""Label of a token without loss, as in torch's cross entropy."""
FEATURES = datasets.Features(
    {name: datasets.Sequence(datasets.Value("int32")) for name in ("input_ids", "labels")},
)
_BATCH = 128  # rows in memory as Python integers, at 36 bytes a token
_SHOWN_BYTES = 32 << 20  # the progress of encoding is shown from this total file size on


@dataclass(frozen=True)
class EncodedData:
    """The rows of a `data` section as `input_ids` and `labels`, and the rows that were left out."""

    train: datasets.Dataset
    eval: datasets.Dataset
    bad: list[tuple[str, str]]
    left_out: int
    """Number of examples without a row: too long, by `data.max_length` and `data.too_long`; or a document of under two
    tokens."""
    notes: list[str]
    fingerprints: dict[Use, list[dict[str, Any]]]
    samples: list[Demonstration]
    """The first held-out conversations without tools, whose prompts the model answers for the report."""
    _folder: tempfile.TemporaryDirectory[str]  # holds the rows; it is removed with the last reference


def training_texts(config: DataConfig) -> Iterator[str]:
    """Yield every training text and role, on which a new tokenizer is trained."""
    for use, example in Reading(config, to_examples, open_demonstrations):
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
    show_progress: bool = False,
    inspector: Inspector | None = None,
    num_samples: int = 0,
) -> EncodedData:
    """Stream all rows into memory-mapped Arrow files of token ids and labels.

    Args:
        runs: folder for the files, which may be as large as the data; the default is the system's temporary folder.
        show_progress: for large data.
        inspector: checks each row; its report must be refused if no row is left.
        num_samples: number of held-out conversations to keep as text.

    Raises:
        DataError: see `alignment.data.reading.Reading`; or the template cannot render too many rows.
    """
    folder = tempfile.TemporaryDirectory(prefix="rows-", dir=runs, ignore_cleanup_errors=True)
    reading = Reading(config, to_examples, open_demonstrations)
    uses: tuple[Use, ...] = ("train", "eval")
    writers = {
        use: ArrowWriter(features=FEATURES, path=f"{folder.name}/{use}.arrow", writer_batch_size=_BATCH) for use in uses
    }
    unrenderable: list[tuple[str, str]] = []
    written = dict.fromkeys(uses, 0)
    left_out = 0
    samples: list[Demonstration] = []
    with progress("encoding", 0, show_progress and _size(config) >= _SHOWN_BYTES) as line:
        for use, example in reading:
            line.advance()
            inspect = _ignore if inspector is None else partial(inspector.look, held_out=use == "eval")
            try:
                rows = encode_example(example, tokenizer, config.max_length, config.too_long, inspect)
            except Unrenderable as error:
                unrenderable.append((example.place, str(error)))
                continue
            left_out += not rows
            written[use] += len(rows)
            if use == "eval" and rows and len(samples) < num_samples and isinstance(example, Demonstration):
                samples += [] if example.tools else [example]
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
        inspector.add_unused(reading.unused_keys())
        for place, problem in bad:
            inspector.add_bad(place, problem)
    return EncodedData(train, held_out, bad, left_out, reading.notes(), reading.fingerprints, samples, folder)


def _ignore(example: Demonstration | Document, encoded: Encoded, fitted: Encoded | None) -> None:
    pass


def encode_example(
    example: Demonstration | Document,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong = "trim_prompt",
    inspect: Callable[[Demonstration | Document, Encoded, Encoded | None], None] = _ignore,
) -> list[dict[str, list[int]]]:
    """Encode an example as rows of `input_ids` and `labels`.

    A demonstration's labels are the assistant's tokens through EOS, but for turns with `weight: 0` (decided by
    `alignment.templates.rendering`); it has no row if it is too long (see `alignment.data.trimming.fit`). All tokens of
    a document have labels; it is split into chunks.

    Args:
        inspect: called with all tokens and the trimmed ones (None if the example is left out as too long).

    Raises:
        Unrenderable: the template cannot render it.
    """
    rows: list[dict[str, list[int]]] = []
    for part, encoded in encode_parts(example, tokenizer):
        rows += _rows(part, encoded, tokenizer, max_length, too_long, inspect)  # type: ignore[arg-type]
    return rows


def _rows(
    example: Demonstration | Document,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong,
    inspect: Callable[[Demonstration | Document, Encoded, Encoded | None], None],
) -> list[dict[str, list[int]]]:
    if isinstance(example, Document):
        inspect(example, encoded, encoded)
        ids = encoded.input_ids
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) > 1]
    fitted = fit_record(example, encoded, tokenizer, max_length, too_long)
    inspect(example, encoded, fitted)
    if fitted is None:
        return []
    masked = zip(fitted.input_ids, fitted.loss_mask, strict=True)
    return [{"input_ids": fitted.input_ids, "labels": [token if trained else IGNORED for token, trained in masked]}]


def row_groups(rows: datasets.Dataset) -> list[int]:
    """A group index for each row, numbered by first appearance. Rows with the same tokens before the first label, such
    as several answers to one prompt, are in one group. A document is a group of its own."""
    groups: dict[bytes, int] = {}
    group_of_row = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        prompt_length = next((position for position, label in enumerate(labels) if label != IGNORED), 0)
        key = hashlib.sha256(np.asarray(ids[:prompt_length] or ids, dtype=np.int64).tobytes()).digest()
        group_of_row.append(groups.setdefault(key, len(groups)))
    return group_of_row


def _size(config: DataConfig) -> int:
    paths = [Path(part.path) for part in config.parts]
    return sum(path.stat().st_size for path in paths if path.is_file())
