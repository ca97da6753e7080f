"""What is told after the answer to a calibration item: what was said and what was expected, question by question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from alignment.labeling.answers import BETTER, LabelerAnswer, expected_in_words
from alignment.labeling.asking import name_of
from alignment.ratings import Feedback, Gold
from alignment.ratings.grading import TAGS
from alignment.terminal import one_line


class GradedWords(NamedTuple):
    """A question beside the choice in words: what it is called, both answers, and whether they agree."""

    name: str
    said: str
    expected: str
    right: bool

    def shown(self, as_named: Callable[[str], str]) -> GradedWords:
        """With the sides named so; the words of reasons are the organiser's."""
        if self.name == TAGS:
            return self
        return self._replace(said=as_named(self.said), expected=as_named(self.expected))


def graded_words(feedback: Feedback) -> list[GradedWords]:
    """The questions beside the choice that the gold answer says something to, as the labeler saw the item."""
    kind = feedback.rating.kind
    return [
        GradedWords(each.name, value_in_words(kind, each.said), value_in_words(kind, each.expected, False), each.right)
        for each in feedback.questions
    ]


def value_in_words(kind: str, value: Any, strength: bool = True) -> str:
    """A value of `Rating.answers`, in the order shown; without `strength`, of the pair scale the side alone."""
    if isinstance(value, int):
        side = "LEFT is" if value > 0 else "RIGHT is"
        return f"{side} {BETTER[abs(value)] if strength else 'better'}" if value else "a tie"
    if value and isinstance(value[0], int):
        return ", ".join(f"{name_of(kind, place)} {score}".strip() for place, score in enumerate(value)) + " of 7"
    return one_line(", ".join(value)) or "none"


def said_and_expected(answer: LabelerAnswer, feedback: Feedback) -> str:
    """All of it in words: a line for the choice, and one for each question beside it."""
    expected = feedback.expected_shown
    words = f"You said: {answer}." + (f" Expected: {expected_in_words(expected)}." if expected.chooses else "")
    lines = [f"{'Correct. ' * feedback.right}{words} {one_line(expected.reason)}".rstrip()]
    for each in graded_words(feedback):
        verdict = "right" if each.right else "not right"
        lines.append(f"{each.name}, {verdict}. You said: {each.said}. Expected: {each.expected}.")
    return "\n".join(lines)


def gold_in_words(gold: Gold, kind: str) -> str:
    """A whole gold answer by the item's own order, in one line."""
    parts = [expected_in_words(gold)] if gold.chooses else []
    parts += [f"{name}: {value_in_words(kind, value, False)}" for name, value in (gold.attributes or {}).items()]
    parts = [part.replace("LEFT", "FIRST").replace("RIGHT", "SECOND") for part in parts]
    if gold.tags is not None:
        parts.append(f"{TAGS}: {value_in_words(kind, gold.tags)}")
    return "; ".join(parts)
