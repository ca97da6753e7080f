"""One pass over the rows, as a stream.

What is kept for each row is a few numbers, four hashes and two sketches (about 330 bytes in all, sketches only for the
first million rows), never its text; so 2 GB of rows are looked at in half a gigabyte of memory.
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
"""Places of bad rows in a report, for each reason; `alignment data check --bad FILE` has no such limit."""
MAX_REASONS = 50
MAX_EXAMPLES = 20


class Places:
    """Where rows stand (`file:12`), in a dozen bytes each."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._head, self._number = array("I"), array("Q")

    def add(self, where: str) -> None:
        head = where.rstrip("0123456789")
        number = where[len(head) :]
        if not number or number[0] == "0" or len(number) > 18:
            head, number = where, ""
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._number.append(int(number or 0))

    def __len__(self) -> int:
        return len(self._head)

    def __getitem__(self, row: int) -> str:
        head = next(text for text, number in self._heads.items() if number == self._head[row])
        return f"{head}{self._number[row] or ''}"


@dataclass
class Seen:
    """How many rows something was met in, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, where: str, limit: int = MAX_EXAMPLES) -> None:
        self.count += 1
        if len(self.places) < limit:
            self.places.append(where)


class Inspector:
    """Takes rows one by one and reports on all of them.

    Args:
        config: `max_length`, `too_long`, `eval_share` and `split_seed` are used as training uses them.
        tokenizer: of whose tokens lengths are; None: lengths are in words.
        validate: says what is wrong with an answer that should be JSON of a certain schema, or None.
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
        self.seen: dict[str, Seen] = {}
        self.places = Places()
        self.held_out = bytearray()
        # 64-bit hashes of each record: the first human turn, everything before the answer, what a contradiction is
        # about, and the answer.
        self.groups, self.prompts, self.questions, self.answers = (array("Q") for _ in range(4))
        self.texts, self.group_sketches = Sketches(), Sketches()
        self.lengths, self.answer_lengths = array("Q"), array("Q")
        self.num_tokens = self.num_trained = 0
        self._last: Record | CompletionRating | None = None
        self._markers = tuple(dict.fromkeys((*MARKERS, *(tokenizer.all_special_tokens if tokenizer else ()))))

    def add(
        self, where: str, row: Any, format: Format = "auto", held_out: bool | None = None
    ) -> tuple[Any, str | None]:
        """Look at a row of a file; `held_out` None: the split of the config decides.

        Returns:
            The row scrubbed, and why it cannot be used, or None.
        """
        scrubbed = row if isinstance(row, BadRow) else self._scrubbed(where, row)
        try:
            records = self._records(row, format)
            encoded = [self._encoded(where, record) for record in records]
        except PassedOver as reason:
            self.num_rows += 1
            self.passed_over.setdefault(str(reason), Seen()).add(where)
            return scrubbed, None
        except (BadRow, Unrenderable) as reason:
            self.add_bad(where, str(reason))
            return scrubbed, str(reason)
        self.num_rows += 1
        for record, whole in zip(records, encoded, strict=True):
            config = self.config
            side = is_held_out(record, config.eval_share, config.split_seed) if held_out is None else held_out
            self._add_record(replace(record, place=where), side)
            if whole is not None and self.tokenizer is not None:
                fitted: Encoded | None = whole
                if isinstance(record, Demonstration | Comparison):  # a text is cut into pieces, nothing is lost
                    fitted = fit_record(record, whole, self.tokenizer, config.max_length, config.too_long)
                self._measure(where, whole, fitted)
        return scrubbed, None

    @property
    def num_kept(self) -> int:
        """Records that can be used."""
        return len(self.places)

    def add_bad(self, where: str, reason: str) -> None:
        """Count a row that cannot be used."""
        self.num_rows += 1
        self.num_bad += 1
        kind = re.sub(r"\d+", "#", reason)  # one kind of mistake, whatever the column or turn it stands in
        if kind not in self.set_aside and len(self.set_aside) >= MAX_REASONS:
            kind, reason = "", "other reasons"
        self.set_aside.setdefault(kind, (reason, Seen()))[1].add(where, limit=MAX_PLACES)

    def look(self, record: Record | CompletionRating, encoded: Encoded, fitted: Encoded | None, held_out: bool) -> None:
        """Look at a record on its way to training: all of its tokens, and what `fit` left of them."""
        if record is self._last:  # the part of a mixture that it comes from has a weight: not a copy in the file
            return
        self.num_rows += self._last is None or record.place != self._last.place  # a row may hold several
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
            # Rows of one prompt are meant to differ; two that prefer the opposite of two answers are not.
            other = record.second if record.target >= 0.5 else record.first
            self.questions.append(digest("\0".join((prompt, *sorted((answer, other))))))
            self.answers.append(digest(f"{answer}\0{other}"))
            self.num_pairs += 1
            self.num_chosen_longer += len(answer) > len(other)
        elif isinstance(record, CompletionRating):  # each answer is learned, however many a prompt has
            self.questions.append(digest(f"{prompt}\0{answer}"))
            self.answers.append(digest(answer))
        else:
            self.questions.append(digest(answer) if isinstance(record, Document) else self.prompts[-1])
            self.answers.append(digest(answer.strip()))
        self.texts.add(f"{prompt}\0{answer}")
        self.group_sketches.add(group)
        for problem in turn_problems(messages, self._markers):
            self._see(problem, where)
        if self.validate and answer and (fault := self.validate(answer)):
            self._see("schema", f"{where}: {fault}")
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
    """The conversation of a record: with the preferred answer where there are two; a text is the assistant's."""
    if isinstance(record, Document):
        return (Message(role="assistant", content=record.text),)
    if isinstance(record, Comparison):
        preferred = record.first if record.target >= 0.5 else record.second
        return (*record.prompt, Message(role="assistant", content=preferred))
    if isinstance(record, CompletionRating):
        return (*record.prompt, Message(role="assistant", content=record.completion))
    return record.messages


def _content(message: Message) -> str:
    """What a turn says and does: two that differ in the tools they call are no copies."""
    return message["content"] + (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
