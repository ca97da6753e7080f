"""Records of the ratings store, and validation of its input."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from alignment.errors import UserError
from alignment.ratings.questionnaire import check_shape
from alignment.terminal import clean

Kind = Literal["pair", "rank", "single"]
Choice = Literal["first", "second", "tie", "ranked", "scored", "skip"]
ChoiceShown = Literal["left", "right", "tie", "ranked", "scored", "skip"]
Order = Literal["random", "uncertain", "disputed"]
"""What a labeler gets next. `disputed` makes them a referee: see `alignment.ratings.refereeing`."""
View = Literal["raw", "rendered"]
"""How a labeler saw the answers: as text, or with their Markdown rendered."""
Why = Literal["random", "uncertain", "gold", "calibration", "repeat", "import", "verdict"]
"""Why a labeler got an item: at random, by the reward model's uncertainty, as a control, as a control with feedback, as
a repeat with the sides flipped, as a referee of a disputed item; or the answer was imported."""

_AnyChoice = TypeVar("_AnyChoice", Literal["first", "second", "tie"], str)
CONTROLS = (
    "gold",
    "calibration",
    "repeat",
)  # they measure the labeler; they do not count toward `need` and are not trained on
NO_VOTES = (*CONTROLS, "verdict")  # a verdict does not count toward `need` either, but models are trained on it
COMPLETIONS = {"single": (1, 1), "pair": (2, 2), "rank": (2, 9)}  # minimum and maximum
SCORES = range(1, 8)
ANSWERS = {"pair": ("first", "second", "tie"), "rank": ("ranked",), "single": ("scored",)}


@dataclass(frozen=True)
class Completion:
    """One answer. `ended` is false if it hit the length limit. `model` is the registry reference of its model."""

    text: str
    ended: bool = True
    model: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Gold:
    """The right answer of a control item: `choice` of a pair, `ranks` of a ranking, `score` of a single completion.

    `attributes` and `tags` are the right answers to the questions beside the choice, in item order; with them the
    choice may be left out. `reason` says why all of it is right; the calibration round shows it.
    """

    choice: Literal["first", "second", "tie"] | None = None
    ranks: tuple[int, ...] | None = None
    score: int | None = None
    reason: str = ""
    attributes: Mapping[str, Any] | None = None
    tags: tuple[str, ...] | None = None

    @property
    def chooses(self) -> bool:
        """Whether it says the choice itself."""
        return any(each is not None for each in (self.choice, self.ranks, self.score))


@dataclass(frozen=True)
class Item:
    """One item to rate. `prompt` holds `{"role", "content"}` messages; `need` is the wanted number of labelers.

    An item with `gold` is shown as a control, whatever its `need`.
    """

    id: int
    key: str
    kind: Kind
    prompt: tuple[dict[str, str], ...]
    completions: tuple[Completion, ...]
    need: int
    created: float
    metadata: dict[str, Any]
    gold: Gold | None


@dataclass(frozen=True)
class Rating:
    """A finished answer, in item order, not display order; `completions[order_shown[0]]` was shown first.

    `ranks` (1 is best, equal is a tie, without gaps) belongs to the choice `ranked`, `score` (1 to 7) to `scored`. An
    imported answer may have an unknown `order_shown`, which is (), and unknown `seconds`, which is None. `given` is a
    score as its source has it, where that is on another scale than 1 to 7; `score` is then its place on 1 to 7.
    `guideline` and `questions` are the versions that it was given under, and `view` is how the answers were shown; None
    if there was none, or it is not known. `answers` are those to the questions, in item order.
    """

    id: int
    item: int
    labeler: str
    kind: Kind
    order_shown: tuple[int, ...]
    choice: Choice
    strength: int | None
    ranks: tuple[int, ...] | None
    score: int | None
    seconds: float | None
    comment: str
    flags: tuple[str, ...]
    claimed_at: float
    done_at: float
    why: Why
    given: float | None = None
    guideline: int | None = None
    questions: int | None = None
    view: View | None = None
    answers: dict[str, Any] | None = None


@dataclass(frozen=True)
class Assignment:
    """An item as one labeler sees it: texts in display order, and nothing that names a model.

    `why` must not be shown: it would reveal which answers are being checked. `guideline` and `questions` are the
    newest versions, None if there are none.
    """

    rating: int
    item: int
    labeler: str
    kind: Kind
    prompt: tuple[dict[str, str], ...]
    completions: tuple[str, ...]
    order_shown: tuple[int, ...]
    why: Why
    guideline: int | None = None
    questions: int | None = None


@dataclass(frozen=True)
class GradedAnswer:
    """One answer to a gold item. `name` is that of the question; `guessing` is how often a random guess is right.

    `said` and `expected` are values as in `Rating.answers`; None for the choice.
    """

    name: str
    said: Any
    expected: Any
    right: bool
    guessing: float


@dataclass(frozen=True)
class Feedback:
    """Feedback to a labeler after their answer to a calibration item. `expected_shown` is in display order, and so are
    the `questions` beside the choice that the gold answer says something to. `right`: all of it is.
    """

    right: bool
    expected_shown: Gold
    rating: Rating
    questions: tuple[GradedAnswer, ...] = ()


@dataclass(frozen=True)
class Progress:
    """A labeler's progress: `done` (with skips) of `total`; `seconds` is the recent median per answer."""

    done: int
    skipped: int
    total: int
    seconds: float | None


