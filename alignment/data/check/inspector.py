"""Inspect rows in one streaming pass.

Each row is reduced to a few numbers, four hashes and two sketches (about 330 bytes; sketches only for the first million
rows). Its text is not kept, so 2 GB of rows are checked in half a gigabyte of memory.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from alignment.config.sections import DataConfig, Format
from alignment.data import formats
from alignment.data.chats import is_transcript
from alignment.data.check.conversation import MARKERS, turn_problems
from alignment.data.check.judgements import Judged, is_html, says_nothing
from alignment.data.duplicates import Sketches, digest
from alignment.data.encoding import Record, encode_parts, fit_record
from alignment.data.importers import PassedOver
from alignment.data.messages import unused_of_turns, with_answer
from alignment.data.parsing import JUDGED, LEARNED, to_examples, to_judgements, to_prompts
from alignment.data.privacy import scrub_row
from alignment.data.reading import is_held_out
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow, DataError
from alignment.data.votes import UncertainChoice
from alignment.templates.reasoning import reads_reasoning
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


Stage = Literal["sft", "reward", "ppo"]
READS: dict[Stage, Callable[..., Sequence[Record]]] = {"sft": to_examples, "reward": to_judgements, "ppo": to_prompts}
"""What each stage makes of a row."""
STAGES: dict[str, Stage] = {"sft": "sft", "reward": "reward", "ppo": "ppo"}
"""The stages by the names that people give."""


class Inspector:
    """Collects counts and hashes of rows, one row at a time, for `report_of`.

    Args:
        config: `max_length`, `too_long`, `eval_share` and `split_seed` are used as training uses them.
        tokenizer: lengths are in its tokens; None: lengths are in words.
        validate: returns the error of an answer that must match a JSON schema, or None.
        stage: rows are read as this stage reads them; None: each as what it is.
        needs_pairs: ratings of single answers are of use only in pairs (the reward stage's `reward.objective: pairs`).
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        validate: Callable[[str], str | None] | None = None,
        stage: Stage | None = None,
        needs_pairs: bool = False,
    ) -> None:
        self.needs_pairs = needs_pairs
        self.config, self.tokenizer, self.validate, self.stage = config, tokenizer, validate, stage
        self.first: Record | None = None
        self.remarks: Counter[str] = Counter()
        self.readers: Counter[str] = Counter()
        self.unused: dict[str, None] = {}
        self.unused_of_turns: set[str] = set()
        self.judged = Judged(self._see)
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
        self._last: Record | None = None
        template = "" if tokenizer is None else str(tokenizer.chat_template)
        known = "reasoned" if reads_reasoning(template) else "reasoning_lost"
        self._reasoning = "reasoning" if tokenizer is None else known
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
            records = self._records(where, row, format)
            examples = [part for record in records for part in self._encoded(where, record)]
        except PassedOver as error:
            self.num_rows += 1
            self.passed_over.setdefault(str(error), Seen()).add(where)
            return scrubbed, None
        except UncertainChoice as error:
            raise DataError(f"{where}: {error}") from None
        except (BadRow, Unrenderable) as error:
            self.add_bad(where, str(error))
            return scrubbed, str(error)
        self.num_rows += 1
        for record, encoding in examples:
            config = self.config
            side = is_held_out(record, config.eval_share, config.split_seed) if held_out is None else held_out
            self._add_record(replace(record, place=where), side)
            if encoding is not None and self.tokenizer is not None:
                fitted: Encoded | None = encoding
                if not isinstance(record, Document):  # a document is chunked without loss
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

    def add_unused(self, names: Iterable[str]) -> None:
        """Note keys that mean nothing to us."""
        self.unused |= dict.fromkeys(names)

    def look(self, record: Record, encoded: Encoded, fitted: Encoded | None, held_out: bool) -> None:
        """Inspect a record on its way to training: all of its tokens, and those that `fit` kept."""
        if record is self._last:  # repeated by its part's weight, not a duplicate in the file
            return
        self.num_rows += self._last is None or record.place != self._last.place  # a row may hold several records
        self._last = record
        self._scrubbed(record.place, [message["content"] for message in turns(record)])
        self._add_record(record, held_out)
        self._measure(record.place, encoded, fitted)

    def _records(self, where: str, row: Any, format: Format) -> Sequence[Record]:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
        self.add_unused(formats.unused_keys(row, format))
        self.unused_of_turns |= unused_of_turns(row)
        try:
            shape = formats.shape_of(row, format, tuple(formats.SHAPES))
        except BadRow:
            if self.stage is not None:
                READS[self.stage](row, format)  # says what this stage would read
            raise
        convert: Callable[..., Sequence[Record]] = to_examples
        if self.stage is not None:
            convert = READS[self.stage]
        elif shape == "prompt":
            convert = to_prompts
        elif shape in JUDGED:
            convert = to_judgements
        records = convert(row, format)
        if convert is to_judgements:  # equal answers of a ranking are no pair
            records = [each for each in records if not (isinstance(each, Comparison) and each.first == each.second)]
        if self.stage is None:
            self.readers.update(stage for stage, shapes in LEARNED.items() if shape in shapes)
        self.shapes[f"{shape} ({', '.join(formats.key_words(shape))})"] += 1
        for effect, key in formats.warnings_of(row, format) if records else ():
            self._see(f"marked_{effect}", f"{where}: {key}")
        return records

    def _encoded(self, where: str, record: Record) -> Sequence[tuple[Record, Encoded | None]]:
        if self.tokenizer is None:
            return [(record, None)]
        try:
            return encode_parts(record, self.tokenizer)
        except Unrenderable:
            raise
        except TemplateError as error:
            self._see("template", f"{where}: {error}")
            return [(record, None)]

    def _scrubbed(self, where: str, row: Any) -> Any:
        scrubbed, personal = scrub_row(row)
        for kind, count in personal.items():
            self.personal.setdefault(kind, Seen()).add(where)
            self.num_personal[kind] += count
        return scrubbed

    def _add_record(self, record: Record, held_out: bool) -> None:
        where, messages, group = record.place, turns(record), record.group
        self.first = self.first or record
        if isinstance(record, Demonstration):
            self.remarks.update(record.notes)
        answer = "" if isinstance(record, Prompt) else _content(messages[-1])
        before = messages if isinstance(record, Prompt) else messages[:-1]
        prompt = "\0".join(f"{message['role']}\0{_content(message)}" for message in before)
        self.places.add(where)
        self.held_out.append(held_out)
        self.groups.append(digest(group))
        self.prompts.append(digest(prompt))
        # The reward stage looks at an answer once, however often it was rated, and judges the ratings itself.
        if isinstance(record, Comparison) or (isinstance(record, CompletionRating) and self._last is None):
            self.judged.add(record, group)
        if isinstance(record, Comparison):
            # Answers to one prompt may differ, but two rows must not prefer opposite answers of the same pair.
            other = record.second if record.target >= 0.5 else record.first
            people = ",".join(sorted(vote.labeler or "" for vote in record.votes))  # who may differ from one another
            self.questions.append(digest("\0".join((people, prompt, *sorted((answer, other))))))
            self.answers.append(digest(f"{people}\0{answer}\0{other}"))
            self.num_pairs += 1
            self.num_chosen_longer += len(answer) > len(other)
        elif isinstance(record, CompletionRating):  # a prompt may have many rated answers
            self.questions.append(digest(f"{prompt}\0{answer}\0{record.labeler}"))
            self.answers.append(digest(answer))
        else:
            self.questions.append(digest(answer) if isinstance(record, Document) else self.prompts[-1])
            self.answers.append(digest(answer.strip()))
        self.texts.add(f"{prompt}\0{answer}")
        self.group_sketches.add(group)
        problems = turn_problems(messages, self._markers)
        for problem in problems:
            self._see(problem, where)
        if isinstance(record, Document):
            if is_transcript(record.text):
                self._see("transcript", where)
        elif "markers" not in problems and any(
            is_transcript(message["content"]) for message in messages if message["role"] == "user"
        ):
            self._see("transcript_prompt", where)
        texts = [record.first, record.second] if isinstance(record, Comparison) else [answer]
        if not isinstance(record, Prompt | Document):
            for kind, found in (("says_nothing", says_nothing), ("html", is_html)):
                if any(map(found, texts)):
                    self._see(kind, where)
        if any("reasoning_content" in message for message in messages):
            self._see(self._reasoning, where)
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


def turns(record: Record) -> tuple[Message, ...]:
    """The conversation of a record, with the preferred answer of a comparison; a document is an assistant's turn."""
    if isinstance(record, Document):
        return (Message(role="assistant", content=record.text),)
    if isinstance(record, Comparison):
        preferred = record.first if record.target >= 0.5 else record.second
        return with_answer(record.prompt, preferred)
    if isinstance(record, CompletionRating):
        return with_answer(record.prompt, record.completion)
    return record.messages


def _content(message: Message) -> str:
    """The content of a turn with its tool calls: turns that differ in them are not duplicates."""
    return message["content"] + (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
