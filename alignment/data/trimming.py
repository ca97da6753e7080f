"""A conversation that is too long, cut so that the model still reads a chat.

Whole exchanges go first, the oldest one first. Of the last exchange, content is cut out of the middle of its messages,
again the oldest first. The system turn, the headers and ends that the template writes, and the answer stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alignment.config.sections import TooLong
from alignment.templates.rendering import Encoded, Message, Tools, encode_conversation, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 32
"""Fewest characters that a cut message keeps: a question that is gone cannot be answered."""
SLACK = 2
"""Tokens below the limit that are near enough to it."""
MOST_STEPS = 20


def fit(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    encoded: Encoded,
    max_length: int,
    too_long: TooLong = "trim_prompt",
    tools: Tools | None = None,
) -> Encoded | None:
    """A conversation within `max_length` tokens; None where it is left out.

    Left out is what `too_long` does not let cut, and what cannot be: where the answer and the frame around it do not
    fit whole. An answer without its end teaches a model never to stop.

    Args:
        messages: of which `encoded` are the tokens.
    """
    if len(encoded.input_ids) <= max_length:
        return encoded
    if too_long != "trim_prompt":
        return None
    trained = [n for n, each in enumerate(messages) if each["role"] == "assistant" and each.get("weight", 1)]
    messages = messages[: trained[-1] + 1]  # the tokens end there too

    def count(messages: Sequence[Message]) -> int:
        return len(encode_conversation(tokenizer, messages, tools).input_ids)

    found = trim(messages, max_length, count)
    return None if found is None else encode_conversation(tokenizer, found, tools)


def trim_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> list[Message] | None:
    """A prompt whose tokens are at most `max_length`; None where it cannot be cut so far."""
    return trim(messages, max_length, lambda messages: len(encode_prompt(tokenizer, messages)))


def trim(
    messages: Sequence[Message], max_length: int, count: Callable[[Sequence[Message]], int]
) -> list[Message] | None:
    """Messages that `count` at most `max_length` tokens; None where there is no room for the frame.

    Args:
        count: tokens of messages.
    """
    if count(messages) <= max_length:
        return list(messages)
    head, turns, starts = _exchanges(messages)
    low, high = 0, len(starts)  # the first exchange from which on all fits, by bisection
    while low < high:
        middle = (low + high) // 2
        if count(head + turns[starts[middle] :]) <= max_length:
            high = middle
        else:
            low = middle + 1
    if low < len(starts):
        return head + turns[starts[low] :]
    kept = head + (turns[starts[-1] :] if starts else turns)
    for place in _cuttable(kept, len(head)):
        shorter = _shorten(kept, place, max_length, count)
        if shorter is not None:
            return shorter
        kept[place] = _cut(kept[place], LEAST)
    return None


def least(messages: Sequence[Message]) -> list[Message]:
    """The shortest that `trim` can make of messages."""
    head, turns, starts = _exchanges(messages)
    kept = head + (turns[starts[-1] :] if starts else turns)
    cut = _cuttable(kept, len(head))
    return [_cut(message, LEAST) if place in cut else message for place, message in enumerate(kept)]


def _exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[Message], list[int]]:
    """The system turns at the beginning, the others, and where among those exchanges begin."""
    system = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    turns = list(messages[system:])
    return list(messages[:system]), turns, [n for n, message in enumerate(turns) if message["role"] == "user"]


def _cuttable(messages: Sequence[Message], start: int) -> range:
    """Places from `start` on whose content may be cut: an answer at the end stays whole."""
    return range(start, len(messages) - (messages[-1]["role"] == "assistant"))


def _shorten(
    messages: Sequence[Message], place: int, max_length: int, count: Callable[[Sequence[Message]], int]
) -> list[Message] | None:
    """The messages with one of them cut as little as is needed; None where it would have to lose nearly all."""

    def shortened(length: int) -> list[Message]:
        return [*messages[:place], _cut(messages[place], length), *messages[place + 1 :]]

    least, most = LEAST, len(messages[place]["content"])
    if least >= most:
        return None
    fits, too_many = count(shortened(least)), count(messages)
    if fits > max_length:
        return None
    # Interpolation, as tokens are nearly even over a text; every third step halves, where they are not.
    for step in range(MOST_STEPS):
        if most - least <= 1 or max_length - fits <= SLACK:
            break
        share = 0.5 if step % 3 == 2 else (max_length - fits) / max(1, too_many - fits)
        length = min(max(least + round(share * (most - least)), least + 1), most - 1)
        found = count(shortened(length))
        if found <= max_length:
            least, fits = length, found
        else:
            most, too_many = length, found
    return shortened(least)


def _cut(message: Message, length: int) -> Message:
    """A message of which at most `length` characters are left, its beginning and its end, cut between words."""
    content = message["content"]
    if len(content) <= length:
        return message
    first, last = content[: length // 2], content[len(content) - (length - length // 2) :]
    if " " in first and " " in last:
        first, last = first.rpartition(" ")[0], last[last.index(" ") :]
    return {**message, "content": first + last}
