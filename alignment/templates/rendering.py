"""The one place that turns a conversation into token ids and a loss mask.

Training, sampling, scoring and PPO all come through here, so that a model never meets a rendering it was not trained
on. The text is rendered once and tokenized in pieces that end where an answer begins or ends: no token spans the
border, so the prompt's ids are a prefix of the conversation's under any tokenizer. What people wrote can never become
a control token: `<|im_end|>` in a message is tokenized as the eight letters and signs that it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import jinja2

from alignment.templates.builtin import TEMPLATES
from alignment.templates.control_tokens import (
    Span,
    TemplateError,
    Unrenderable,
    disarm,
    encode_pieces,
    piece_lengths,
    readable,
    start_token,
    without_control_tokens_at_end,
)
from alignment.templates.ends import end_pattern, end_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = re.compile(r"\{%-?\s*generation\b")

Tools = Sequence[Mapping[str, Any]]


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


@dataclass(frozen=True)
class Encoded:
    """A rendered conversation: token ids, and which of them are trained on (the assistant's, through its end)."""

    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def num_response_tokens(self) -> int:
        """Length of the last run of trained tokens, which is where the conversation ends."""
        mask = self.loss_mask
        return next((i for i, kept in enumerate(reversed(mask)) if not kept), len(mask))


def set_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Put a template on the tokenizer: one of ours, or a `.jinja` file; None keeps its own, which must then exist.

    Ours begin with BOS or CLS where the tokenizer would put one before a text: such a model has never seen a text
    without, and an encoder reads the whole from its CLS.

    Raises:
        TemplateError: no such template or file, one that does not parse or cannot render a question and an answer.
    """
    if name is None:
        if not tokenizer.chat_template:
            known = ", ".join(TEMPLATES)
            raise TemplateError(f"the tokenizer has no chat template; set model.template to one of: {known}")
        return
    if name in TEMPLATES:
        start = start_token(tokenizer)
        tokenizer.chat_template = (f"{{{{ {start} }}}}" if start else "") + TEMPLATES[name]
        return
    if not name.endswith(".jinja"):
        known = ", ".join(TEMPLATES)
        raise TemplateError(f"model.template: no template '{name}'; known: {known}, or the path of a .jinja file")
    try:
        tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
        encoded, prompt = encode_conversation(tokenizer, _GREETING), encode_prompt(tokenizer, _GREETING[:1])
        if encoded and encoded.input_ids[: len(prompt)] != prompt:
            raise TemplateError("what it renders with add_generation_prompt is not how an answer begins")
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise TemplateError(f"model.template: {name}: {error}") from None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that the assistant is to continue, whole (`data/trimming.py` cuts it)."""
    messages = disarm(tokenizer, list(messages))
    text, marked = _render(tokenizer, messages, add_generation_prompt=True)
    spans: Sequence[Span] = ()
    if any(message["role"] == "assistant" for message in messages):
        try:
            spans = _through_ends(tokenizer, text, marked) or _turns(tokenizer, messages, None, text)
        except Unrenderable:
            spans = ()  # no borders to keep to: such a conversation cannot be trained on either
    return [token for piece in encode_pieces(tokenizer, text, spans) for token in piece]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> Encoded:
    """Token ids and loss mask of a conversation that ends with the assistant's turn, not trimmed.

    The ids end at the end of the assistant's last turn that is trained on: whatever a template renders after it (a
    newline, say) would be read as the end of the answer by a reward model. Where the template writes no end token
    there, as Falcon's, EOS stands in its place.

    Raises:
        Unrenderable: this conversation, under this template.
        TemplateError: the assistant's turn ends with a text that is no end token.
    """
    assert messages[-1]["role"] == "assistant", messages
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    messages, tools = disarm(tokenizer, list(messages)), disarm(tokenizer, list(tools or ()))
    text, marked = _render(tokenizer, messages, tools)
    if len(marked) < len(weights) or (len(marked) > len(weights) and 0 in weights):
        marked = []  # no marks, or not one for each turn
    spans = _through_ends(tokenizer, text, marked) or _turns(tokenizer, messages, tools, text)
    trained = [span for span, weight in zip(spans, weights, strict=True) if weight] if 0 in weights else spans
    assert trained, messages
    ids: list[int] = []
    mask: list[bool] = []
    position = 0
    for length, piece in zip(piece_lengths(text, spans), encode_pieces(tokenizer, text, spans), strict=True):
        ids += piece
        mask += [(position, position + length) in trained] * len(piece)
        position += length
        if position == trained[-1][1]:
            break
    if ids[-1] not in end_token_ids(tokenizer):
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
    return Encoded(ids, mask)


def encode_to_score(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that is read and not learned from, through its last end, also where the template
    renders the assistant's turn otherwise than it is written (without its reasoning, say).

    Raises:
        Unrenderable: the template refuses the conversation.
    """
    try:
        return encode_conversation(tokenizer, messages).input_ids
    except Unrenderable:
        text, _ = _render(tokenizer, disarm(tokenizer, list(messages)))
        ends = list(end_pattern(tokenizer).finditer(text))
        text = text[: ends[-1].end()] if ends else text
        ids = [token for piece in encode_pieces(tokenizer, text, ()) for token in piece]
        return ids if ends else [*ids, tokenizer.eos_token_id]


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
    disarmed = disarm(tokenizer, text)
    ids = [token for piece in encode_pieces(tokenizer, disarmed, ()) for token in piece]
    start = start_token(tokenizer)
    return [*([getattr(tokenizer, f"{start}_id")] if start else []), *ids, tokenizer.eos_token_id]


def _no_end(tokenizer: PreTrainedTokenizerBase, found: str) -> TemplateError:
    return TemplateError(
        f"the chat template ends the assistant's turn with {found[-20:]!r}, which is no token that ends an answer "
        f"(EOS is {tokenizer.eos_token!r}): the model would never learn to stop; set model.eos_token or model.template"
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
            chat_template=tokenizer.get_chat_template(None, list(tools) if tools else None),
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


def _through_ends(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> list[Span]:
    """Marked spans with the end token that follows, where a template has it outside of its marks."""
    found, ends = [], end_pattern(tokenizer)
    for start, stop in spans:
        after = None if ends.search(text, start, stop) else ends.match(text, stop)
        found.append((start, after.end() if after else stop))
    return found


def _turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None, text: str
) -> list[Span]:
    """Where the assistant's turns are, through their ends, under a template without marks: what each adds to the text.

    (To check it against the message is open-instruct's idea.) What a template writes between header and content, an
    empty reasoning block for example, is no part of it. A turn without an end token ends with its content.

    Raises:
        Unrenderable: a turn's content is not to be found where its prompt ends.
        TemplateError: another text follows it than an end token.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if number == 0:
            raise Unrenderable(
                "the conversation begins with the assistant's turn, which cannot be told from its header under a "
                "template without {% generation %} marks; set model.template"
            )
        before, _ = _render(tokenizer, messages[:number], tools, add_generation_prompt=True)
        through, _ = _render(tokenizer, messages[: number + 1], tools)
        if not text.startswith(before) or not through.startswith(before):
            raise Unrenderable(
                f"the chat template renders turn {number + 1} otherwise when more turns follow: its prompt ends with "
                f"{readable(tokenizer, before)[-20:]!r}, which the whole conversation does not have there; set "
                "model.template, or add {% generation %} marks to the template"
            )
        turn: str | None = through[len(before) :]
        if not text.startswith(through):
            turn = _as_followed(tokenizer, through[len(before) :], message["content"].strip(), text[len(before) :])
        if turn is None:
            raise Unrenderable(
                f"the chat template renders turn {number + 1} otherwise when more turns follow, so its tokens "
                "cannot be told apart; set model.template, or add {% generation %} marks to the template"
            )
        start, stop = _within(tokenizer, turn, message, number)
        spans.append((len(before) + start, len(before) + stop))
    return spans


def _as_followed(tokenizer: PreTrainedTokenizerBase, turn: str, content: str, rest: str) -> str | None:
    """A turn that is rendered otherwise when more turns follow: with another end (GPT-OSS), without EOS after it
    (Phi-3), or without the reasoning block before its content (Qwen3).

    Args:
        turn: as it is rendered where it is the last one.
        rest: what the whole conversation has from there on.
    """
    if not content:
        return None
    for header in (turn[: turn.rfind(content)], rest[: len(rest) - len(rest.lstrip())]):
        if content in turn and rest.startswith(header + content):
            stop = len(header + content)
            end = end_pattern(tokenizer).match(rest, stop)
            return rest[: end.end() if end else stop]
    return None


def _within(tokenizer: PreTrainedTokenizerBase, turn: str, message: Message, number: int) -> Span:
    """Start and end of the content and its end token within a rendered turn."""
    end = end_pattern(tokenizer).search(turn)
    body = without_control_tokens_at_end(tokenizer, turn[: end.start()] if end else turn)
    content = message["content"].strip()
    start = 0 if message.get("tool_calls") else len(body.rstrip()) - len(content)
    written = body.strip() if message.get("tool_calls") else body.rstrip()[max(start, 0) :]
    if start < 0 or not written.startswith(content):
        if end is None and content and body.strip().startswith(content):
            raise _no_end(tokenizer, readable(tokenizer, body.rstrip()))
        raise Unrenderable(
            f"the chat template renders the assistant's turn {number + 1} as "
            f"{readable(tokenizer, body)[:60]!r}, which is not its text; set model.template"
        )
    if not body[:start].strip():
        start = 0  # white space that the answer begins with
    return start, end.end() if end else len(body.rstrip())
