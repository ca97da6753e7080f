"""What the ratings store takes and gives, and the checks of what people hand to it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from alignment.errors import UserError
from alignment.terminal import clean

Kind = Literal["pair", "rank", "single"]
Choice = Literal["first", "second", "tie", "ranked", "scored", "skip"]
ChoiceShown = Literal["left", "right", "tie", "ranked", "scored", "skip"]
Order = Literal["random", "uncertain"]
Why = Literal["random", "uncertain", "gold", "calibration", "repeat", "import"]
"""Why a labeler got an item: chance, a reward model's doubt, a control item, the same with feedback, once more with the
sides flipped; or the answer came from a file."""

_AnyChoice = TypeVar("_AnyChoice", Literal["first", "second", "tie"], str)
CONTROLS = ("gold", "calibration", "repeat")  # tell of the labeler; neither count toward `need` nor train a model
COMPLETIONS = {"single": (1, 1), "pair": (2, 2), "rank": (2, 9)}  # fewest and most
SCORES = range(1, 8)
ANSWERS = {"pair": ("first", "second", "tie"), "rank": ("ranked",), "single": ("scored",)}


@dataclass(frozen=True)
class Completion:
    """One answer. `ended`: it stopped by itself, not at a length limit. `model`: registry reference of its maker."""

    text: str
    ended: bool = True
    model: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Gold:
    """The right answer of a control item: `choice` of a pair, `ranks` of a ranking, `score` of a single completion."""

    choice: Literal["first", "second", "tie"] | None = None
    ranks: tuple[int, ...] | None = None
    score: int | None = None


@dataclass(frozen=True)
class Item:
    """One thing to rate. `prompt` is a list of `{"role", "content"}`; `need` is how many labelers shall answer.

    An item with `gold` goes to labelers as a control, whatever its `need`.
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
    """A finished answer, in item order whatever the labeler saw; `completions[order_shown[0]]` was shown first.

    `ranks` (1 is best, equal is a tie, no number left out) belongs to the choice `ranked`, `score` (1 to 7) to
    `scored`. Of imported answers `order_shown` may be unknown, then (), and `seconds`, then None.
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


@dataclass(frozen=True)
class Assignment:
    """An item as one labeler sees it: texts in the order shown and nothing that names a model.

    `why` is for the program: a labeler who sees it knows which answers are being checked.
    """

    rating: int
    item: int
    labeler: str
    kind: Kind
    prompt: tuple[dict[str, str], ...]
    completions: tuple[str, ...]
    order_shown: tuple[int, ...]
    why: Why


@dataclass(frozen=True)
class Feedback:
    """What a labeler learns after a calibration item. In `expected_shown`, `first` is what was shown first."""

    right: bool
    expected_shown: Gold


@dataclass(frozen=True)
class Progress:
    """Where a labeler is: `done` (skips among them) of `total`; `seconds` is the median per answer of late."""

    done: int
    skipped: int
    total: int
    seconds: float | None


def is_right(gold: Gold, choice: str | None, ranks: Sequence[int] | None = None, score: int | None = None) -> bool:
    """Whether an answer in item order agrees with the right one; a skip never does.

    A pair: the same choice, whatever the strength. A ranking: of any two completions that `gold` ranks apart the
    better one is ranked better; where `gold` has a tie any order is right. A score: at most one point off.
    """
    if gold.choice is not None:
        return choice == gold.choice
    if gold.ranks is not None and ranks is not None:
        places = range(len(gold.ranks))
        return all(ranks[i] < ranks[j] for i in places for j in places if gold.ranks[i] < gold.ranks[j])
    return gold.score is not None and score is not None and abs(score - gold.score) <= 1


def flipped(choice: _AnyChoice, order: Sequence[int]) -> _AnyChoice:
    """A choice of a pair from item order to the order shown, or back: to swap the sides twice is not to swap."""
    if list(order) == [0, 1]:
        return choice
    return "second" if choice == "first" else "first" if choice == "second" else choice


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks without gaps: (1, 1, 5) is (1, 1, 2)."""
    numbers = sorted(set(ranks))
    return tuple(numbers.index(rank) + 1 for rank in ranks)


def check_labeler(name: str) -> None:
    """Raises UserError unless the name is 1 to 64 printable characters without space at its ends."""
    if not (1 <= len(name) <= 64 and name.isprintable() and name == name.strip()):
        raise UserError(f"labeler {name!a}: expected a name of 1 to 64 printable characters, no space at its ends")


def as_message(message: Mapping[str, str]) -> dict[str, str]:
    """A prompt's message, checked."""
    fields = dict(message) if isinstance(message, Mapping) else {}
    if set(fields) != {"role", "content"} or not all(isinstance(value, str) for value in fields.values()):
        raise UserError(f'prompt message {clean(str(message))[:80]!r}: expected {{"role": ..., "content": ...}}')
    return fields


def as_completion(fields: Completion | Mapping[str, Any]) -> Completion:
    """A completion, checked."""
    if isinstance(fields, Completion):
        return fields
    if not isinstance(fields.get("text"), str) or not set(fields) <= set(Completion.__dataclass_fields__):
        raise UserError(f"completion with keys {sorted(fields)}: expected text (a string), ended, model and tokens")
    return Completion(**fields)


def item_key(kind: str, messages: Sequence[Mapping[str, str]], answers: Sequence[Completion], copy: int = 0) -> str:
    """What makes an item the same one: its kind, prompt and texts, and which of several alike it is."""
    content: list[Any] = [messages, [[answer.text, answer.ended] for answer in answers]]
    key = digest(content if kind == "pair" else [kind, *content])
    return digest(["copy", copy, key]) if copy else key


def check_item(kind: str, messages: int, completions: int, need: int, gold: Gold | None) -> None:
    """Raises UserError if these do not make an item."""
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
        given = {name for name, value in asdict(gold).items() if value is not None}
        if given != {{"pair": "choice", "rank": "ranks", "single": "score"}[kind]}:
            raise UserError(
                f"gold of a {kind} item: found {', '.join(sorted(given)) or 'nothing'}, expected "
                + {"pair": "choice", "rank": "ranks", "single": "score"}[kind]
            )
        choice = ANSWERS[kind][0] if gold.choice is None else gold.choice
        if choice == "skip":
            raise UserError(f"gold of a {kind} item is skip: expected {', '.join(ANSWERS[kind])}")
        check_answer(kind, completions, choice, None, gold.ranks, gold.score)


def check_answer(
    kind: str, completions: int, choice: str, strength: int | None, ranks: Sequence[int] | None, score: int | None
) -> None:
    """Raises UserError if these do not make an answer, in item order, to an item of this kind."""
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


def dump(value: Any) -> str:
    """JSON in one spelling. ASCII: lone surrogates survive as \\uXXXX."""
    return json.dumps(value, allow_nan=False, sort_keys=True)


def digest(value: Any) -> str:
    """sha256 of a value's JSON, in hex."""
    return hashlib.sha256(dump(value).encode()).hexdigest()
