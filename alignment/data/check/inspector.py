"""Inspect rows in one streaming pass.

Each row is reduced to a few numbers, four hashes and two sketches (about 330 bytes; sketches only for the first million
rows). Its text is not kept, so 2 GB of rows are checked in half a gigabyte of memory.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignment.config.sections import DataConfig, Format
from alignment.data import formats
from alignment.data.check.conversation import MARKERS, turn_problems
from alignment.data.duplicates import Sketches, digest
from alignment.data.encoding import Record, encode_record, fit_record
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_comparisons, to_examples, to_prompts
from alignment.data.privacy import scrub_row
from alignment.data.reading import is_held_out
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow
from alignment.templates.rendering import Encoded, Message, TemplateError, Unrenderable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PLACES = 100_000
"""Maximum number of places in a report for each reason; `alignment data check --bad FILE` has no limit."""
MAX_REASONS = 50
MAX_EXAMPLES = 20


class Places:
    """The places of rows (`file:12`), stored in a dozen bytes each."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._head, self._line = array("I"), array("Q")

    def add(self, where: str) -> None:
        head = where.rstrip("0123456789")
        line = where[len(head) :]
        if not line or line[0] == "0" or len(line) > 18:
            head, line = where, ""
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._line.append(int(line or 0))

    def __len__(self) -> int:
        return len(self._head)

    def __getitem__(self, row: int) -> str:
        head = next(text for text, index in self._heads.items() if index == self._head[row])
        return f"{head}{self._line[row] or ''}"


