"""Trim a conversation that is too long to one that is still well-formed.

Whole exchanges are dropped first, oldest first. Then the middle of the last exchange's messages is cut out, again
oldest first. The system turn, the template's headers and ends, and the answer are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alignment.config.sections import TooLong
from alignment.templates.rendering import Encoded, Message, Tools, encode_conversation, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 32
"""Minimum number of characters that a cut message keeps, so that the question stays recognizable."""
SLACK = 2
"""Tokens below the limit at which the search stops."""
MOST_STEPS = 20


def fit(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    encoded: Encoded,
    max_length: int,
    too_long: TooLong = "trim_prompt",
    tools: Tools | None = None,
) -> Encoded | None:
    """A conversation within `max_length` tokens; None if it is left out.

    It is left out if `too_long` forbids trimming, or if the whole answer and the template around it do not fit. An
    answer without its end would teach the model never to stop.

    Args:
        encoded: the tokens of `messages`.
    """
    if len(encoded.input_ids) <= max_length:
        return encoded
    if too_long != "trim_prompt":
        return None
    trained = [
        index for index, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight", 1)
    ]
    messages = messages[: trained[-1] + 1]  # encoding stops there too

    def count(messages: Sequence[Message]) -> int:
        return len(encode_conversation(tokenizer, messages, tools).input_ids)

    trimmed = trim(messages, max_length, count)
    return None if trimmed is None else encode_conversation(tokenizer, trimmed, tools)


def trim_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> list[Message] | None:
    """A prompt of at most `max_length` tokens; None if it cannot be trimmed that far."""
    return trim(messages, max_length, lambda messages: len(encode_prompt(tokenizer, messages)))


def trim(
    messages: Sequence[Message], max_length: int, count: Callable[[Sequence[Message]], int]
) -> list[Message] | None:
    """Messages of at most `max_length` tokens; None if even the template does not fit.

    Args:
        count: returns the number of tokens of messages.
    """
    if count(messages) <= max_length:
        return list(messages)
    head, turns, starts = _exchanges(messages)
    low, high = 0, len(starts)  # bisect for the first exchange from which the rest fits
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


def shortest(messages: Sequence[Message]) -> list[Message]:
    """The shortest result that `trim` can return for messages."""
    head, turns, starts = _exchanges(messages)
    kept = head + (turns[starts[-1] :] if starts else turns)
    cut = _cuttable(kept, len(head))
    return [_cut(message, LEAST) if place in cut else message for place, message in enumerate(kept)]


def _exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[Message], list[int]]:
    """The leading system turns, the other turns, and the indices of those at which an exchange begins."""
    system = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    turns = list(messages[system:])
    return list(messages[:system]), turns, [index for index, message in enumerate(turns) if message["role"] == "user"]


def _cuttable(messages: Sequence[Message], start: int) -> range:
    """Indices from `start` on whose content may be cut: a final answer stays whole."""
    return range(start, len(messages) - (messages[-1]["role"] == "assistant"))


def _shorten(
    messages: Sequence[Message], place: int, max_length: int, count: Callable[[Sequence[Message]], int]
) -> list[Message] | None:
    """The messages with one of them cut as little as needed; None if that message cannot be cut enough."""

    def shortened(length: int) -> list[Message]:
        return [*messages[:place], _cut(messages[place], length), *messages[place + 1 :]]

    low, high = LEAST, len(messages[place]["content"])
    if low >= high:
        return None
    low_tokens, high_tokens = count(shortened(low)), count(messages)
    if low_tokens > max_length:
        return None
    # Interpolate, because token density is nearly uniform; every third step bisects, in case it is not.
    for step in range(MOST_STEPS):
        if high - low <= 1 or max_length - low_tokens <= SLACK:
            break
        share = 0.5 if step % 3 == 2 else (max_length - low_tokens) / max(1, high_tokens - low_tokens)
        length = min(max(low + round(share * (high - low)), low + 1), high - 1)
        num_tokens = count(shortened(length))
        if num_tokens <= max_length:
            low, low_tokens = length, num_tokens
        else:
            high, high_tokens = length, num_tokens
    return shortened(low)


def _cut(message: Message, length: int) -> Message:
    """A message reduced to the first and last `length / 2` characters, cut between words."""
    content = message["content"]
    if len(content) <= length:
        return message
    first, last = content[: length // 2], content[len(content) - (length - length // 2) :]
    if " " in first and " " in last:
        first, last = first.rpartition(" ")[0], last[last.index(" ") :]
    return {**message, "content": first + last}
