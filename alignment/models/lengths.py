"""A model's maximum number of positions: beyond it, learned position embeddings raise an IndexError."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.distributed import processes
from alignment.errors import UserError
from alignment.templates.rendering import Message, encode_prompt


class LengthError(UserError):
    """A sequence with more tokens than the model has positions."""


def positions(path: str, trust_remote_code: bool = False) -> tuple[int, bool] | None:
    """`max_position_embeddings` of a model folder or hub name, and whether it can be exceeded.

    Rotary positions are computed, so they can be exceeded, though the model was not trained there; other kinds come
    from a table. None if the config does not say or cannot be read; loading the model reports that.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return None
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    is_rotary = any(getattr(config, name, None) is not None for name in ("rope_parameters", "rope_theta"))
    return limit, is_rotary


def check_length(path: str, length: int, key: str, trust_remote_code: bool = False) -> None:
    """Refuse a length beyond the model's positions; warn of one beyond its training length.

    Args:
        key: the config key of the length.

    Raises:
        LengthError: the message names the key and the limit.
    """
    known = positions(path, trust_remote_code)
    if known is None or length <= known[0]:
        return
    limit, is_rotary = known
    if not is_rotary:
        raise LengthError(f"{key}={length} is more than the {limit} positions of {path}; set {key}={limit} or lower")
    if processes.is_main_process():
        print(f"{key}={length} is more than the {limit} positions that {path} was made for", file=sys.stderr)


def check_prompts(
    path: str, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]], max_new_tokens: int
) -> None:
    """Refuse prompts that leave no room for an answer of `max_new_tokens`, since prompts are never truncated here.

    Prompts beyond the model's training length give a warning.

    Raises:
        LengthError: the message names the longest prompt.
    """
    known = positions(path)
    if known is None or not prompts:
        return
    limit, is_rotary = known
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    longest = max(lengths)
    if longest + max_new_tokens <= limit:
        return
    text = (
        f"prompt {lengths.index(longest) + 1} has {longest} tokens, which with {max_new_tokens} new ones is more than "
        f"the {limit} positions"
    )
    if not is_rotary:
        raise LengthError(f"{text} of {path}; shorten it or ask for fewer new tokens")
    if processes.is_main_process():
        print(f"{text} that {path} was made for", file=sys.stderr)