@dataclass
class Seen:
    """The number of rows with a property, and the places of the first ones."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, where: str, limit: int = MAX_EXAMPLES) -> None:
        self.count += 1
        if len(self.places) < limit:
            self.places.append(where)


class Inspector:
    """Collects counts and hashes of rows, one row at a time, for `report_of`.

    Args:
        config: `max_length`, `too_long`, `eval_share` and `split_seed` are used as training uses them.
        tokenizer: lengths are in its tokens; None: lengths are in words.
        validate: returns the error of an answer that must match a JSON schema, or None.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        validate: Callable[[str], str | None] | None = None,
    ) -> None:
        self.config, self.tokenizer, self.validate = config, tokenizer, validate
        self.num_rows = self.num_bad = self.num_pairs = self.num_chosen_longer = 0
        self.set_aside: dict[str, tuple[str, Seen]] = {}
        self.passed_over: dict[str, Seen] = {}
        self.shapes: Counter[str] = Counter()
        self.personal: dict[str, Seen] = {}
        self.num_personal: Counter[str] = Counter()
        self.file_notes: list[str] = []  # how files were read
        self.seen: dict[str, Seen] = {}
        self.places = Places()
        self.held_out = bytearray()
        # 64-bit hashes of each record: the first human turn, everything before the answer, the question of a possible
        # contradiction, and the answer.
        self.groups, self.prompts, self.questions, self.answers = (array("Q") for _ in range(4))
        self.texts, self.group_sketches = Sketches(), Sketches()
        self.lengths, self.answer_lengths = array("Q"), array("Q")
        self.num_tokens = self.num_trained = 0
        self._last: Record | CompletionRating | None = None
        self._markers = tuple(dict.fromkeys((*MARKERS, *(tokenizer.all_special_tokens if tokenizer else ()))))

    def add(
        self, where: str, row: Any, format: Format = "auto", held_out: bool | None = None
    ) -> tuple[Any, str | None]:
        """Inspect a row of a file; `held_out` None: the config's split decides.

        Returns:
            The scrubbed row, and the reason why it cannot be used or None.
        """
        scrubbed = row if isinstance(row, BadRow) else self._scrubbed(where, row)
        try:
            records = self._records(row, format)
            encodings = [self._encoded(where, record) for record in records]
        except PassedOver as error:
            self.num_rows += 1
            self.passed_over.setdefault(str(error), Seen()).add(where)
            return scrubbed, None
        except (BadRow, Unrenderable) as error:
            self.add_bad(where, str(error))
            return scrubbed, str(error)
        self.num_rows += 1
        for record, encoding in zip(records, encodings, strict=True):
            config = self.config
            side = is_held_out(record, config.eval_share, config.split_seed) if held_out is None else held_out
            self._add_record(replace(record, place=where), side)
            if encoding is not None and self.tokenizer is not None:
                fitted: Encoded | None = encoding
                if isinstance(record, Demonstration | Comparison):  # a document is chunked without loss
                    fitted = fit_record(record, encoding, self.tokenizer, config.max_length, config.too_long)
                self._measure(where, encoding, fitted)
        return scrubbed, None

    @property
    def num_kept(self) -> int:
        """Number of usable records."""
        return len(self.places)

    def add_bad(self, where: str, reason: str) -> None:
        """Count a row that cannot be used."""
        self.num_rows += 1
        self.num_bad += 1
        kind = re.sub(r"\d+", "#", reason)  # group by mistake, whatever its column or turn
        if kind not in self.set_aside and len(self.set_aside) >= MAX_REASONS:
            kind, reason = "", "other reasons"
        self.set_aside.setdefault(kind, (reason, Seen()))[1].add(where, limit=MAX_PLACES)

    def look(self, record: Record | CompletionRating, encoded: Encoded, fitted: Encoded | None, held_out: bool) -> None:
        """Inspect a record on its way to training: all of its tokens, and those that `fit` kept."""
        if record is self._last:  # repeated by its part's weight, not a duplicate in the file
            return
        self.num_rows += self._last is None or record.place != self._last.place  # a row may hold several records
        self._last = record
        self._scrubbed(record.place, [message["content"] for message in turns(record)])
        self._add_record(record, held_out)
        self._measure(record.place, encoded, fitted)

    def _records(self, row: Any, format: Format) -> Sequence[Record]:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
        shape = formats.shape_of(row, format, tuple(formats.SHAPES))
        convert: Callable[..., Sequence[Record]] = to_examples
        if shape in ("prompt", "rating"):
            convert = to_prompts
        elif shape in ("pair", "pandalm"):
            convert = to_comparisons
        records = convert(row, shape)
        self.shapes[f"{shape} ({', '.join(formats.SHAPES[shape])})".replace("|", " or ")] += 1
        return records

    def _encoded(self, where: str, record: Record) -> Encoded | None:
        if self.tokenizer is None:
            return None
        try:
            return encode_record(record, self.tokenizer)
        except Unrenderable:
            raise
        except TemplateError as error:
            self._see("template", f"{where}: {error}")
            return None

    def _scrubbed(self, where: str, row: Any) -> Any:
        scrubbed, personal = scrub_row(row)
        for kind, count in personal.items():
            self.personal.setdefault(kind, Seen()).add(where)
            self.num_personal[kind] += count
        return scrubbed

    def _add_record(self, record: Record | CompletionRating, held_out: bool) -> None:
        where, messages, group = record.place, turns(record), record.group
        answer = "" if isinstance(record, Prompt) else _content(messages[-1])
        before = messages if isinstance(record, Prompt) else messages[:-1]
        prompt = "\0".join(f"{message['role']}\0{_content(message)}" for message in before)
        self.places.add(where)
        self.held_out.append(held_out)
        self.groups.append(digest(group))
        self.prompts.append(digest(prompt))
        if isinstance(record, Comparison):
            # Answers to one prompt may differ, but two rows must not prefer opposite answers of the same pair.
            other = record.second if record.target >= 0.5 else record.first
            self.questions.append(digest("\0".join((prompt, *sorted((answer, other))))))
            self.answers.append(digest(f"{answer}\0{other}"))
            self.num_pairs += 1
            self.num_chosen_longer += len(answer) > len(other)
        elif isinstance(record, CompletionRating):  # a prompt may have many rated answers
            self.questions.append(digest(f"{prompt}\0{answer}"))
            self.answers.append(digest(answer))
        else:
            self.questions.append(digest(answer) if isinstance(record, Document) else self.prompts[-1])
            self.answers.append(digest(answer.strip()))
        self.texts.add(f"{prompt}\0{answer}")
        self.group_sketches.add(group)
        for problem in turn_problems(messages, self._markers):
            self._see(problem, where)
        if self.validate and answer and (error := self.validate(answer)):
            self._see("schema", f"{where}: {error}")
        if self.tokenizer is None:
            words = [(message["role"], len(message["content"].split())) for message in messages]
            self.lengths.append(sum(count for _, count in words))
            self.answer_lengths.append(0 if isinstance(record, Prompt) else words[-1][1])
            self.num_tokens += self.lengths[-1]
            self.num_trained += sum(count for role, count in words if role == "assistant")

    def _measure(self, place: str, encoded: Encoded, fitted: Encoded | None) -> None:
        self.lengths.append(len(encoded.input_ids))
        self.answer_lengths.append(encoded.num_response_tokens)
        if fitted is None:
            self._see("left_out", place)
            return
        if len(fitted.input_ids) < len(encoded.input_ids):
            self._see("truncated", place)
        self.num_tokens += len(fitted.input_ids)
        self.num_trained += sum(fitted.loss_mask)

    def _see(self, kind: str, where: str) -> None:
        self.seen.setdefault(kind, Seen()).add(where)


def turns(record: Record | CompletionRating) -> tuple[Message, ...]:
    """The conversation of a record, with the preferred answer of a comparison; a document is an assistant's turn."""
    if isinstance(record, Document):
        return (Message(role="assistant", content=record.text),)
    if isinstance(record, Comparison):
        preferred = record.first if record.target >= 0.5 else record.second
        return (*record.prompt, Message(role="assistant", content=preferred))
    if isinstance(record, CompletionRating):
        return (*record.prompt, Message(role="assistant", content=record.completion))
    return record.messages


def _content(message: Message) -> str:
    """The content of a turn with its tool calls: turns that differ in them are not duplicates."""
    return message["content"] + (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
