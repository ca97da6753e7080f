"""Records, and reading, checking and splitting them.

A file is JSONL, JSON, CSV or Parquet (`.gz` allowed) or a folder of such files. The shape of a row is told by its
keys. A bad row is named by file and line with the reason, set aside and counted; more than `data.max_bad_share` of
them stops the run before training. Splits are by prompt group (the first human turn), never by row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from alignment.config import DataConfig
from alignment.readers import BadRow, DataError, file_fingerprint, read_rows
from alignment.templates import Message

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A conversation that the assistant is to continue. `columns` are the row's other keys."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the assistant's turn. `place` is the `file:line` it was read from."""

    messages: tuple[Message, ...]
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt, and how many votes preferred each."""

    prompt: tuple[Message, ...]
    first: str
    second: str
    first_votes: int = 1
    second_votes: int = 0
    tie_votes: int = 0
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)

    @property
    def weight(self) -> float:
        """Number of votes."""
        return float(self.first_votes + self.second_votes + self.tie_votes)

    @property
    def target(self) -> float:
        """Share of the votes for `first`, a tie being half a vote for each."""
        return (self.first_votes + 0.5 * self.tie_votes) / self.weight


R = TypeVar("R", Prompt, Demonstration, Comparison)


def prompt_group(messages: Sequence[Message]) -> str:
    """Key under which conversations count as the same prompt: the first human turn, case and spaces folded."""
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    return " ".join(first.casefold().split())


# --- rows to records -----------------------------------------------------------------------------------------------


def _text(row: Mapping[str, Any], key: str, empty: bool = False) -> str:
    if key not in row:
        raise BadRow(f"no key '{key}'; found the keys {', '.join(map(str, row))} (data.columns renames)")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"'{key}' must be a text, found {type(value).__name__}")
    if not empty and not value.strip():
        raise BadRow(f"'{key}' is empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"'{key}' holds half of a surrogate pair, which is no character")
    return value


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}' must be a list of messages, found {type(value).__name__ if value else 'an empty one'}")
    messages = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise BadRow(f"message {number} of '{key}' must be an object, found {type(item).__name__}")
        if item.get("role") not in ROLES:
            raise BadRow(f"message {number} of '{key}' has role {item.get('role')!r}; expected {', '.join(ROLES)}")
        messages.append(Message(role=item["role"], content=_text(item, "content")))
    return tuple(messages)


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    value = row["prompt"]
    if isinstance(value, list):
        return _messages(value, "prompt")
    return (Message(role="user", content=_text(row, "prompt")),)


def _completion(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, list):
        messages = _messages(value, key)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(f"'{key}' must be one assistant message")
        return messages[0]["content"]
    return _text(row, key)


def _alpaca_prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    extra = row.get("input")
    text = _text(row, "instruction") + (f"\n\n{extra}" if isinstance(extra, str) and extra.strip() else "")
    return (Message(role="user", content=text),)


def parse_transcript(text: str) -> tuple[Message, ...]:
    """Turns of an HH transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`), surrounding spaces dropped."""
    messages: list[Message] = []
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("a transcript must begin with '\\n\\nHuman:' and hold turns marked '\\n\\nAssistant:'")
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if not content.strip():
            raise BadRow(f"turn {len(messages) + 1} of the transcript ({role}) is empty")
        messages.append(Message(role=role, content=content.strip()))
    return tuple(messages)


def _split_answer(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    if messages[-1]["role"] != "assistant":
        raise BadRow("the conversation must end with the assistant's turn")
    if len(messages) < 2:
        raise BadRow("the conversation has no turn before the assistant's")
    return messages[:-1], messages[-1]["content"]


def _with_answer(prompt: tuple[Message, ...], answer: str) -> tuple[Message, ...]:
    return (*prompt, Message(role="assistant", content=answer))


def _pair(row: Mapping[str, Any]) -> Comparison:
    if "prompt" in row:
        prompt, first, second = _prompt(row), _completion(row, "chosen"), _completion(row, "rejected")
    else:
        sides = [
            _messages(row[key], key) if isinstance(row[key], list) else parse_transcript(_text(row, key))
            for key in ("chosen", "rejected")
        ]
        (prompt, first), (other, second) = (_split_answer(side) for side in sides)
        if prompt != other:
            raise BadRow("'chosen' and 'rejected' differ before the assistant's last turn")
    if first == second:
        raise BadRow("'chosen' and 'rejected' are the same")
    return Comparison(prompt, first, second)


def to_demonstration(row: Mapping[str, Any]) -> Demonstration:
    """Alpaca, chat, prompt/completion, or the chosen side of a pair."""
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        _split_answer(messages)
    elif "instruction" in row:
        messages = _with_answer(_alpaca_prompt(row), _text(row, "output"))
    elif "prompt" in row and "completion" in row:
        messages = _with_answer(_prompt(row), _completion(row, "completion"))
    elif "chosen" in row and "rejected" in row:
        pair = _pair(row)
        messages = _with_answer(pair.prompt, pair.first)
    else:
        raise BadRow(_wrong_keys(row, "messages | instruction+output | prompt+completion | chosen+rejected"))
    return Demonstration(messages)


def to_comparison(row: Mapping[str, Any]) -> Comparison:
    """A pair: prompt, chosen, rejected; or whole transcripts or conversations under chosen and rejected."""
    if not ("chosen" in row and "rejected" in row):
        raise BadRow(_wrong_keys(row, "prompt+chosen+rejected | chosen+rejected (whole transcripts)"))
    return _pair(row)


def to_prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of any row: the conversation before the assistant's last turn."""
    columns = {key: value for key, value in row.items() if key not in ("prompt", "messages")}
    if "prompt" in row:
        messages = _prompt(row)
    elif "messages" in row:
        messages = _messages(row["messages"], "messages")
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    elif "instruction" in row:
        messages = _alpaca_prompt(row)
    elif "chosen" in row and "rejected" in row:
        messages = _pair(row).prompt
    else:
        raise BadRow(_wrong_keys(row, "prompt | messages | instruction | chosen+rejected"))
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("the prompt must end with the user's turn")
    return Prompt(messages, columns)


def _wrong_keys(row: Mapping[str, Any], expected: str) -> str:
    return f"found the keys {', '.join(map(str, row)) or 'none'}; expected {expected} (data.columns renames)"


@dataclass(frozen=True)
class Records(Generic[R]):
    """Records of one source, what was set aside, and what identifies the source."""

    items: list[R]
    bad: list[tuple[str, str]]
    fingerprint: dict[str, Any]


def read_records(path: str | Path, to_record: Callable[[Mapping[str, Any]], R], config: DataConfig) -> Records[R]:
    """Read every row behind a path as one kind of record.

    Raises:
        DataError: no rows, or a larger share of bad rows than `data.max_bad_share`; it names the first of them.
    """
    records: list[R] = []
    bad: list[tuple[str, str]] = []
    for where, row in read_rows(path):
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, dict):
                raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
            records.append(replace(to_record(renamed(row, config.columns)), place=where))
        except BadRow as reason:
            bad.append((where, str(reason)))
    check_bad(str(path), len(records), bad, config.max_bad_share)
    return Records(records, bad, file_fingerprint(path, len(records)))


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row under our names. A column that `columns` names stands before one that bears our name by chance."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise BadRow(f"no key '{missing[0]}', which data.columns names; found {', '.join(map(str, row))}")
    taken = set(columns.values())
    return {key: row[key] for key in row if key not in taken} | {ours: row[theirs] for ours, theirs in columns.items()}


def check_bad(source: str, num_good: int, bad: Sequence[tuple[str, str]], max_bad_share: float) -> None:
    """Stop before training when a source is empty or too much of it is bad."""
    total = num_good + len(bad)
    if total == 0:
        raise DataError(f"{source}: the data set is empty; expected at least one row")
    if len(bad) > max_bad_share * total:
        where, reason = bad[0]
        more = f" ({len(bad)} of {total} rows are bad, data.max_bad_share is {max_bad_share:g})"
        raise DataError(f"{where}: {reason}{more}; mend the rows or raise data.max_bad_share")


def split_by_group(records: Sequence[R], share: float, seed: int = 0) -> tuple[list[R], list[R]]:
    """Split into (train, held out) so that no prompt group stands on both sides.

    A group goes by the hash of its own text, so that adding rows never moves a prompt from one side to the other.
    """
    train: list[R] = []
    held_out: list[R] = []
    for record in records:
        digest = hashlib.sha256(f"{seed}\0{record.group}".encode()).digest()
        side = held_out if int.from_bytes(digest[:8], "big") < share * 2**64 else train
        side.append(record)
    return train, held_out


def train_and_eval(
    config: DataConfig, to_record: Callable[[Mapping[str, Any]], R], seed: int
) -> tuple[Records[R], Records[R]]:
    """The training and held-out records that a `data` section names.

    Raises:
        DataError: see `read_records`; or a split that leaves nothing to train on.
    """
    train = read_records(config.train, to_record, config)
    if config.eval is not None:
        return train, read_records(config.eval, to_record, config)
    return hold_out(train, config, seed)


def hold_out(train: Records[R], config: DataConfig, seed: int) -> tuple[Records[R], Records[R]]:
    """Part one source into training and held-out records by `data.eval_share`.

    Raises:
        DataError: nothing is left to train on.
    """
    kept, held_out = split_by_group(train.items, config.eval_share, seed)
    if not kept:
        raise DataError(f"{config.train}: all {len(held_out)} rows fell into the held-out share; lower data.eval_share")
    mark = {"split": f"by prompt group, {config.eval_share:g} held out, seed {seed}"}
    return (
        Records(kept, train.bad, train.fingerprint | mark | {"rows": len(kept)}),
        Records(held_out, [], train.fingerprint | mark | {"rows": len(held_out)}),
    )
