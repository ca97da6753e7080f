"""Records, which rows of data files are parsed into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.data.preferences import Choice
from alignment.templates.rendering import Message


@dataclass(frozen=True)
class Prompt:
    """A conversation for the assistant to continue. `columns` are the row's other keys."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the assistant's turn, and the tools offered to it (in OpenAI's format).

    `place` is the `file:line` that it was read from; `notes` say what of the row is not learned.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.messages)


@dataclass(frozen=True)
class Document:
    """A plain text; all of its tokens have a loss."""

    text: str
    place: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        return " ".join(self.text.casefold().split())


CHOICES: tuple[Choice, ...] = ("first", "second", "tie")


@dataclass(frozen=True)
class Vote:
    """One person's vote on two completions. `strength` is 1 (slightly) to 3 (much better), or None if not asked.

    A referee's vote stands once in the place of each labeler's vote that it `overrules`.
    """

    choice: Choice
    strength: int | None = None
    labeler: str | None = None
    overrules: Vote | None = None


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt and the votes on them. `size` is the number of completions judged together.

    A completion of several turns, or with tool calls, is a `LongAnswer` (`alignment.data.messages`). `margin` is the
    lead in score that the preferred one must have, if the row says it; `scores` are what somebody gave the two, first
    and second, and are not learned. `attribute` is what the votes are on (`helpful`); empty: the answers as a whole.
    """

    prompt: tuple[Message, ...]
    first: str
    second: str
    votes: tuple[Vote, ...] = (Vote("first"),)
    size: int = 2
    place: str = field(default="", compare=False)
    margin: float | None = None
    scores: tuple[float, float] | None = field(default=None, compare=False)
    attribute: str = ""

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)

    def count(self, choice: Choice) -> int:
        """Number of votes for a choice."""
        return sum(vote.choice == choice for vote in self.votes)

    @property
    def weight(self) -> float:
        """Number of votes over C(K, 2): a ranking's pairs weigh as much as one pair (InstructGPT, section 3.5)."""
        return len(self.votes) / math.comb(self.size, 2)

    @property
    def cast(self) -> tuple[Vote, ...]:
        """The labelers' votes, whether or not a referee has overruled them: how far people agree."""
        return tuple(vote.overrules or vote for vote in self.votes)

    @property
    def target(self) -> float:
        """Fraction of the votes for `first`; a tie is half a vote for each."""
        return (self.count("first") + 0.5 * self.count("tie")) / len(self.votes)


@dataclass(frozen=True)
class CompletionRating:
    """One person's score of one completion; higher is better. `labeler` is None if unknown. `attribute` is what the
    score is of; empty: the answer as a whole.

    A referee's score stands once in the place of each labeler's that it `overrules`.
    """

    prompt: tuple[Message, ...]
    completion: str
    rating: float
    labeler: str | None = None
    place: str = field(default="", compare=False)
    attribute: str = ""
    overrules: CompletionRating | None = field(default=None, compare=False)

    @property
    def group(self) -> str:
        return prompt_group(self.prompt)


def prompt_group(messages: Sequence[Message]) -> str:
    """The key of conversations with the same prompt: the first human turn, with case and white space normalized."""
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    return " ".join(first.casefold().split())
