"""The one place that turns a conversation into token ids and a loss mask.

Training, sampling, scoring and PPO all come through here, so that a model never meets a rendering it was not trained
on. A conversation is a list of `{"role": "system" | "user" | "assistant", "content": str}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import jinja2

from alignment.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(TypedDict):
    role: str
    content: str


class TemplateError(UserError):
    """A chat template or tokenizer that cannot render what is asked."""


# Both end the prompt in a newline and trim the answer, so that no token can span the border between the two ("\n" and
# "\n\n" are different tokens), and mark the assistant's tokens, EOS included, with {% generation %}. A line break that
# follows a block tag is an expression, because transformers renders with trim_blocks, which swallows a bare one.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}### Response:\n"
        "{% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}{{ '\n\n' }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% else %}### Instruction:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
}


def set_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Put a named template on the tokenizer; None keeps its own, which must then exist."""
    if name is not None:
        if name not in TEMPLATES:
            raise TemplateError(f"model.template: no template '{name}'; known: {', '.join(TEMPLATES)}")
        tokenizer.chat_template = TEMPLATES[name]
    if not tokenizer.chat_template:
        raise TemplateError("the tokenizer has no chat template; set model.template to one of: " + ", ".join(TEMPLATES))


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


def _ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: bool) -> list[int]:
    return list(_render(tokenizer, messages, **options)["input_ids"])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"the chat template refuses a conversation of {roles}: {error}; change the rows or set model.template"
        ) from error


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int | None = None
) -> list[int]:
    """Token ids of a conversation that the assistant is to continue.

    With `max_length` the oldest tokens are cut, a leading BOS excepted.
    """
    ids = _ids(tokenizer, messages, add_generation_prompt=True)
    return _cut_left(tokenizer, ids, max_length) if max_length else ids


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int | None = None
) -> Encoded | None:
    """Token ids and loss mask of a conversation that ends with the assistant's turn.

    The ids end at the assistant's last EOS: whatever a template renders after it (a newline, say) would be read as
    the end of the answer by a reward model. With `max_length` the oldest tokens are cut; None is returned where the
    last response would not fit whole, because a response without its EOS teaches a model never to stop.

    Raises:
        TemplateError: the assistant's turn does not end with the tokenizer's EOS.
    """
    assert messages[-1]["role"] == "assistant", messages
    if "{% generation" in str(tokenizer.chat_template) or "{%- generation" in str(tokenizer.chat_template):
        rendered = _render(tokenizer, messages, return_assistant_tokens_mask=True)
        ids, mask = list(rendered["input_ids"]), [bool(bit) for bit in rendered["assistant_masks"]]
    else:
        ids, mask = _mask_by_prefix(tokenizer, messages)
    end = len(mask) - next((i for i, kept in enumerate(reversed(mask)) if kept), len(mask))
    ids, mask = ids[:end], mask[:end]
    if not ids or ids[-1] != tokenizer.eos_token_id:
        found = tokenizer.decode(ids[-1:]) if ids else "nothing"
        raise TemplateError(
            f"the chat template ends the assistant's turn with {found!r}, not with the tokenizer's EOS "
            f"{tokenizer.eos_token!r}: the model would never learn to stop; set model.eos_token or model.template"
        )
    encoded = Encoded(ids, mask)
    if max_length and len(ids) > max_length:
        if encoded.num_response_tokens >= max_length:
            return None
        # The first token has none before it to be predicted from, and may be the BOS that _cut_left keeps.
        encoded = Encoded(_cut_left(tokenizer, ids, max_length), [False, *mask[1 - max_length :]])
    return encoded


def _cut_left(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    if len(ids) <= max_length:
        return ids
    has_bos = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return [ids[0], *ids[len(ids) - max_length + 1 :]] if has_bos else ids[-max_length:]


def _mask_by_prefix(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """The loss mask under a template without {% generation %}: render each prefix and see what the turn adds.

    The turn's tokens are trained through its first EOS. (The idea is open-instruct's; it checks the prefix as we do.)
    """
    ids = _ids(tokenizer, messages)
    mask = [False] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _ids(tokenizer, messages[:turn], add_generation_prompt=True)
        stop = _ids(tokenizer, messages[: turn + 1])
        if ids[: len(start)] != start or ids[: len(stop)] != stop:
            raise TemplateError(
                f"the chat template renders turn {turn + 1} otherwise when more turns follow, so its tokens cannot be "
                "told apart; set model.template, or add {% generation %} marks to the template"
            )
        for position in range(len(start), len(stop)):
            mask[position] = True
            if ids[position] == tokenizer.eos_token_id:
                break
    return ids, mask
