"""What a labeler can say of an item: in keys, in words, and as the store takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from alignment.ratings import Assignment, ChoiceShown, Gold, Rating

BOTH_BAD, FLAGGED = "both_bad", "flagged"
SCORES = range(1, 8)
BETTER = {3: "much better", 2: "clearly better", 1: "slightly better"}


@dataclass(frozen=True)
class LabelerAnswer:
    """One answer as the labeler sees the item: sides, ranks and scores are those shown, not those stored."""

    choice: ChoiceShown
    strength: int | None = None
    flags: tuple[str, ...] = ()
    ranks: tuple[int, ...] | None = None
    score: int | None = None

    def __str__(self) -> str:
        if self.ranks is not None:
            return order_in_words(self.ranks)
        if self.score is not None:
            return f"{self.score} of {SCORES[-1]}"
        if self.choice in ("left", "right"):
            how = "better" if self.strength is None else BETTER[self.strength]
            return f"{self.choice.upper()} is {how}"
        return {"tie": "both bad" if BOTH_BAD in self.flags else "a tie", "skip": "skipped"}[self.choice]


SKIP = LabelerAnswer("skip")
PAIR = {
    "1": LabelerAnswer("left", 3),
    "2": LabelerAnswer("left", 2),
    "3": LabelerAnswer("left", 1),
    "4": LabelerAnswer("tie"),
    "5": LabelerAnswer("right", 1),
    "6": LabelerAnswer("right", 2),
    "7": LabelerAnswer("right", 3),
    "b": LabelerAnswer("tie", flags=(BOTH_BAD,)),
    "left": LabelerAnswer("left", 2),
    "right": LabelerAnswer("right", 2),
}
SINGLE = {str(score): LabelerAnswer("scored", score=score) for score in SCORES}


class Ranking:
    """The order of K answers while it is being typed, best first: numbers place answers, `=` joins two ranks."""

    def __init__(self, size: int, ranks: Sequence[int | None] = ()) -> None:
        """`ranks` are those that answers have already, by their place."""
        self.size = size
        self._typed: list[tuple[int, bool]] = []  # an answer's number, and whether it shares the rank before it
        self.joining = False
        ranked = sorted((rank, number) for number, rank in enumerate(ranks, 1) if rank is not None)
        for place, (rank, number) in enumerate(ranked):
            self._typed.append((number, place > 0 and ranked[place - 1][0] == rank))

    @property
    def placed(self) -> list[int]:
        """Numbers of the answers that have a rank, best first."""
        return [number for number, _ in self._typed]

    @property
    def left(self) -> list[int]:
        """Numbers of the answers that have none yet."""
        return [number for number in range(1, self.size + 1) if number not in self.placed]

    @property
    def ranks(self) -> dict[int, int]:
        """Rank of each placed answer by its number; 1 is best, equal is a tie."""
        ranks: dict[int, int] = {}
        rank = 0
        for number, tied in self._typed:
            rank += not tied
            ranks[number] = rank
        return ranks

    @property
    def answer(self) -> LabelerAnswer | None:
        """The whole order, or None while answers are missing."""
        return (
            None if self.left else LabelerAnswer("ranked", ranks=tuple(self.ranks[n] for n in range(1, self.size + 1)))
        )

    def press(self, key: str) -> str:
        """Take a number, `=` or `backspace`; returns what is wrong with it, or nothing."""
        if key == "backspace":
            if self.joining:
                self.joining = False
            elif self._typed:
                self._typed.pop()
            else:
                return "Nothing is placed yet."
        elif key == "=":
            if not self._typed or not self.left:
                return "= goes between two answers that are equally good."
            self.joining = True
        elif not key.isdecimal() or not 1 <= int(key) <= self.size:
            return f"The answers have the numbers 1 to {self.size}."
        elif int(key) in self.placed:
            return f"Answer {key} has its place already; Backspace takes the last one back."
        else:
            self._typed.append((int(key), self.joining))
            self.joining = False
        return ""

    def __str__(self) -> str:
        typed = "".join(f"{' = ' if tied else ' > '}{number}" for number, tied in self._typed)[3:]
        return typed + (" =" if self.joining else "")


def order_in_words(ranks: Sequence[int]) -> str:
    """Ranks of answers 1, 2, ... as their order: (2, 1, 2) is `2 > 1 = 3`."""
    numbers = sorted(range(len(ranks)), key=lambda index: ranks[index])
    groups = groupby(numbers, key=lambda index: ranks[index])
    return " > ".join(" = ".join(str(index + 1) for index in group) for _, group in groups)


def expected_in_words(gold: Gold) -> str:
    """The right answer of a control item, given in the order shown."""
    if gold.ranks is not None:
        return order_in_words(gold.ranks)
    if gold.score is not None:
        return str(LabelerAnswer("scored", score=gold.score))
    assert gold.choice is not None
    return str(LabelerAnswer({"first": "left", "second": "right", "tie": "tie"}[gold.choice]))  # type: ignore[arg-type]


def as_shown(rating: Rating, assignment: Assignment) -> LabelerAnswer:
    """A stored answer, which is in item order, as this labeler gave it."""
    order = assignment.order_shown
    flags = tuple(flag for flag in rating.flags if flag == BOTH_BAD)
    if rating.choice in ("first", "second"):
        side = order.index(("first", "second").index(rating.choice))
        return LabelerAnswer("right" if side else "left", rating.strength)
    ranks = None if rating.ranks is None else tuple(rating.ranks[index] for index in order)
    return LabelerAnswer(rating.choice, None, flags, ranks, rating.score)  # type: ignore[arg-type]


def keys_of(kind: str) -> Iterator[tuple[str, str]]:
    """Keys and words of the decisions on a kind of item, for the help."""
    if kind == "pair":
        yield "1 2 3", "LEFT is much, clearly, slightly better"
        yield "4", "a tie"
        yield "5 6 7", "RIGHT is slightly, clearly, much better"
        yield "b", "both bad (saved as a tie)"
        yield "← →", "the same as 2 and 6"
    elif kind == "rank":
        yield "1-9", "place this answer next; begin with the best"
        yield "=", "the next answer is as good as the one before it"
        yield "Backspace", "take the last one back"
        yield "Enter", "save, once all answers have a place"
    else:
        yield "1-7", "1 is the worst, 7 the best"
