"""Comparing a model's tokenizer and chat template with those of its initial model.

If they changed in between, the lineage is misleading: PPO's KL and the reward model's scores would be computed on other
tokens. The pad token is not compared, since SFT sets it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.errors import UserError
from alignment.registry import Parent, Registry
from alignment.templates.rendering import Message, encode_conversation

PROBE = (
    "Which of these do you read?\n 1, 23 and 4567; 'quotes' - dashes \u2013 and \u00fcml\u00e4uts, \u732b \U0001f408.",
    "All of them,\t  spaces too.\r\n\n\nO\u0301 and \u00d3, if (x == 10) { return 3.14e-5; }",
)

ROLES = ("user", "assistant")


class TokenizerError(UserError):
    """A tokenizer or chat template that differs from the parent's."""


def difference(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, *, eos: bool = True, template: bool = True
) -> str | None:
    """The first difference of two tokenizers, None if there is none: ids of a probe text, EOS, rendered template.

    Args:
        eos, template: whether to compare these; they are skipped if the parent has none.
    """
    for text in PROBE:
        for special in (False, True):
            a, b = (tokenizer(text, add_special_tokens=special)["input_ids"] for tokenizer in (ours, theirs))
            if a != b:
                return f"a text of {len(b)} tokens has {len(a)}" if len(a) != len(b) else "a text has other tokens"
    adds_eos = theirs.eos_token is None  # templates write the EOS, so then their texts are compared
    if eos and not adds_eos and (ours.eos_token, ours.eos_token_id) != (theirs.eos_token, theirs.eos_token_id):
        return f"its EOS is {ours.eos_token!r}, and was {theirs.eos_token!r}"
    spell = _text if adds_eos else _rendered
    if template and theirs.chat_template and spell(ours) != spell(theirs):
        return "its chat template renders a conversation differently"
    return None


def same_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether both encode a conversation to the same token ids; padding and an unused EOS are not compared."""
    turns = [Message(role=role, content=text) for role, text in zip(ROLES, PROBE, strict=True)]
    return encode_conversation(ours, turns) == encode_conversation(theirs, turns)


def token_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that two tokenizers have in common if they are `same_tokens`, for processes that do not share memory."""
    turns = [Message(role=role, content=text) for role, text in zip(ROLES, PROBE, strict=True)]
    encoded = encode_conversation(tokenizer, turns)
    return hashlib.sha256(json.dumps([encoded.input_ids, encoded.loss_mask]).encode()).hexdigest()


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    turns = [{"role": role, "content": text} for role, text in zip(ROLES, PROBE, strict=True)]
    try:
        return [
            str(tokenizer.apply_chat_template(turns, tokenize=False)),
            str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)),
        ]
    except Exception:  # noqa: BLE001 - a template may raise anything; then its text is compared
        return _text(tokenizer)


def _text(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.chat_template)]


def check_same(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, parent: str, *, eos: bool, template: bool
) -> None:
    """Refuse a tokenizer that differs from the parent's.

    Raises:
        TokenizerError: the message names the difference.
    """
    if problem := difference(ours, theirs, eos=eos, template=template):
        raise TokenizerError(
            f"the tokenizer is not that of {parent}: {problem}; take model.template, model.eos_token and changed "
            "tokenizer files out, or set registry.allow_new_tokenizer=true"
        )


def check_folder(
    folder: Path, parent: Parent, registry: Registry, *, eos: bool, template: bool, trust_remote_code: bool
) -> None:
    """`check_same` for a folder about to be published and its initial model.

    Raises:
        TokenizerError: the message names the difference.
    """
    initial = registry.resolve(parent.ref).path if registry.is_reference(parent.ref) else Path(parent.ref)
    if not all((path / "tokenizer_config.json").is_file() for path in (folder, initial)):
        return  # a hub's tokenizer was compared when the run began
    options = {"trust_remote_code": trust_remote_code}
    ours, theirs = (AutoTokenizer.from_pretrained(path, **options) for path in (folder, initial))
    check_same(ours, theirs, parent.ref, eos=eos, template=template)
