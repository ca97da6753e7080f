"""What the reward model learns from, as token ids: a prompt, the completions to it, and which of two were preferred."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.data import Comparison


@dataclass(frozen=True)
class JudgedPair:
    """Two completions of a question. `first` and `second` are places in its `completion_ids`."""

    first: int
    second: int
    target: float
    """Probability that `first` is the better one, in [0, 1]."""
    weight: float
    margin: float
    """By how much the score of `first` should be ahead of that of `second`; negative where `second` is preferred."""
    comparison: Comparison
    """The votes behind it."""


@dataclass(frozen=True)
class Question:
    """A prompt with its distinct completions; the whole of one is `prompt_ids + completion_ids[k]`, and ends in EOS."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    pairs: tuple[JudgedPair, ...]
    ratings: tuple[float | None, ...] = ()
    """For `objective: regression`: the number that each completion's score is drawn to, None where there is none."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each whole sequence."""
        return [len(self.prompt_ids) + len(ids) for ids in self.completion_ids]
