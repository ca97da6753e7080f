"""What is in data files, and what will go wrong in training on them.

One pass over the rows, as a stream. What is kept for each row is a few numbers, two hashes and two sketches (about
300 bytes, sketches only for the first million rows), never its text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignment.config import DataConfig
from alignment.data import Demonstration, is_held_out, to_comparison, to_demonstration
from alignment.duplicates import Sketches, digest, folded
from alignment.inspection_report import Finding, Lengths, Level, Report, SetAside
from alignment.privacy import scrub_row
from alignment.readers import BadRow, DataError, read_rows
from alignment.sources import renamed
from alignment.templates import Message, TemplateError, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USUAL_ROWS = 1000
"""Demonstrations that a fine-tune usually wants at least (LIMA, Zhou et al. 2023, shows 1,000 good ones suffice)."""
MAX_PLACES = 100_000
MAX_REASONS = 50
MAX_EXAMPLES = 20
SHAPES = (
    ("chat (messages)", ("messages",)),
    ("Alpaca (instruction, output)", ("instruction", "output")),
    ("prompt and completion", ("prompt", "completion")),
    ("pair (prompt, chosen, rejected)", ("prompt", "chosen", "rejected")),
    ("pair of transcripts (chosen, rejected)", ("chosen", "rejected")),
)
# A text that holds one of these was rendered by some template already, or would forge a turn under one.
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]"),
    *("<<SYS>>", "### Instruction", "### Response:", "\n\nHuman:", "\n\nAssistant:"),
)


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


def each_record(path: str, config: DataConfig) -> Iterator[tuple[str, Demonstration]]:
    """The usable rows behind a path, one by one, as training reads them."""
    for where, row in read_rows(path):
        if isinstance(row, dict):
            with contextlib.suppress(BadRow):
                yield where, to_demonstration(renamed(row, config.columns))


@dataclass
class Seen:
    """How often something was met, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, where: str, count: int = 1, limit: int = MAX_EXAMPLES) -> None:
        self.count += count
        if len(self.places) < limit:
            self.places.append(where)


