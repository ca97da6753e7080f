"""Encode records as token ids, for training, the data check and the preview alike."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alignment.config.sections import TooLong
from alignment.data.messages import with_answer
from alignment.data.records import Comparison, CompletionRating, Demonstration, Document, Prompt
from alignment.data.trimming import fit, trim_prompt
from alignment.templates.rendering import Encoded, Message, TurnsChange, encode_conversation, encode_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Demonstration | Document | Comparison | CompletionRating | Prompt


def encode_record(record: Record, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """All tokens of a record; for a comparison, the tokens of its longer side.

    Raises:
        Unrenderable: the template cannot render this record.
        TemplateError: the template or tokenizer cannot render any record.
    """
    if isinstance(record, Document):
        ids = encode_text(tokenizer, record.text)
        return Encoded(ids, [True] * len(ids))
    if isinstance(record, Prompt):
        ids = encode_prompt(tokenizer, record.messages)
        return Encoded(ids, [False] * len(ids))
    if isinstance(record, Comparison):
        sides = [encode_conversation(tokenizer, side) for side in _sides(record)]
        return max(sides, key=lambda side: len(side.input_ids))
    if isinstance(record, CompletionRating):
        return encode_conversation(tokenizer, with_answer(record.prompt, record.completion))
    return encode_conversation(tokenizer, record.messages, tools=record.tools)


def encode_parts(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Record, Encoded]]:
    """A record with its tokens, or its answers as records of their own where the template renders an answer otherwise
    once more turns follow (`TurnsChange`): each is then trained as the last one, as it is generated.

    Raises:
        Unrenderable, TemplateError: see `encode_record`.
    """
    try:
        return [(record, encode_record(record, tokenizer))]
    except TurnsChange:
        if not isinstance(record, Demonstration):
            raise
        return [(part, encode_record(part, tokenizer)) for part in _by_turn(record)]


BY_TURN = "each answer is a row of its own: the chat template renders an answer otherwise once more turns follow"


def _by_turn(record: Demonstration) -> list[Demonstration]:
    parts = []
    for index, message in enumerate(record.messages):
        if message["role"] == "assistant" and message.get("weight", 1):
            before = [
                Message({**turn, "weight": 0}) if turn["role"] == "assistant" else turn
                for turn in record.messages[:index]
            ]
            parts.append(replace(record, messages=(*before, message), notes=(*record.notes, BY_TURN)))
    return parts


def fit_record(
    record: Demonstration | Comparison | CompletionRating | Prompt,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong = "trim_prompt",
) -> Encoded | None:
    """Apply `alignment.data.trimming.fit` to a record; `encoded` holds all of its tokens."""
    if len(encoded.input_ids) <= max_length:
        return encoded
    if isinstance(record, Demonstration):
        return fit(tokenizer, record.messages, encoded, max_length, too_long, record.tools)
    if isinstance(record, Prompt):
        shorter = trim_prompt(tokenizer, record.messages, max_length) if too_long == "trim_prompt" else None
        ids = [] if shorter is None else encode_prompt(tokenizer, shorter)
        return Encoded(ids, [False] * len(ids)) if ids else None
    if isinstance(record, CompletionRating):
        return fit(tokenizer, with_answer(record.prompt, record.completion), encoded, max_length, too_long)
    longer = next(side for side in _sides(record) if encode_conversation(tokenizer, side) == encoded)
    return fit(tokenizer, longer, encoded, max_length, too_long)


def _sides(record: Comparison) -> list[tuple[Message, ...]]:
    return [with_answer(record.prompt, text) for text in (record.first, record.second)]
