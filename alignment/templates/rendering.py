"""Turning a conversation into token ids and a loss mask.

Training, sampling, scoring and PPO all use this module, so that a model never meets a rendering it was not trained on.
The text is rendered once and tokenized in pieces that end where an answer begins or ends. No token spans such a border,
so the prompt's ids are a prefix of the conversation's under any tokenizer. User text never becomes a control token:
`<|im_end|>` in a message is tokenized as plain characters.
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
from alignment.templates.reasoning import thought_of, with_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = re.compile(r"\{%-?\s*generation\b")

Tools = Sequence[Mapping[str, Any]]


class Message(TypedDict):
    """One turn.

    `weight` 0 on an assistant's turn excludes it from the loss. `tool_calls` have OpenAI's format, with the arguments
    as an object. `reasoning_content` is what the assistant thought before its answer.
    """

    role: str
    content: str
    weight: NotRequired[int]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]


class TurnsChange(Unrenderable):
    """The template renders an answer otherwise once more turns follow; each answer can be trained as the last one."""


_GREETING = (Message(role="user", content="Hi."), Message(role="assistant", content="Hello."))


@dataclass(frozen=True)
class Encoded:
    """A rendered conversation: token ids, and a mask of the trained ones (the assistant's, through the end token)."""

    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def num_response_tokens(self) -> int:
        """Length of the final run of trained tokens."""
        mask = self.loss_mask
        return next((i for i, kept in enumerate(reversed(mask)) if not kept), len(mask))


def set_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Set the tokenizer's template: a built-in one, or a `.jinja` file; None keeps its own, which must exist.

    The built-in ones begin with BOS or CLS if the tokenizer puts one before a text: such a model has never seen a text
    without it, and an encoder reads the whole text from its CLS.

    Raises:
        TemplateError: there is no such template or file, it does not parse, or it cannot render a question and answer.
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
            raise TemplateError("its rendering with add_generation_prompt is not how an answer begins")
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise TemplateError(f"model.template: {name}: {error}") from None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that the assistant is to continue, without truncation (see `data/trimming.py`)."""
    messages = disarm(tokenizer, list(messages))
    text, marked = _render(tokenizer, messages, add_generation_prompt=True)
    spans: Sequence[Span] = ()
    if any(message["role"] == "assistant" for message in messages):
        try:
            spans = _through_ends(tokenizer, text, marked) or _turns(tokenizer, messages, None, text)
        except Unrenderable:
            spans = ()  # such a conversation cannot be trained on either, so its borders do not matter
    return [token for piece in encode_pieces(tokenizer, text, spans) for token in piece]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools | None = None
) -> Encoded:
    """Token ids and loss mask of a conversation that ends with the assistant's turn, without truncation.

    The ids end with the assistant's last trained turn: a reward model would read anything that a template renders after
    it, such as a newline, as the end of the answer. If the template writes no end token (Falcon's), EOS is added.

    Raises:
        TurnsChange: see there; not where only the last turn is trained.
        Unrenderable: the template cannot render this conversation.
        TemplateError: the assistant's turn ends with a text that is no end token.
    """
    assert messages[-1]["role"] == "assistant", messages
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    messages, tools = disarm(tokenizer, list(messages)), disarm(tokenizer, list(tools or ()))
    text, marked = _render(tokenizer, messages, tools)
    if len(marked) < len(weights) or (len(marked) > len(weights) and 0 in weights):
        marked = []  # the template has no marks, or not one per turn
    try:
        spans = _through_ends(tokenizer, text, marked) or _turns(tokenizer, messages, tools, text)
    except TurnsChange:
        if any(weights[:-1]):
            raise
        spans, weights = _turns(tokenizer, messages, tools, text, only_last=True), [1]
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
    """Token ids of a conversation to score rather than train on, through its last end token.

    The template may render the assistant's turn differently from its text, for example without its reasoning.

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
    """Token ids of a plain text, all of them trained: BOS if the tokenizer adds one, the text, EOS.

    Raises:
        Unrenderable: the text begins or ends with BOS or EOS, so a template has rendered it already.
    """
    added = [token for token in (tokenizer.bos_token, tokenizer.eos_token) if token]
    rendered = next((token for token in added if text.startswith(token) or text.rstrip().endswith(token)), None)
    if rendered:
        raise Unrenderable(
            f"the text begins or ends with {rendered!r}, which the tokenizer adds itself: a template has rendered it "
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
    """The text, and its spans inside {% generation %} marks, if the template has any."""
    template = str(tokenizer.chat_template)
    _check_tools(template, messages, tools)
    messages = with_reasoning(template, messages)  # type: ignore[assignment]
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
    """Refuse tools if the template has no place for them; it would silently leave them out."""
    uses = {
        "tools": bool(tools),
        "tool_calls": any(message.get("tool_calls") for message in messages),
        "tool": any(message["role"] == "tool" for message in messages),
    }
    for name, used in uses.items():
        if used and name not in template:
            raise Unrenderable(f"the chat template has no place for {name}; set model.template=chatml, which has one")


def _through_ends(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> list[Span]:
    """Marked spans extended by the end token that follows, if a template has it outside of its marks."""
    extended, ends = [], end_pattern(tokenizer)
    for start, stop in spans:
        after = None if ends.search(text, start, stop) else ends.match(text, stop)
        extended.append((start, after.end() if after else stop))
    return extended


def _turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools | None,
    text: str,
    only_last: bool = False,
) -> list[Span]:
    """Spans of the assistant's turns, through their ends, under a template without marks: what each adds to the text.

    (Checking it against the message is open-instruct's idea.) Text between header and content, such as an empty
    reasoning block, is not part of it. A turn without an end token ends with its content.

    Raises:
        TurnsChange: a turn loses its reasoning, or its tokens cannot be told apart, when more turns follow.
        Unrenderable: a turn's content is not found where its prompt ends.
        TemplateError: it is followed by a text other than an end token.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or (only_last and number < len(messages) - 1):
            continue
        if number == 0:
            raise Unrenderable(
                "the conversation begins with the assistant's turn, which cannot be told from its header under a "
                "template without {% generation %} marks; set model.template"
            )
        before, _ = _render(tokenizer, messages[:number], tools, add_generation_prompt=True)
        through, _ = _render(tokenizer, messages[: number + 1], tools)
        if not text.startswith(before) or not through.startswith(before):
            raise TurnsChange(
                f"the chat template renders turn {number + 1} differently when more turns follow: its prompt ends with "
                f"{readable(tokenizer, before)[-20:]!r}, which the whole conversation does not have there; set "
                "model.template, or add {% generation %} marks to the template"
            )
        turn = through[len(before) :]
        followed: str | None = turn
        if not text.startswith(through):
            thought = thought_of(message)
            if thought is not None and thought.reasoning in turn and thought.reasoning not in text[len(before) :]:
                raise TurnsChange(
                    f"the chat template leaves out the reasoning of turn {number + 1} when more turns follow; give its "
                    "answers as rows of their own, or set model.template"
                )
            followed = _as_followed(tokenizer, turn, message["content"].strip(), text[len(before) :])
        if followed is None:
            raise TurnsChange(
                f"the chat template renders turn {number + 1} differently when more turns follow, so its tokens "
                "cannot be told apart; set model.template, or add {% generation %} marks to the template"
            )
        start, stop = _within(tokenizer, followed, message, number)
        spans.append((len(before) + start, len(before) + stop))
    return spans


def _as_followed(tokenizer: PreTrainedTokenizerBase, turn: str, content: str, rest: str) -> str | None:
    """The rendering of a turn that changes when more turns follow, None if it is not recognised.

    It may get another end (GPT-OSS), lose the EOS after it (Phi-3), or lose the reasoning block before it (Qwen3).

    Args:
        turn: its rendering as the last turn.
        rest: the whole conversation's text from there on.
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
    thought = thought_of(message)
    if (
        thought is not None
        and thought.reasoning in turn
        and turn.find(thought.answer, turn.find(thought.reasoning)) >= 0
    ):
        end = end_pattern(tokenizer).search(turn, turn.rfind(thought.answer) + len(thought.answer))
        return 0, end.end() if end else len(turn.rstrip())  # the reasoning is what the model says first
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
        start = 0  # the answer begins with white space
    return start, end.end() if end else len(body.rstrip())
