"""Sampling settings, sampled responses, and the interface of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.errors import UserError
from alignment.models.adapters import without_adapter


class GenerationError(UserError):
    """A model that cannot be sampled from."""


@dataclass(frozen=True)
class SampledCompletion:
    """One sampled answer; `ended` tells whether the model stopped by itself within the limit."""

    text: str
    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Sampling:
    """Sampling from softmax(logits / temperature); temperature 0 takes the most likely token.

    `top_k` and `top_p` (0 and 1: off) sample from another distribution than the one whose log-probabilities PPO uses,
    which makes the KL biased or negative. `batch_size` is the number of responses sampled at a time. A response ends
    with the first of `end_token_ids` (`alignment.templates.ends`), or with the token that completes a text in `stop`.
    """

    max_new_tokens: int
    temperature: float
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    batch_size: int
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    vocabulary: int | None = None
    """Number of tokens that may be sampled (`vocabulary_of`); None: as many as the model has logits."""


class Sampled(NamedTuple):
    """Responses in the prompts' order: tokens through the end, or `max_new_tokens` of them.

    `logprobs` are those of the engine's own distribution; None: the engine sampled from the policy itself. `seconds` is
    how long it took, where it ran beside other work.
    """

    responses: list[list[int]]
    logprobs: list[list[float]] | None
    seconds: float = 0.0


class Engine(Protocol):
    """Samples responses; a prompt may come several times, and each sample has a seed of its own (`stream_seed`)."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Sampled: ...


@runtime_checkable
class BackgroundEngine(Protocol):
    """An engine that can sample while its caller does something else."""

    def begin(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Callable[[], Sampled]:
        """Begin to sample by the weights as they are; the call that is returned waits for the responses."""
        ...


def has_ended(response: Sequence[int], sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether the response's last token ends it.

    Args:
        tokenizer: needed if `sampling.stop` has texts.
    """
    if response[-1] in sampling.end_token_ids:
        return True
    if not sampling.stop:
        return False
    assert tokenizer is not None
    tail = response[-4 * max(map(len, sampling.stop)) :]  # a character may be four one-byte tokens
    text = tokenizer.decode(tail, skip_special_tokens=False)
    return any(stop in text for stop in sampling.stop)


def response_text(response: Sequence[int], sampling: Sampling, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a response, without the token or text that ends it."""
    ids = response[:-1] if response[-1] in sampling.end_token_ids else response
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    for stop in sampling.stop:
        text = text.partition(stop)[0]
    return text


Way = Literal["packed", "padded", "by_length", "uncached"]
WAYS: tuple[Way, ...] = ("packed", "padded", "by_length", "uncached")
"""Ways of batching prompts: read in one packed row, then padded on the left, for models that attend by group
(`alignment.models.packing`); padded on the left from the start; only with prompts of the same length, for models that
padding changes (recurrent ones, positions that count padding); and the latter without a cache. Each is slower than the
one before. `alignment.generation.sampler_check` finds the first correct one."""
_WAYS_OF_MODELS: WeakKeyDictionary[torch.nn.Module, Way] = WeakKeyDictionary()


def way_of(policy: PreTrainedModel | PeftModel) -> Way | None:
    """The way that `find_way` has chosen for a model, if it has."""
    return _WAYS_OF_MODELS.get(without_adapter(policy))


def set_way(policy: PreTrainedModel | PeftModel, way: Way) -> None:
    _WAYS_OF_MODELS[without_adapter(policy)] = way
