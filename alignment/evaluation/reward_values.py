"""What reward functions and services are given, and what they must give."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.redaction import without_secrets

LARGEST = 1e15
"""Largest size of a score. The square of a larger one, summed over a batch's tokens, may overflow in float32."""


class TokenIds(Protocol):
    """A prompt and the response to it in the policy's tokens, through EOS where it ends."""

    @property
    def prompt(self) -> list[int]: ...

    @property
    def response(self) -> list[int]: ...


class RewardError(UserError):
    """A reward function or service that did not give a number for each response."""


class FunctionLeft(RewardError):
    """A reward function that raised what is no Exception, such as SystemExit."""

    exit_code = 1


def prompt_of(prompt: Prompt) -> Any:
    """A prompt as functions and services get it: the text of a single user message, else the list of messages."""
    if len(prompt.messages) == 1 and prompt.messages[0]["role"] == "user":
        return prompt.messages[0]["content"]
    return [dict(message) for message in prompt.messages]


def columns_of(prompts: Sequence[Prompt], names: Sequence[str]) -> dict[str, list[Any]]:
    """These keys of the prompts' rows; None where a row does not have one."""
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def checked(scores: Any, count: int, where: str) -> list[float]:
    """Scores as a list of numbers.

    Args:
        scores: a list, tuple, tensor or numpy array. Iterating over a dict would take its keys for scores.

    Raises:
        RewardError: not one finite number for each response.
    """
    expected = f"{where} must give a list of numbers (a tuple, array or tensor will do), one for each response"
    if not isinstance(scores, (list, tuple, Tensor, np.ndarray)):
        raise RewardError(f"{expected}, and gave {_described(scores)}")
    if isinstance(scores, (Tensor, np.ndarray)):
        if scores.ndim != 1:
            raise RewardError(f"{expected}, and gave one of shape {tuple(scores.shape)}; expected ({count},)")
        scores = scores.tolist()
    if len(scores) != count:
        raise RewardError(f"{where} gave {len(scores)} scores for {count} responses; give one for each, in their order")
    values = []
    for number, score in enumerate(scores):
        score = score.item() if isinstance(score, (Tensor, np.generic)) and score.ndim == 0 else score
        if not isinstance(score, numbers.Real):
            raise RewardError(f"{expected}, and gave {_described(score)} for response {number}")
        try:
            values.append(float(score))
        except OverflowError:  # a whole number of hundreds of digits
            values.append(math.inf)
        if not abs(values[-1]) <= LARGEST:  # NaN too
            raise RewardError(
                f"{where} gave {values[-1]:g} for response {number}; give a finite number of at most {LARGEST:g}"
            )
    return values


def _described(value: Any) -> str:
    return "None" if value is None else f"{without_secrets(repr(value)):.80} (type {type(value).__name__})"