class Inspector:
    """Takes rows one by one and reports on all of them.

    Args:
        config: `columns`, `max_length` and `eval_share` are used as training uses them.
        seed: of the split into training and held-out rows.
        tokenizer: lengths are in its tokens; in words without one.
        validate: says what is wrong with an answer that should be JSON of a certain schema, or None.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        validate: Callable[[str], str | None] | None = None,
    ) -> None:
        self.config, self.seed, self.tokenizer, self.validate = config, seed, tokenizer, validate
        self.num_rows = self.num_pairs = self.num_chosen_longer = 0
        self.set_aside: dict[str, tuple[str, Seen]] = {}
        self.shapes: Counter[str] = Counter()
        self.personal: dict[str, Seen] = {}
        self.seen: dict[str, Seen] = {}
        self.places = Places()
        self.held_out = bytearray()
        self.groups, self.prompts, self.answers = array("Q"), array("Q"), array("Q")
        self.texts, self.group_sketches = Sketches(), Sketches()
        self.lengths, self.response_lengths = array("Q"), array("Q")
        self.num_tokens = self.num_trained = 0
        self._markers = tuple(dict.fromkeys((*MARKERS, *(tokenizer.all_special_tokens if tokenizer else ()))))

    def add(self, where: str, row: Any, held_out: bool | None = None) -> Any:
        """Look at a row of a file; `held_out` None: the split of the config decides. Returns the row scrubbed."""
        self.num_rows += 1
        if isinstance(row, BadRow):
            self._set_aside(where, str(row))
            return None
        scrubbed, personal = scrub_row(row)
        for kind, count in personal.items():
            self.personal.setdefault(kind, Seen()).add(where, count)
        try:
            named = renamed(row, self.config.columns)
            record = to_demonstration(named)
        except BadRow as reason:
            self._set_aside(where, str(reason))
            return scrubbed
        self._shape(named)
        self._record(where, record, held_out)
        return scrubbed

    def _set_aside(self, where: str, reason: str) -> None:
        kind = re.sub(r"\d+", "#", reason)  # one kind of mistake, whatever the column or turn it stands in
        if kind not in self.set_aside and len(self.set_aside) >= MAX_REASONS:
            kind, reason = "", "other reasons"
        self.set_aside.setdefault(kind, (reason, Seen()))[1].add(where, limit=MAX_PLACES)

    def _shape(self, row: Mapping[str, Any]) -> None:
        shape = next((name for name, keys in SHAPES if all(key in row for key in keys)), None)
        shape = shape or "keys " + ", ".join(sorted(map(str, row)))
        self.shapes[shape if shape in self.shapes or len(self.shapes) < MAX_REASONS else "other keys"] += 1
        if shape.startswith("pair"):
            pair = to_comparison(row)
            self.num_pairs += 1
            self.num_chosen_longer += len(pair.first) > len(pair.second)

    def _record(self, where: str, record: Demonstration, held_out: bool | None) -> None:
        messages = record.messages
        if held_out is None:
            held_out = is_held_out(record, self.config.eval_share, self.seed)
        self.places.add(where)
        self.held_out.append(held_out)
        prompt = "\0".join(f"{message['role']}\0{message['content']}" for message in messages[:-1])
        answer = messages[-1]["content"]
        self.groups.append(digest(record.group))
        self.prompts.append(digest(prompt))
        self.answers.append(digest(answer.strip()))
        self.texts.add(f"{prompt}\0{answer}")
        self.group_sketches.add(record.group)
        for problem in turn_problems(messages, self._markers):
            self._see(problem, where)
        if self.validate and (fault := self.validate(answer)):
            self._see("schema", f"{where}: {fault}")
        if self.tokenizer is None:
            self.lengths.append(sum(len(message["content"].split()) for message in messages))
            self.response_lengths.append(len(answer.split()))
            self.num_tokens += self.lengths[-1]
            self.num_trained += sum(len(m["content"].split()) for m in messages if m["role"] == "assistant")
        else:
            self._measure(where, messages, self.tokenizer)

    def _measure(self, where: str, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            encoded = encode_conversation(tokenizer, messages)
            assert encoded is not None  # nothing is left out without max_length
            self.lengths.append(len(encoded.input_ids))
            self.response_lengths.append(encoded.num_response_tokens)
            if len(encoded.input_ids) > self.config.max_length:
                encoded = encode_conversation(tokenizer, messages, self.config.max_length)
                self._see("truncated" if encoded else "left_out", where)
        except TemplateError as error:
            self._see("template", f"{where}: {error}")
            return
        if encoded is not None:
            self.num_tokens += len(encoded.input_ids)
            self.num_trained += sum(encoded.loss_mask)

    def _see(self, kind: str, where: str) -> None:
        self.seen.setdefault(kind, Seen()).add(where)

    def report(self, sources: Sequence[str]) -> Report:
        """Everything found; the sketches are compared here."""
        trained = self.num_trained / self.num_tokens if self.num_tokens else None
        lengths = {"conversation": self.lengths, "response": self.response_lengths}
        set_aside = sorted(self.set_aside.values(), key=lambda item: -item[1].count)
        findings = [*self._row_findings(), *(self._group_findings() if len(self.places) else ())]
        return Report(
            sources=list(sources),
            rows=self.num_rows,
            kept=len(self.places),
            held_out=sum(self.held_out),
            shapes=dict(self.shapes.most_common()),
            set_aside=[SetAside(reason, seen.count, seen.places) for reason, seen in set_aside],
            unit="words" if self.tokenizer is None else "tokens",
            max_length=None if self.tokenizer is None else self.config.max_length,
            lengths={name: percentiles(values) for name, values in lengths.items() if values},
            trained_share=trained,
            personal_data={kind: seen.count for kind, seen in sorted(self.personal.items())},
            findings=sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level)),
        )

    def _row_findings(self) -> Iterable[Finding]:
        kept, bad = len(self.places), self.num_rows - len(self.places)
        if bad:
            level: Level = "error" if bad > self.config.max_bad_share * self.num_rows else "warning"
            reasons = [seen.places[0] for _, seen in self.set_aside.values()]
            text = f"rows that cannot be used and are set aside: {bad} of {self.num_rows}"
            yield Finding(level, "set_aside", bad, text, reasons[:MAX_EXAMPLES])
        if 0 < kept < USUAL_ROWS:
            text = f"you have {kept} rows: the usual guidance is about {USUAL_ROWS:,}"
            yield Finding("note", "few_rows", kept, text, [])
        for kind, (grade, text) in _TEXTS.items():
            if kind in self.seen:
                seen = self.seen[kind]
                text = f"{text.format(limit=self.config.max_length)}: {seen.count}"
                yield Finding(grade, kind, seen.count, text, seen.places)
        for kind, seen in sorted(self.personal.items()):
            text = f"{_KINDS[kind]} found: {seen.count}; --scrub OUT.jsonl writes a copy without them"
            yield Finding("warning", f"personal_{kind}", seen.count, text, seen.places)
        if self.num_pairs >= 100 and abs(self.num_chosen_longer / self.num_pairs - 0.5) > 0.1:
            share = self.num_chosen_longer / self.num_pairs
            text = f"the chosen answer is the longer one in {share:.0%} of the pairs: a reward model may learn length"
            yield Finding("note", "length_bias", self.num_chosen_longer, text, [])

    def _group_findings(self) -> Iterable[Finding]:
        prompts, answers, groups = (_numbers(values) for values in (self.prompts, self.answers, self.groups))
        rows = np.stack([prompts, answers], axis=1)
        exact = _first_of_equal(rows)
        copies = np.flatnonzero(exact != np.arange(len(exact)))
        if len(copies):
            text = f"rows that repeat an earlier one exactly: {len(copies)}"
            yield Finding("warning", "exact_duplicates", len(copies), text, self._pairs(copies, exact))
        yield from self._contradictions(prompts, exact)
        near = exact[self.texts.labels()]  # by the first of its exact copies, so that those are not counted again
        alike = np.flatnonzero((near != exact) & (exact == np.arange(len(exact))))
        if len(alike):
            text = f"rows that nearly repeat an earlier one (texts filled into one form count too): {len(alike)}"
            yield Finding("note", "near_duplicates", len(alike), text, self._pairs(alike, near))
        yield from self._leaks(groups)
        if self.texts.num_unseen:
            text = f"near duplicates were looked for among the first {len(exact) - self.texts.num_unseen:,} rows only"
            yield Finding("note", "near_duplicates_limit", self.texts.num_unseen, text, [])

    def _contradictions(self, prompts: NDArray[np.uint64], exact: NDArray[np.int64]) -> Iterable[Finding]:
        different = np.flatnonzero(exact == np.arange(len(exact)))  # each (prompt, answer) once
        first = _first_of_equal(prompts[different])
        again = np.flatnonzero(first != np.arange(len(first)))
        if len(again):
            num_prompts = len(np.unique(first[again]))
            text = (
                f"prompts with several different answers, of which a model learns the mixture: {num_prompts}; "
                "keep the best one unless that is meant"
            )
            earlier = np.zeros(len(exact), np.int64)
            earlier[different[again]] = different[first[again]]
            yield Finding("warning", "contradictions", num_prompts, text, self._pairs(different[again], earlier))

    def _leaks(self, groups: NDArray[np.uint64]) -> Iterable[Finding]:
        held = np.frombuffer(self.held_out, np.uint8).astype(bool)
        first = _first_of_equal(groups)
        same, near = _first_marked(first, ~held), _first_marked(self.group_sketches.labels(), ~held)
        train = np.where(same >= 0, same, near)
        leaked = np.flatnonzero(held & (train >= 0))
        if len(leaked):
            text = (
                f"{len(leaked)} of {held.sum()} held-out rows have a prompt that stands in the training rows too, or "
                "nearly: their score flatters; `alignment data split` keeps such prompts together"
            )
            yield Finding("warning", "split_leaks", len(leaked), text, self._pairs(leaked, train))

    def _pairs(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> list[str]:
        return [f"{self.places[row]} and {self.places[others[row]]}" for row in rows[:MAX_EXAMPLES]]


_TEXTS: dict[str, tuple[Level, str]] = {
    "template": ("error", "rows that the chat template cannot render, so that training would stop"),
    "left_out": ("error", "rows left out of training, because the answer alone is longer than max_length={limit}"),
    "schema": ("error", "rows whose answer does not fit the schema"),
    "truncated": ("warning", "rows that lose the beginning of their prompt at max_length={limit}"),
    "same_role": ("warning", "rows with two turns of one role one after the other"),
    "assistant_first": ("warning", "rows that begin with the assistant's turn"),
    "system_later": ("warning", "rows with a system turn that is not the first"),
    "markers": ("warning", "rows with a template's own marks (<|im_end|>, [INST], ### Response: ...) inside a turn"),
    "echo": ("warning", "rows whose answer repeats the user's turn word for word"),
}
_KINDS = {"mail": "mail addresses", "phone": "phone numbers", "card": "payment card numbers"}


def turn_problems(messages: Sequence[Message], markers: Sequence[str] = MARKERS) -> list[str]:
    """Which checks of `_TEXTS` on roles and contents a usable conversation fails."""
    roles = [message["role"] for message in messages]
    spoken = [role for role in roles if role != "system"]
    contents = [message["content"] for message in messages]
    problems = {
        "same_role": any(a == b for a, b in itertools.pairwise(spoken)),
        "assistant_first": spoken[0] == "assistant",
        "system_later": "system" in roles[1:],
        "markers": any(marker in content for content in contents for marker in markers),
        "echo": folded(contents[-1]) == folded(contents[-2]),
    }
    return [name for name, found in problems.items() if found]


def percentiles(values: Sequence[int]) -> Lengths:
    """The spread of lengths."""
    numbers = _numbers(values)
    low, median, high, most = (int(np.percentile(numbers, share)) for share in (10, 50, 90, 99))
    return Lengths(int(numbers.min()), low, median, high, most, int(numbers.max()), round(float(numbers.mean()), 1))


def schema_validator(schema: Mapping[str, Any]) -> Callable[[str], str | None]:
    """A check of answers against a JSON schema, nothing fetched from anywhere.

    Raises:
        ImportError: jsonschema is not installed.
        jsonschema.SchemaError: the schema itself is wrong.
        DataError: from the check, where the schema refers to another file.
    """
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema)
    kind.check_schema(schema)
    validator = kind(schema, registry=Registry())

    def check(answer: str) -> str | None:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return "not JSON"
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except Unresolvable as missing:
            raise DataError(f"--schema: {missing.ref!r} is not in the file; put everything into one schema") from None
        return None if error is None else f"{error.json_path}: {error.message[:200]}"

    return check


def _first_of_equal(keys: NDArray[Any]) -> NDArray[np.int64]:
    """For each key the index of the first equal one, (N,)."""
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def _first_marked(names: NDArray[np.int64], marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row the first marked row of its name (a row's index), or -1."""
    first = np.full(len(names), -1)
    at = np.flatnonzero(marked)[::-1]  # backwards: of equal indices the last assignment stays
    first[names[at]] = at
    return first[names]


def _numbers(values: Sequence[int]) -> NDArray[np.uint64]:
    return np.frombuffer(values, np.uint64) if isinstance(values, array) else np.asarray(values, np.uint64)
