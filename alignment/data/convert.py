"""Convert rows of any readable format to another format."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from alignment.config.sections import DataConfig, Format
from alignment.data import formats
from alignment.data.importers import PassedOver
from alignment.data.keys import is_empty
from alignment.data.messages import LongAnswer, answer_turns
from alignment.data.parsing import to_comparisons, to_examples
from alignment.data.records import Comparison, Demonstration, Document
from alignment.data.row_files import BadRow, DataError
from alignment.data.sources import open_source
from alignment.data.votes import UncertainChoice
from alignment.data.writers import row_writer
from alignment.errors import UserError
from alignment.templates.builtin import INPUT_HEADING
from alignment.templates.rendering import Message

Target = Literal["chat", "openai", "sharegpt", "alpaca", "completion", "pair", "text"]
TARGETS: tuple[Target, ...] = get_args(Target)

_COMPARED = (
    *("rejected", "completions", "ranks", "preference", "margin", "labeler", "second", "choice"),
    *(f"prediction {index}" for index in range(1, 10)),
)
"""Our names of what a demonstration does not hold of a comparison."""
_SHAREGPT = {"user": "human", "assistant": "gpt"}


@dataclass
class Conversion:
    """The outcome: rows written, rows set aside, keys that the target has no room for, and how files were read."""

    written: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def convert(config: DataConfig, out: Path, target: Target, advance: Callable[[], object] = lambda: None) -> Conversion:
    """Write the rows of `data.train` to a file in another format; the file appears when all are written.

    A row that the target cannot hold is set aside with the reason.

    Raises:
        UserError: the suffix is not supported, the file exists, or no row can be written.
        DataError: the source is missing or cannot be read.
    """
    if out.suffix == ".csv" and target in ("chat", "openai", "sharegpt"):
        raise UserError(f"{out}: a CSV file has no room for turns; name it .jsonl, or take --to completion or alpaca")
    conversion = Conversion()
    with row_writer(out) as write:
        for part in config.parts:
            source = open_source(part, config)
            for where, row in source.rows:
                advance()
                try:
                    for converted in _converted(row, part.format or "auto", target, out.suffix, conversion.lost):
                        write(converted)
                        conversion.written += 1
                except UncertainChoice as error:
                    raise DataError(f"{where}: {error}") from None
                except PassedOver as error:
                    conversion.passed_over[str(error)] += 1
                except BadRow as error:
                    conversion.bad.append((where, str(error)))
            conversion.notes += source.notes
        if not conversion.written:
            first = f"; the first: {': '.join(conversion.bad[0])}" if conversion.bad else ""
            raise UserError(f"{config.parts[0].path}: no row can be written as {target}{first}")
    return conversion


def _converted(row: Any, format: Format, target: Target, suffix: str, lost: Counter[str]) -> list[dict[str, Any]]:
    """A row as rows of the target; keys that cannot be copied are counted in `lost`."""
    if isinstance(row, BadRow):
        raise row
    plan = formats.plan_of(row, format, tuple(formats.SHAPES))
    shape = plan.shape
    records: Sequence[Any] = to_comparisons(row, shape) if target == "pair" else to_examples(row, shape)
    if target == "pair" and len(records) > 1:  # ties are left out if there are other pairs
        decided = [record for record in records if record.target != 0.5]
        lost["ties"] += len(decided) < len(records)
        records = decided or records
    rows = [_WRITERS[target](record) for record in records]
    if suffix in (".csv", ".parquet"):
        rows = [_flat(converted, suffix) for converted in rows]
    lost.update(
        key for key in plan.lost(("preference_strength",) if target == "pair" else _COMPARED) if not is_empty(row[key])
    )
    for key in (key for key in plan.unknown if not is_empty(row[key])):
        extended = [{**converted, key: row[key]} for converted in rows]
        fits = suffix in (".jsonl", ".gz") and all(key not in converted for converted in rows)
        if fits and all(_reads_as(converted, target) for converted in extended):
            rows = extended
        else:
            lost[key] += 1
    if target == "text" and not all(isinstance(record, Document) for record in records):
        lost["who says what"] += 1
    return rows


def _reads_as(row: dict[str, Any], target: Target) -> bool:
    """Whether a written row is read as the target, with nothing that it would be refused for."""
    plan = formats.plan_of(row, "auto", tuple(formats.SHAPES))
    return plan.shape == ("chat" if target == "openai" else target) and not plan.known


# --- one writer for each target ------------------------------------------------------------------------------------


def _turns(record: Demonstration | Document) -> tuple[Message, ...]:
    if isinstance(record, Document):
        raise BadRow("a plain text has no turns; only --to text can hold it")
    return record.messages


def _chat(record: Demonstration | Document) -> dict[str, Any]:
    turns = _turns(record)
    assert isinstance(record, Demonstration)
    return {"messages": [dict(turn) for turn in turns]} | ({"tools": list(record.tools)} if record.tools else {})


def _openai(record: Demonstration | Document) -> dict[str, Any]:
    """The format of OpenAI's fine-tuning files: the arguments of a call are a JSON string."""
    row = _chat(record)
    for turn in row["messages"]:
        if "tool_calls" in turn:
            calls = [(call, call["function"]) for call in turn["tool_calls"]]
            turn["tool_calls"] = [
                {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
                for call, function in calls
            ]
    return row


def _sharegpt(record: Demonstration | Document) -> dict[str, Any]:
    row = _chat(record)
    turns = []
    for turn in row.pop("messages"):
        role, content = turn.pop("role"), turn.pop("content")
        turns.append({"from": _SHAREGPT.get(role, role), "value": content, **turn})
    return {"conversations": turns, **row}


def _single(record: Demonstration | Document, target: Target) -> tuple[str, str]:
    """The question and the answer of a single-turn conversation."""
    turns = _turns(record)
    _check_text_only(record, target)
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise BadRow(f"--to {target} holds one question and its answer; this conversation has {_described(turns)}")
    return turns[0]["content"], turns[1]["content"]


def _check_text_only(record: Demonstration | Document, target: Target) -> None:
    if isinstance(record, Demonstration) and (record.tools or any(len(turn) > 2 for turn in record.messages)):
        raise BadRow(f"--to {target} holds no tools, weights or names; --to openai does")


def _described(turns: Sequence[Message]) -> str:
    return f"{len(turns)} turns ({', '.join(turn['role'] for turn in turns[:6])}{', ...' if len(turns) > 6 else ''})"


def _alpaca(record: Demonstration | Document) -> dict[str, Any]:
    question, answer = _single(record, "alpaca")
    instruction, _, extra = question.partition(INPUT_HEADING)
    if not (instruction.strip() and extra.strip()):
        instruction, extra = question, ""
    return {"instruction": instruction, "input": extra, "output": answer}


def _completion(record: Demonstration | Document) -> dict[str, Any]:
    turns = _turns(record)
    _check_text_only(record, "completion")
    return {"prompt": _prompt(turns[:-1]), "completion": turns[-1]["content"]}


def _prompt(turns: Sequence[Message]) -> str | list[dict[str, Any]]:
    is_single = len(turns) == 1 and turns[0]["role"] == "user"
    return turns[0]["content"] if is_single else [dict(turn) for turn in turns]


def _pair(record: Comparison) -> dict[str, Any]:
    if record.target == 0.5:
        raise BadRow("a tie prefers neither answer; --to pair has no room for it")
    answers = (record.first, record.second) if record.target > 0.5 else (record.second, record.first)
    row = {"prompt": _prompt(record.prompt), "chosen": _answer(answers[0]), "rejected": _answer(answers[1])}
    if len(record.votes) == 1 and record.votes[0].labeler is not None:
        row["labeler"] = record.votes[0].labeler
    return row | ({} if record.margin is None else {"margin": record.margin})


def _answer(answer: str) -> str | list[dict[str, Any]]:
    return [dict(turn) for turn in answer_turns(answer)] if isinstance(answer, LongAnswer) else answer


def _text(record: Demonstration | Document) -> dict[str, Any]:
    if isinstance(record, Document):
        return {"text": record.text}
    _check_text_only(record, "text")
    return {"text": "\n\n".join(turn["content"] for turn in record.messages)}


_WRITERS: dict[Target, Callable[[Any], dict[str, Any]]] = {
    "chat": _chat,
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "pair": _pair,
    "text": _text,
}


# --- file types --------------------------------------------------------------------------------------------------


def _flat(row: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The row as a table can hold it: strings only in CSV; strings and lists of turns in Parquet."""
    for key, value in row.items():
        if key == "tools":
            raise BadRow("a table has no room for tools; write .jsonl")
        if suffix == ".csv" and not isinstance(value, str):
            raise BadRow(f"a CSV file has no room for the turns of '{key}'; write .jsonl")
        if suffix == ".csv" and len(value) > csv.field_size_limit():
            raise BadRow(f"'{key}' is longer than {csv.field_size_limit():,} characters, which CSV readers refuse")
        if isinstance(value, list) and any(len(turn) > 2 for turn in value):
            raise BadRow(f"a Parquet file has no room for tools, weights or names in '{key}'; write .jsonl")
        if key == "prompt" and suffix == ".parquet" and isinstance(value, str):
            row[key] = [{"role": "user", "content": value}]  # a column has one type
    return row
