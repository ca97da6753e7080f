"""The tokens that end an answer: the tokenizer's EOS, the generation config's list, and the template's end of turn.

Engines stop at any of them, each counts as an end, and a published model's generation config lists them. Many models
end a turn with a token other than the tokenizer's EOS (Gemma, Llama 3, Phi-3): with EOS alone, their answers would run
to the limit and be scored as unfinished.

Engines test the end of a response by `alignment.generation.sampling.has_ended`. The config keys are `model.eos_token`,
for a tokenizer without an EOS, and PPO's `rollout.stop`, for texts that end a response too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "Hello there."
_TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": _ANSWER}]
_ATTRIBUTE = "_generation_config_ends"


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of all tokens that end an answer, EOS first."""
    added: Iterable[int] = getattr(tokenizer, _ATTRIBUTE, ())
    known = (tokenizer.eos_token_id, *added)
    ids = (tokenizer.eos_token_id, _template_end(tokenizer, str(tokenizer.chat_template or ""), known), *added)
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def end_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that matches any end token in a rendered text, the longest first."""
    return _pattern(tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in end_token_ids(tokenizer)))


def through_end(ids: Sequence[int], ends: Iterable[int]) -> list[int]:
    """Tokens through the first one that ends an answer; all of them if none does."""
    end_ids = frozenset(ends)
    stop = next((index for index, token in enumerate(ids) if token in end_ids), len(ids) - 1)
    return list(ids[: stop + 1])


def read_generation_config(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Add the end tokens that a model's files list to the tokenizer's.

    Only ids of added tokens count: a Llama's default config lists 2, which is a word in some vocabularies.

    Args:
        path: a model folder, or a hub name.
    """
    listed: list[Any] = []
    for file in ("generation_config.json", "config.json"):
        content = _read(path, file)
        if content is not None and content.get("eos_token_id") is not None:
            value = content["eos_token_id"]
            listed = value if isinstance(value, list) else [value]
            break
    known = tokenizer.added_tokens_decoder
    setattr(tokenizer, _ATTRIBUTE, tuple(token for token in listed if token in known))


def _read(path: str, file: str) -> dict[str, Any] | None:
    """A JSON object of a model's files; None if it is missing or unreadable, which loading the model reports."""
    from transformers.utils import cached_file

    options: dict[str, bool] = dict.fromkeys(
        ("_raise_exceptions_for_gated_repo", "_raise_exceptions_for_missing_entries",
         "_raise_exceptions_for_connection_errors"), False,
    )  # fmt: skip
    try:
        local = Path(path) / file if Path(path).is_dir() else cached_file(path, file, **options)
        content = json.loads(Path(local).read_bytes()) if local else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@functools.lru_cache(maxsize=16)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


@functools.lru_cache(maxsize=16)
def _template_end(tokenizer: PreTrainedTokenizerBase, template: str, known: tuple[int | None, ...]) -> int | None:
    """The added token that the template writes right after the last answer, if any.

    Of several (Cohere's end of the response, then of the turn) it is one that is known to end an answer.

    Args:
        template, known: cache keys, so that a changed tokenizer is looked at again.
    """
    if not template:
        return None
    try:
        text = str(tokenizer.apply_chat_template(_TURNS, tokenize=False))
    except Exception:  # noqa: BLE001 - a template may raise anything; encoding a conversation reports it
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: -len(item[1].content))
    written: list[int] = []
    while match := next(((index, token.content) for index, token in added if after.startswith(token.content)), None):
        written.append(match[0])
        after = after[len(match[1]) :].lstrip()
    return next((index for index in written if index in known), written[0] if written else None)
