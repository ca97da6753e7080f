"""Whether a model reads and writes the same tokens as the model that it was trained from.

A policy whose tokenizer or chat template changed on the way is another model than its lineage says: PPO's KL and the
reward model's scores would be of other tokens. The pad token is not compared: SFT settles it.
"""

from __future__ import annotations

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
    """A tokenizer or chat template that is not the parent's."""


def difference(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, *, eos: bool = True, template: bool = True
) -> str | None:
    """In what two tokenizers differ, None if in nothing: ids of a probe text, the EOS, and the rendered template.

    Args:
        eos, template: whether to compare those; what the parent does not have at all, nothing can differ from.
    """
    for text in PROBE:
        for special in (False, True):
            a, b = (each(text, add_special_tokens=special)["input_ids"] for each in (ours, theirs))
            if a != b:
                return f"a text of {len(b)} tokens has {len(a)}" if len(a) != len(b) else "a text has other tokens"
    first_eos = theirs.eos_token is None  # an encoder's, say; templates write the EOS, so then their texts are compared
    if eos and not first_eos and (ours.eos_token, ours.eos_token_id) != (theirs.eos_token, theirs.eos_token_id):
        return f"its EOS is {ours.eos_token!r}, and was {theirs.eos_token!r}"
    spell = _text if first_eos else _rendered
    if template and theirs.chat_template and spell(ours) != spell(theirs):
        return "its chat template renders a conversation otherwise"
    return None


def same_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether the token ids of a conversation mean the same to both. Neither padding nor an unused EOS is compared."""
    turns = [Message(role=role, content=text) for role, text in zip(ROLES, PROBE, strict=True)]
    return encode_conversation(ours, turns) == encode_conversation(theirs, turns)


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    turns = [{"role": role, "content": text} for role, text in zip(ROLES, PROBE, strict=True)]
    try:
        return [
            str(tokenizer.apply_chat_template(turns, tokenize=False)),
            str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)),
        ]
    except Exception:  # noqa: BLE001 - a template may refuse for reasons of its own; then its text is compared
        return _text(tokenizer)


def _text(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.chat_template)]


def check_same(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, parent: str, *, eos: bool, template: bool
) -> None:
    """Refuse a tokenizer that is not the parent's.

    Raises:
        TokenizerError: names the difference.
    """
    if found := difference(ours, theirs, eos=eos, template=template):
        raise TokenizerError(
            f"the tokenizer is not that of {parent}: {found}; take model.template, model.eos_token and changed "
            "tokenizer files out, or set registry.allow_new_tokenizer=true"
        )


def check_folder(
    folder: Path, parent: Parent, registry: Registry, *, eos: bool, template: bool, trust_remote_code: bool
) -> None:
    """`check_same` for a folder that is to be published and the model that it started from.

    Raises:
        TokenizerError: names the difference.
    """
    known = registry.resolve(parent.ref).path if registry.is_reference(parent.ref) else Path(parent.ref)
    if not all((each / "tokenizer_config.json").is_file() for each in (folder, known)):
        return  # a hub's was compared when the run began
    options = {"trust_remote_code": trust_remote_code}
    ours, theirs = (AutoTokenizer.from_pretrained(each, **options) for each in (folder, known))
    check_same(ours, theirs, parent.ref, eos=eos, template=template)
