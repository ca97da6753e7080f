"""The one place that turns a conversation into token ids and a loss mask.

Training, sampling, scoring and PPO all come through here, so that a model never meets a rendering it was not trained
on. The text is rendered once and tokenized in pieces that end where an answer begins or ends: no token spans the
border, so the prompt's ids are a prefix of the conversation's under any tokenizer. What people wrote can never become
a control token: `<|im_end|>` in a message is tokenized as the eight letters and signs that it is.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import jinja2

from alignment.chat_templates import TEMPLATES
from alignment.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What stands for a control token in people's words until they are tokenized: two halves of surrogate pairs that make
# no character, so no text holds them.
_STAND_IN = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")
_MARKS = re.compile(r"\{%-?\s*generation\b")

Tools = Sequence[Mapping[str, Any]]
Span = tuple[int, int]


class Message(TypedDict):
    """One turn. `weight` 0 on an assistant's turn takes the loss off it; `tool_calls` are as OpenAI has them, with
    the arguments as an object."""

    role: str
    content: str
    weight: NotRequired[int]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


_GREETING = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))


class TemplateError(UserError):
    """A chat template or tokenizer that cannot render what is asked."""


class Unrenderable(TemplateError):
    """A conversation that this template cannot render; it may render others."""


@dataclass(frozen=True)
class Encoded:
    """A rendered conversation: token ids, and which of them are trained on (the assistant's, through EOS)."""

    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def num_response_tokens(self) -> int:
        """Length of the last run of trained tokens, which is where the conversation ends."""
        mask = self.loss_mask
        return next((i for i, kept in enumerate(reversed(mask)) if not kept), len(mask))


def set_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Put a template on the tokenizer: one of ours, or a `.jinja` file; None keeps its own, which must then exist.

    Ours begin with BOS where the tokenizer would put one before a text: such a model has never seen a text without.

    Raises:
        TemplateError: no such template or file, one that does not parse or cannot render a question and an answer.
    """
    if name is None:
        if not tokenizer.chat_template:
            known = ", ".join(TEMPLATES)
            raise TemplateError(f"the tokenizer has no chat template; set model.template to one of: {known}")
        return
    if name in TEMPLATES:
        tokenizer.chat_template = ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + TEMPLATES[name]
        return
    if not name.endswith(".jinja"):
        known = ", ".join(TEMPLATES)
        raise TemplateError(f"model.template: no template '{name}'; known: {known}, or the path of a .jinja file")
    try:
        tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
        encode_conversation(tokenizer, _GREETING)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise TemplateError(f"model.template: {name}: {error}") from None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int | None = None
) -> list[int]:
    """Token ids of a conversation that the assistant is to continue.

    With `max_length` the oldest tokens are cut, a leading BOS excepted.
    """
    messages, _ = _disarmed(tokenizer, messages, None)
    text, marked = _render(tokenizer, messages, add_generation_prompt=True)
    spans: Sequence[Span] = ()
    if any(message["role"] == "assistant" for message in messages):
        try:
            spans = marked or _turns(tokenizer, messages, None, text)
        except Unrenderable:
            spans = ()  # no borders to keep to: such a conversation cannot be trained on either
    ids = [token for piece in _pieces(tokenizer, text, spans) for token in piece]
    return _cut_left(tokenizer, ids, max_length) if max_length else ids


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_length: int | None = None,
    tools: Tools | None = None,
) -> Encoded | None:
    """Token ids and loss mask of a conversation that ends with the assistant's turn.

    The ids end at the assistant's last EOS that is trained on: whatever a template renders after it (a newline, say)
    would be read as the end of the answer by a reward model. With `max_length` the oldest tokens are cut; None is
    returned where the last response would not fit whole, because a response without its EOS teaches a model never to
    stop.

    Raises:
        Unrenderable: this conversation, under this template.
        TemplateError: the assistant's turn does not end with the tokenizer's EOS.
    """
    assert messages[-1]["role"] == "assistant", messages
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    messages, tools = _disarmed(tokenizer, messages, tools)
    text, marked = _render(tokenizer, messages, tools)
    if len(marked) < len(weights) or (len(marked) > len(weights) and 0 in weights):
        marked = []  # no marks, or not one for each turn
    spans = marked or _turns(tokenizer, messages, tools, text)
    trained = [span for span, weight in zip(spans, weights, strict=True) if weight] if 0 in weights else spans
    assert trained, messages
    if not text[: trained[-1][1]].endswith(tokenizer.eos_token):
        raise _no_eos(tokenizer, _readable(tokenizer, text[slice(*trained[-1])]))
    ids: list[int] = []
    mask: list[bool] = []
    position = 0
    for length, piece in zip(_lengths(text, spans), _pieces(tokenizer, text, spans), strict=True):
        ids += piece
        mask += [(position, position + length) in trained] * len(piece)
        position += length
        if position == trained[-1][1]:
            break
    if ids[-1] != tokenizer.eos_token_id:
        raise _no_eos(tokenizer, tokenizer.decode(ids[-1:]))
    encoded = Encoded(ids, mask)
    if max_length and len(ids) > max_length:
        if encoded.num_response_tokens >= max_length:
            return None
        # The first token has none before it to be predicted from, and may be the BOS that _cut_left keeps.
        encoded = Encoded(_cut_left(tokenizer, ids, max_length), [False, *mask[1 - max_length :]])
    return encoded


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text by itself, all to be trained on: BOS where the tokenizer puts one, the text, EOS.

    Raises:
        Unrenderable: the text has BOS or EOS in it, so a template has rendered it already; it would get a second BOS.
    """
    ends = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    found = next((token for token in ends if text.startswith(token) or text.rstrip().endswith(token)), None)
    if found:
        raise Unrenderable(
            f"the text begins or ends with {found!r}, which is the tokenizer's to add: a template has rendered it "
            "already; give the conversation as `messages`, or take the control tokens out"
        )
    disarmed = _disarm(tokenizer, text)
    ids = [token for piece in _pieces(tokenizer, disarmed, ()) for token in piece]
    start = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
    return [*start, *ids, tokenizer.eos_token_id]


def _cut_left(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    if len(ids) <= max_length:
        return ids
    has_bos = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return [ids[0], *ids[len(ids) - max_length + 1 :]] if has_bos else ids[-max_length:]


def _no_eos(tokenizer: PreTrainedTokenizerBase, found: str) -> TemplateError:
    return TemplateError(
        f"the chat template ends the assistant's turn with {found[-20:]!r}, not with the tokenizer's EOS "
        f"{tokenizer.eos_token!r}: the model would never learn to stop; set model.eos_token or model.template"
    )


# --- rendering: text, and where in it the assistant's turns are ----------------------------------------------------


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """The text, and what of it stands in {% generation %} marks, if the template has any."""
    template = str(tokenizer.chat_template)
    _check_tools(template, messages, tools)
    with_marks = bool(_MARKS.search(template)) and any(message["role"] == "assistant" for message in messages)
    try:
        if not with_marks:
            options = {"tools": list(tools)} if tools else {}
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
            return text, []
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = render_jinja_template(
            [list(messages)],
            tools=list(tools) if tools else None,
            chat_template=tokenizer.get_chat_template(None, tools),
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
        return rendered[0], [(start, stop) for start, stop in spans[0] if start < stop]
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is no Jinja template: line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise Unrenderable(
            f"the chat template refuses a conversation of {roles}: {error}; change the rows or set model.template"
        ) from error


def _check_tools(template: str, messages: Sequence[Message], tools: Tools | None) -> None:
    """A template that knows no tools would leave them out without a word."""
    uses = {
        "tools": bool(tools),
        "tool_calls": any(message.get("tool_calls") for message in messages),
        "tool": any(message["role"] == "tool" for message in messages),
    }
    for name, used in uses.items():
        if used and name not in template:
            raise Unrenderable(f"the chat template has no place for {name}; set model.template=chatml, which has one")


def _turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None, text: str
) -> list[Span]:
    """Where the assistant's turns are, through EOS, under a template without marks: what each adds to the text.

    (To check it against the message is open-instruct's idea.) What a template writes between header and content, an
    empty reasoning block for example, is no part of it.

    Raises:
        Unrenderable: a turn is rendered otherwise when more turns follow, or not as it is written.
        TemplateError: it has no EOS.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(tokenizer, messages[:number], tools, add_generation_prompt=True)
        through, _ = _render(tokenizer, messages[: number + 1], tools)
        if not (text.startswith(before) and text.startswith(through) and len(before) < len(through)):
            raise Unrenderable(
                f"the chat template renders turn {number + 1} otherwise when more turns follow, so its tokens cannot "
                "be told apart; set model.template, or add {% generation %} marks to the template"
            )
        turn, eos, _ = text[len(before) : len(through)].partition(tokenizer.eos_token)
        if not eos:
            raise _no_eos(tokenizer, _readable(tokenizer, turn.rstrip()))
        content = message["content"].strip()
        start = 0 if message.get("tool_calls") else len(turn.rstrip()) - len(content)
        written = turn.strip() if message.get("tool_calls") else turn.rstrip()[max(start, 0) :]
        if start < 0 or not written.startswith(content):
            raise Unrenderable(
                f"the chat template renders the assistant's turn {number + 1} as "
                f"{_readable(tokenizer, turn)[:60]!r}, which is not its text; set model.template"
            )
        if not turn[:start].strip():
            start = 0  # white space that the answer begins with
        spans.append((len(before) + start, len(before) + len(turn) + len(eos)))
    return spans


# --- tokens --------------------------------------------------------------------------------------------------------


def _lengths(text: str, spans: Sequence[Span]) -> list[int]:
    """Lengths of the pieces that the borders of the spans cut a text into; none is 0."""
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    return [stop - start for start, stop in itertools.pairwise(borders)]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> list[list[int]]:
    """Token ids of each piece of a text, a stand-in as the letters of its token."""
    texts, position = [], 0
    for length in _lengths(text, spans):
        texts.append(text[position : position + length])
        position += length
    armed = [_readable(tokenizer, piece) for piece in texts]
    pieces = _tokenize(tokenizer, armed)
    if not _STAND_IN.search(text):
        return pieces
    return [_spelled(tokenizer, piece, ids) for piece, ids in zip(texts, pieces, strict=True)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool) -> list[list[int]]:
    """Token ids of each text, of all but the first as if they stood after the one before.

    SentencePiece tokenizers put a space before whatever they are given. After a line break, which is then taken off
    again, they put none (transformers' `encode_marked_chat` has the trick).
    """
    if not texts:
        return []
    plain: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
    if len(texts) > 1 and (line_break := _line_break_before(tokenizer)):
        shifted = tokenizer(["\n" + text for text in texts[1:]], add_special_tokens=False, **options)["input_ids"]
        for number, ids in enumerate(shifted, 1):
            if ids[: len(line_break)] == line_break:
                plain[number] = ids[len(line_break) :]
    return plain


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
    return _find_control_tokens(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> _ControlTokens:
    """The special tokens; not the unknown one, which people may write and which controls nothing.

    Args:
        size: of the tokenizer, so that one that has grown is asked again.
    """
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    added.pop(tokenizer.unk_token, None)
    words = "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"
    return _ControlTokens(
        tuple(added), frozenset(added.values()), re.compile(words), re.compile(f"{words}|{_STAND_IN.pattern}")
    )


@functools.lru_cache(maxsize=4)
def _line_break_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a line break, if a text is tokenized otherwise after one than by itself."""
    alone, line_break, after = tokenizer(["a", "\n", "\na"], add_special_tokens=False)["input_ids"]
    return line_break if after[: len(line_break)] == line_break and after[len(line_break) :] != alone else []


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _disarm(tokenizer: PreTrainedTokenizerBase, value: Any) -> Any:
    """A message, or what is in it, with stand-ins for the control tokens that people wrote."""
    control = _control_tokens(tokenizer)
    if isinstance(value, str):
        value = _HALVES.sub("\ufffd", value)
        return control.written.sub(lambda match: control.stand_in(match.group()), value)
    if isinstance(value, Mapping):
        return {key: _disarm(tokenizer, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_disarm(tokenizer, item) for item in value]
    return value


def _disarmed(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None
) -> tuple[Sequence[Message], Tools | None]:
    return _disarm(tokenizer, list(messages)), _disarm(tokenizer, list(tools)) if tools else None


def _readable(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text with the control tokens themselves in place of their stand-ins."""
    if not _STAND_IN.search(text):
        return text
    control = _control_tokens(tokenizer)
    return _STAND_IN.sub(lambda match: control.word(match.group()), text)