def is_right(gold: Gold, choice: str | None, ranks: Sequence[int] | None = None, score: int | None = None) -> bool:
    """Return whether an answer in item order is right; a skip never is.

    A pair needs the same choice, whatever the strength. A ranking needs the order of any two completions that are not
    tied in `gold`. A score may be one point off.
    """
    if gold.choice is not None:
        return choice == gold.choice
    if gold.ranks is not None and ranks is not None:
        places = range(len(gold.ranks))
        return all(ranks[i] < ranks[j] for i in places for j in places if gold.ranks[i] < gold.ranks[j])
    return gold.score is not None and score is not None and abs(score - gold.score) <= 1


def flipped(choice: _AnyChoice, order: Sequence[int]) -> _AnyChoice:
    """Convert a pair's choice from item order to display order, or back: the function is its own inverse."""
    if list(order) == [0, 1]:
        return choice
    return "second" if choice == "first" else "first" if choice == "second" else choice


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks without gaps: (1, 1, 5) is (1, 1, 2)."""
    distinct = sorted(set(ranks))
    return tuple(distinct.index(rank) + 1 for rank in ranks)


def in_item_order(ranks_shown: Sequence[int], order: Sequence[int]) -> list[int]:
    """Convert ranks from display order to item order."""
    return [ranks_shown[order.index(index)] for index in range(len(order))]


def check_labeler(name: str) -> None:
    """Raise UserError unless the name is 1 to 64 printable characters without space at its ends."""
    if not (1 <= len(name) <= 64 and name.isprintable() and name == name.strip()):
        raise UserError(f"labeler {name!a}: expected a name of 1 to 64 printable characters, no space at its ends")


def as_message(message: Mapping[str, str]) -> dict[str, str]:
    """Validate a prompt's message."""
    fields = dict(message) if isinstance(message, Mapping) else {}
    if set(fields) != {"role", "content"} or not all(isinstance(value, str) for value in fields.values()):
        raise UserError(f'prompt message {clean(str(message))[:80]!r}: expected {{"role": ..., "content": ...}}')
    return fields


def as_completion(fields: Completion | Mapping[str, Any]) -> Completion:
    """Validate a completion."""
    if isinstance(fields, Completion):
        return fields
    if not isinstance(fields.get("text"), str) or not set(fields) <= set(Completion.__dataclass_fields__):
        raise UserError(f"completion with keys {sorted(fields)}: expected text (a string), ended, model and tokens")
    return Completion(**fields)


