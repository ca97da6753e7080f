"""Token ids of a text in pieces, in which what people wrote never becomes a control token.

`disarm` puts a stand-in in the place of each control token in people's words, before a template renders them.
`encode_pieces` gives a stand-in the ids of the letters that it stands for.
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

# A stand-in is two halves of surrogate pairs that make no character, so no text holds one.
_STAND_IN = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")

Span = tuple[int, int]


class TemplateError(UserError):
    """A chat template or tokenizer that cannot render what is asked."""


class Unrenderable(TemplateError):
    """A conversation that this template cannot render; it may render others."""


def disarm(tokenizer: PreTrainedTokenizerBase, value: Any) -> Any:
    """A message, or what is in it, with stand-ins for the control tokens that people wrote."""
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
    """A text with the control tokens themselves in place of their stand-ins."""
    if not _STAND_IN.search(text):
        return text
    control = _control_tokens(tokenizer)
    return _STAND_IN.sub(lambda match: control.word(match.group()), text)


def without_control_tokens_at_end(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without the control tokens that it ends with."""
    words = _control_tokens(tokenizer).written.pattern
    return re.sub(rf"(?:\s*(?:{words}))+\s*\Z", "", text)


def encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> list[list[int]]:
    """Token ids of each piece of a text, a stand-in as the letters of its token.

    Args:
        spans: parts of the text at whose borders it is cut into pieces, so that no token spans one.
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
    """Lengths of the pieces that the borders of the spans cut a text into; none is 0."""
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    return [stop - start for start, stop in itertools.pairwise(borders)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool) -> list[list[int]]:
    """Token ids of each text, of all but the first as if they stood after the one before.

    SentencePiece tokenizers put a space before whatever they are given. So they are given what it stands after too,
    an end token or else a line break, which is then taken off again (transformers' `encode_marked_chat` has the trick).
    """
    if not texts:
        return []
    plain: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
    if len(texts) > 1 and (line_break := _line_break_before(tokenizer)):
        ends = {str(tokenizer.convert_ids_to_tokens(token)): token for token in end_token_ids(tokenizer)}
        after = [next((end for end in ends if before.endswith(end)), None) for before in texts[:-1]]
        longer = [(end or "\n") + text for end, text in zip(after, texts[1:], strict=True)]
        shifted = tokenizer(longer, add_special_tokens=False, **options)["input_ids"]
        for number, (end, ids) in enumerate(zip(after, shifted, strict=True), 1):
            before = [ends[end]] if end else line_break
            if ids[: len(before)] == before:
                plain[number] = ids[len(before) :]
    return plain


def start_token(tokenizer: PreTrainedTokenizerBase) -> Literal["bos_token", "cls_token"] | None:
    """The token that the tokenizer puts before a text, by its attribute: BOS, or the CLS that an encoder reads from."""
    first = (tokenizer("a")["input_ids"] or [None])[0]
    names: tuple[Literal["bos_token", "cls_token"], ...] = ("bos_token", "cls_token")
    return next((name for name in names if first is not None and getattr(tokenizer, f"{name}_id") == first), None)


@functools.lru_cache(maxsize=4)
def _line_break_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a line break, if a text is tokenized otherwise after one than by itself."""
    alone, line_break, after = tokenizer(["a", "\n", "\na"], add_special_tokens=False)["input_ids"]
    return line_break if after[: len(line_break)] == line_break and after[len(line_break) :] != alone else []


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """A piece's ids with the control tokens that people wrote spelled out; those of the template stay.

    Both stand in the piece in the order in which the tokenizer finds them.
    """
    control = _control_tokens(tokenizer)
    found = [match.group() for match in control.anywhere.finditer(text)]
    if sum(token in control.ids for token in ids) != len(found):
        raise Unrenderable("a control token in a message cannot be told from the template's own; take it out")
    spelled: list[int] = []
    matches = iter(found)
    for token in ids:
        if token in control.ids and _STAND_IN.match(match := next(matches)):
            spelled += _spell(tokenizer, control.word(match))
        else:
            spelled.append(token)
    return spelled


def _spell(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Ids of a control token's letters, none of them a control token: a model's own vocabulary may hold it whole."""
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
    """Any of them, the longest first, as tokenizers find them."""
    anywhere: re.Pattern[str]
    """Any of them or of their stand-ins."""

    def stand_in(self, word: str) -> str:
        high, low = divmod(self.words.index(word), 0x400)
        return chr(0xD800 + high) + chr(0xDC00 + low)

    def word(self, stand_in: str) -> str:
        return self.words[(ord(stand_in[0]) - 0xD800) * 0x400 + ord(stand_in[1]) - 0xDC00]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> _ControlTokens:
    return _find_control_tokens(tokenizer, len(tokenizer), end_token_ids(tokenizer))


@functools.lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: PreTrainedTokenizerBase, size: int, ends: tuple[int, ...]) -> _ControlTokens:
    """The special tokens, and those that end an answer, which some tokenizers do not mark as special; not the unknown
    one, which people may write and which controls nothing, unless it is the end of a text too, as GPT-2's is.

    Args:
        size: of the tokenizer, so that one that has grown is asked again.
    """
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or number in ends
    }
    if tokenizer.unk_token in added and tokenizer.unk_token not in (tokenizer.eos_token, tokenizer.bos_token):
        del added[tokenizer.unk_token]
    words = "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"
    return _ControlTokens(
        tuple(added), frozenset(added.values()), re.compile(words), re.compile(f"{words}|{_STAND_IN.pattern}")
    )
