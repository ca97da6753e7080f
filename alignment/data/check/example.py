"""Show the first example of a check as the stage learns it: who says what, and what of it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from alignment.data.encoding import Record, encode_record
from alignment.data.messages import Turns
from alignment.data.preview import preview_json, preview_lines
from alignment.data.records import Comparison, CompletionRating, Document, Prompt
from alignment.errors import UserError
from alignment.terminal import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 300
"""Characters that are shown of a turn."""


def example_lines(record: Record | None, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Text]:
    """Yield the lines about an example; with a tokenizer also its text as the template renders it."""
    if record is None:
        return
    yield Text()
    yield Text(f"  the first example, {one_line(record.place)}", style="dim")
    for label, text in _parts(record):
        yield Text.assemble((f"  {label:<21} ", "dim"), _short(text))
    if tokenizer is None:
        return
    try:
        encoded = encode_record(record, tokenizer)
    except UserError as error:
        yield Text(f"  {one_line(str(error))}", style="yellow")
        return
    yield from list(preview_lines(preview_json("  rendered", encoded, tokenizer), tokenizer, marks=True))[:-1]


def _parts(record: Record) -> Iterator[tuple[str, str]]:
    if isinstance(record, Document):
        yield "text, trained on", record.text
        return
    if isinstance(record, Comparison):
        yield from _turns(record.prompt, trains=False)
        for name, answer in (("first", record.first), ("second", record.second)):
            yield f"{name}, {_votes(record, name)}", answer
        if record.margin is not None:
            yield "margin", f"{record.margin:g}"
        return
    if isinstance(record, CompletionRating):
        yield from _turns(record.prompt, trains=False)
        yield f"rated {record.rating:g}" + (f" by {record.labeler}" if record.labeler else ""), record.completion
        return
    if not isinstance(record, Prompt) and record.tools:
        yield "tools", ", ".join(str(tool["function"]["name"]) for tool in record.tools)
    yield from _turns(record.messages, trains=not isinstance(record, Prompt))


def _votes(record: Comparison, name: str) -> str:
    won = record.target > 0.5 if name == "first" else record.target < 0.5
    return "a tie" if record.target == 0.5 else "preferred" if won else "rejected"


def _turns(turns: Turns, trains: bool) -> Iterator[tuple[str, str]]:
    for turn in turns:
        trained = trains and turn["role"] == "assistant" and turn.get("weight", 1)
        if turn.get("reasoning_content"):
            yield "reasoning", turn["reasoning_content"]
        calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in turn.get("tool_calls", ())]
        yield turn["role"] + (", trained on" if trained else ""), "\n".join([turn["content"], *calls]).strip()


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