def item_key(kind: str, messages: Sequence[Mapping[str, str]], answers: Sequence[Completion], copy: int = 0) -> str:
    """The identity of an item: a digest of its kind, prompt, texts and copy number."""
    content: list[Any] = [messages, [[answer.text, answer.ended] for answer in answers]]
    key = digest(content if kind == "pair" else [kind, *content])
    return digest(["copy", copy, key]) if copy else key


def check_item(kind: str, messages: int, completions: int, need: int, gold: Gold | None) -> None:
    """Raise UserError if these do not make a valid item."""
    if kind not in COMPLETIONS:
        raise UserError(f"an item's kind is {clean(kind)!r}: expected one of {', '.join(COMPLETIONS)}")
    fewest, most = COMPLETIONS[kind]
    if messages < 1 or not fewest <= completions <= most:
        count = f"{fewest} to {most}" if fewest < most else str(fewest)
        raise UserError(
            f"an item to rate ({kind}) takes 1 or more messages and {count} completion{'s' * (most > 1)},"
            f" found {messages} and {completions}"
        )
    if not 1 <= need < 2**32:
        raise UserError(f"need is how many labelers rate an item: expected 1 or more, below 2**32, found {need}")
    if gold is not None:
        _check_gold(kind, completions, gold)


def _check_gold(kind: str, completions: int, gold: Gold) -> None:
    expected = {"pair": "choice", "rank": "ranks", "single": "score"}[kind]
    given = [name for name in ("choice", "ranks", "score") if getattr(gold, name) is not None]
    answers = {key: value for key in ("attributes", "tags") if (value := getattr(gold, key)) is not None}
    if given != [expected] and (given or not answers):
        raise UserError(f"gold of a {kind} item: found {', '.join(given) or 'nothing'}, expected {expected}")
    try:
        check_shape(kind, completions, answers)
    except UserError as problem:
        raise UserError(f"gold of a {kind} item: {problem}") from None
    if given:
        choice = ANSWERS[kind][0] if gold.choice is None else gold.choice
        if choice == "skip":
            raise UserError(f"gold of a {kind} item is skip: expected {', '.join(ANSWERS[kind])}")
        check_answer(kind, completions, choice, None, gold.ranks, gold.score)


def check_answer(
    kind: str,
    completions: int,
    choice: str,
    strength: int | None,
    ranks: Sequence[int] | None,
    score: int | None,
    given: float | None = None,
) -> None:
    """Raise UserError if these do not make a valid answer, in item order, to an item of this kind."""
    if choice not in (*ANSWERS[kind], "skip"):
        raise UserError(
            f"a {kind} item's answer is {clean(str(choice))!r}: expected {', '.join(ANSWERS[kind])} or skip"
        )
    if strength is not None and (strength not in (1, 2, 3) or choice not in ("first", "second")):
        raise UserError(f"strength {strength} of {choice}: expected 1, 2 or 3, where one side is better")
    if (ranks is not None) != (choice == "ranked") or (
        ranks is not None and (len(ranks) != completions or any(type(rank) is not int or rank < 1 for rank in ranks))
    ):
        raise UserError(f"ranks {ranks} of {choice}: expected {completions} numbers from 1, where the choice is ranked")
    if (score is not None) != (choice == "scored") or (score is not None and score not in SCORES):
        raise UserError(f"score {score} of {choice}: expected 1 to 7, where the choice is scored")
    if given is not None and (score is None or not isinstance(given, int | float) or not math.isfinite(given)):
        raise UserError(f"given {given} of {choice}: expected a number, where the choice is scored")


def dump(value: Any) -> str:
    """Canonical JSON, in ASCII, so that lone surrogates survive as \\uXXXX."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


def digest(value: Any) -> str:
    """sha256 of a value's JSON, in hex."""
    return hashlib.sha256(dump(value).encode()).hexdigest()
