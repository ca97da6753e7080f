"""Rows of any readable shape as prompts with answers to score, with what people said of these answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.config.sections import DataConfig, Format
from alignment.data import formats
from alignment.data.importers import PassedOver
from alignment.data.messages import Turns
from alignment.data.parsing import LEARNED, to_examples, to_judgements
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.row_files import BadRow
from alignment.data.sources import RowSource, open_source
from alignment.templates.rendering import Message


@dataclass(frozen=True)
class JudgedOrder:
    """Two answers of one prompt by their places among its completions, with the votes for each; ties are left out."""

    first: int
    second: int
    for_first: int
    for_second: int


@dataclass(frozen=True)
class ScorableAnswers:
    """One prompt and its answers, in the order of the row; or a plain text, which has neither.

    Args:
        completions: texts; one of several turns is an `alignment.data.messages.LongAnswer`.
        judged: the pairs that people compared. In a row with `chosen` and `rejected` the chosen one is the first.
        rating: what somebody gave the only completion.
        cut: places of completions that a length limit ended; a reward model scores them without an end, as PPO does.
    """

    prompt: Turns = ()
    completions: tuple[str, ...] = ()
    judged: tuple[JudgedOrder, ...] = ()
    rating: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    cut: tuple[int, ...] = ()


@dataclass(frozen=True)
class UnscorableRow:
    """A row without anything to score; `skipped` if nothing is wrong with it."""

    reason: str
    skipped: bool = False


Found = ScorableAnswers | UnscorableRow


def rows_to_score(source: RowSource, format: Format = "auto") -> Iterator[tuple[str, list[Found]]]:
    """Each row's place, and what there is to score in it: several where a row holds several prompts (trees)."""
    for where, row in source.rows:
        try:
            if isinstance(row, BadRow):
                raise row
            records = _records(row, format)
            yield where, _together(records) or [UnscorableRow("it has no answer", skipped=True)]
        except PassedOver as reason:
            yield where, [UnscorableRow(str(reason), skipped=True)]
        except BadRow as reason:
            yield where, [UnscorableRow(str(reason))]


def open_rows(path: str, format: Format = "auto", columns: Mapping[str, str | None] | None = None) -> RowSource:
    """The rows of a file, folder or hub name, as every stage opens them.

    Raises:
        DataError: it is missing, or no kind of data that is read.
    """
    config = DataConfig(train=path, format=format, columns=dict(columns or {}))
    return open_source(config.parts[0], config)


def _records(row: Any, format: Format) -> Sequence[Any]:
    if not isinstance(row, Mapping):
        return [row]  # documents and threads are records already
    plan = formats.plan_of(row, format, (*LEARNED["reward"], *LEARNED["sft"]))
    several = isinstance(plan.renamed(row).get("output"), list) and len(plan.renamed(row)["output"]) > 1
    if plan.shape in LEARNED["reward"] and (plan.shape != "alpaca" or several):
        return to_judgements(row, format)
    return to_examples(row, format)


def _together(records: Sequence[Any]) -> list[Found]:
    found: list[Found] = []
    comparisons = [record for record in records if isinstance(record, Comparison)]
    for prompt, same in itertools.groupby(comparisons, key=lambda pair: pair.prompt):
        found.append(_compared(prompt, list(same)))
    for record in records:
        if isinstance(record, CompletionRating):
            found.append(ScorableAnswers(record.prompt, (record.completion,), rating=record.rating))
        elif isinstance(record, Document):
            found.append(ScorableAnswers(text=record.text))
        elif isinstance(record, Demonstration):
            *before, last = record.messages
            found.append(ScorableAnswers(tuple(before), (last["content"],), tools=record.tools))
        elif isinstance(record, Prompt):
            raise BadRow("a prompt without an answer; expected a completion, a pair, a ranking, a rating or a text")
    return found


def _compared(prompt: Turns, pairs: Sequence[Comparison]) -> ScorableAnswers:
    places = {text: None for pair in pairs for text in (pair.first, pair.second)}
    order = {text: place for place, text in enumerate(places)}
    judged = tuple(
        JudgedOrder(order[pair.first], order[pair.second], pair.count("first"), pair.count("second"))
        for pair in pairs
        if pair.first != pair.second
    )
    return ScorableAnswers(prompt, tuple(places), judged)


def untrained(prompt: Sequence[Message]) -> Turns:
    """A prompt whose assistant's turns are not counted among the answer's tokens."""
    return tuple(Message({**turn, "weight": 0}) if turn["role"] == "assistant" else turn for turn in prompt)
