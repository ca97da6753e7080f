"""Tokenizing text in pieces without ever turning user text into a control token.

`disarm` replaces each control token in user text with a stand-in before a template renders it. `encode_pieces` encodes
a stand-in as the characters of its token.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alignment.errors import UserError
from alignment.templates.ends import end_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A stand-in is two lone surrogates, which no valid text contains.
_STAND_IN = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")

Span = tuple[int, int]


class TemplateError(UserError):
    """A chat template or tokenizer that cannot be used."""


class Unrenderable(TemplateError):
    """A conversation that this template cannot render; it may render others."""


def disarm(tokenizer: PreTrainedTokenizerBase, value: Any) -> Any:
    """A message, or a value in it, with stand-ins for the control tokens that it contains."""
    control = _control_tokens(tokenizer)
    if isinstance(value, str):
        value = _HALVES.sub("\ufffd", value)
        return control.written.sub(lambda match: control.stand_in(match.group()), value)
    if isinstance(value, Mapping):
        return {key: disarm(tokenizer, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [disarm(tokenizer, item) for item in value]
    return value


def readable(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text with its stand-ins replaced by the original control tokens."""
    if not _STAND_IN.search(text):
        return text
    control = _control_tokens(tokenizer)
    return _STAND_IN.sub(lambda match: control.word(match.group()), text)


def without_control_tokens_at_end(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without the control tokens at its end."""
    words = _control_tokens(tokenizer).written.pattern
    return re.sub(rf"(?:\s*(?:{words}))+\s*\Z", "", text)


def encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> list[list[int]]:
    """Token ids of each piece of a text, with stand-ins encoded as the characters of their tokens.

    Args:
        spans: parts of the text whose borders cut it into pieces, so that no token crosses a border.
    """
    texts, position = [], 0
    for length in piece_lengths(text, spans):
        texts.append(text[position : position + length])
        position += length
    armed = [readable(tokenizer, piece) for piece in texts]
    pieces = _tokenize(tokenizer, armed)
    if not _STAND_IN.search(text):
        return pieces
    return [_spelled(tokenizer, piece, ids) for piece, ids in zip(texts, pieces, strict=True)]


def piece_lengths(text: str, spans: Sequence[Span]) -> list[int]:
    """Lengths of the pieces into which the spans' borders cut a text; none is 0."""
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    return [stop - start for start, stop in itertools.pairwise(borders)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool) -> list[list[int]]:
    """Token ids of each text; every text but the first is tokenized as a continuation of the one before.

    SentencePiece tokenizers put a space before their input. So the input is prefixed with an end token or a line break,
    whose ids are then removed (transformers' `encode_marked_chat` does the same).
    """
    if not texts:
        return []
    plain: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
    if len(texts) > 1 and (line_break := _line_break_before(tokenizer)):
        ends = {str(tokenizer.convert_ids_to_tokens(token)): token for token in end_token_ids(tokenizer)}
        after = [next((end for end in ends if before.endswith(end)), None) for before in texts[:-1]]
        longer = [(end or "\n") + text for end, text in zip(after, texts[1:], strict=True)]
        shifted = tokenizer(longer, add_special_tokens=False, **options)["input_ids"]
        for index, (end, ids) in enumerate(zip(after, shifted, strict=True), 1):
            before = [ends[end]] if end else line_break
            if ids[: len(before)] == before:
                plain[index] = ids[len(before) :]
    return plain


def start_token(tokenizer: PreTrainedTokenizerBase) -> Literal["bos_token", "cls_token"] | None:
    """The token that the tokenizer puts before a text, by its attribute: BOS, or the CLS that an encoder reads from."""
    first = (tokenizer("a")["input_ids"] or [None])[0]
    names: tuple[Literal["bos_token", "cls_token"], ...] = ("bos_token", "cls_token")
    return next((name for name in names if first is not None and getattr(tokenizer, f"{name}_id") == first), None)


@functools.lru_cache(maxsize=4)
def _line_break_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a line break if text after one is tokenized differently, else an empty list."""
    alone, line_break, after = tokenizer(["a", "\n", "\na"], add_special_tokens=False)["input_ids"]
    return line_break if after[: len(line_break)] == line_break and after[len(line_break) :] != alone else []


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """A piece's ids with control tokens from user text spelled out; those of the template stay.

    Both occur in the piece in the order in which the tokenizer finds them.
    """
    control = _control_tokens(tokenizer)
    occurrences = [match.group() for match in control.anywhere.finditer(text)]
    if sum(token in control.ids for token in ids) != len(occurrences):
        raise Unrenderable("a control token in a message cannot be told from the template's own; take it out")
    spelled: list[int] = []
    matches = iter(occurrences)
    for token in ids:
        if token in control.ids and _STAND_IN.match(match := next(matches)):
            spelled += _spell(tokenizer, control.word(match))
        else:
            spelled.append(token)
    return spelled


def _spell(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Ids of a control token's characters, none of them a control token; the vocabulary may hold the word as well."""
    control = _control_tokens(tokenizer)
    for parts in ([word], list(word)):
        pieces = _tokenize(tokenizer, ["", *parts], split_special_tokens=True)
        ids = [token for piece in pieces for token in piece]
        if not control.ids.intersection(ids):
            return ids
    raise Unrenderable(f"the tokenizer has no way to write {word!r} as text; take it out of the message")


@dataclass(frozen=True)
class _ControlTokens:
    words: tuple[str, ...]
    ids: frozenset[int]
    written: re.Pattern[str]
    """Matches any control token, the longest first, as tokenizers do."""
    anywhere: re.Pattern[str]
    """Matches any control token or stand-in."""

    def stand_in(self, word: str) -> str:
        high, low = divmod(self.words.index(word), 0x400)
        return chr(0xD800 + high) + chr(0xDC00 + low)

    def word(self, stand_in: str) -> str:
        return self.words[(ord(stand_in[0]) - 0xD800) * 0x400 + ord(stand_in[1]) - 0xDC00]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> _ControlTokens:
    return _find_control_tokens(tokenizer, len(tokenizer), end_token_ids(tokenizer))


@functools.lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: PreTrainedTokenizerBase, size: int, ends: tuple[int, ...]) -> _ControlTokens:
    """The special tokens, and those that end an answer, which some tokenizers do not mark as special.

    The unknown token is not among them, since it controls nothing, unless it also ends a text, as GPT-2's does.

    Args:
        size: the tokenizer's size, a cache key, so that a grown tokenizer is looked at again.
    """
    added = {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or index in ends
    }
    if tokenizer.unk_token in added and tokenizer.unk_token not in (tokenizer.eos_token, tokenizer.bos_token):
        del added[tokenizer.unk_token]
    words = "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"
    return _ControlTokens(
        tuple(added), frozenset(added.values()), re.compile(words), re.compile(f"{words}|{_STAND_IN.pattern}")
    )
