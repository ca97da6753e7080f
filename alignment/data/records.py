"""Records: what a row of a data file becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.data.formats import Choice
from alignment.templates.rendering import Message


@dataclass(frozen=True)
class Prompt:
    """A conversation that the assistant is to continue. `columns` are the row's other keys."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the assistant's turn, and the tools that were on offer (OpenAI's form).

    `place` is the `file:line` it was read from.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Document:
    """A text by itself, to learn all of."""

    text: str
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return " ".join(self.text.casefold().split())


CHOICES: tuple[Choice, ...] = ("first", "second", "tie")


@dataclass(frozen=True)
class Vote:
    """What one person said of two completions. `strength` is 1 (slightly) to 3 (much better); None: not asked."""

    choice: Choice
    strength: int | None = None
    labeler: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt and the votes on them. `size`: how many completions were judged together."""

    prompt: tuple[Message, ...]
    first: str
    second: str
    votes: tuple[Vote, ...] = (Vote("first"),)
    size: int = 2
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)

    def count(self, choice: Choice) -> int:
        """How many votes said so."""
        return sum(vote.choice == choice for vote in self.votes)

    @property
    def weight(self) -> float:
        """Number of votes, each counting 1/C(K,2): the pairs of one ranking weigh as one (InstructGPT, section 3.5)."""
        return len(self.votes) / math.comb(self.size, 2)

    @property
    def target(self) -> float:
        """Share of the votes for `first`, a tie being half a vote for each."""
        return (self.count("first") + 0.5 * self.count("tie")) / len(self.votes)


@dataclass(frozen=True)
class CompletionRating:
    """A number that one person gave to one completion; higher is better. `labeler` None: not known who."""

    prompt: tuple[Message, ...]
    completion: str
    rating: float
    labeler: str | None = None
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)


def prompt_group(messages: Sequence[Message]) -> str:
    """Key under which conversations count as the same prompt: the first human turn, case and spaces folded."""
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    return " ".join(first.casefold().split())
