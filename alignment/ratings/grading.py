"""Which answers to a gold item are right: the choice, each attribute, and the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.ratings.questionnaire import SCORES, Questionnaire, as_seen
from alignment.ratings.records import Gold, GradedAnswer, Rating, is_right

CHOICE, TAGS = "the choice", "the reasons"
"""What these are called among the attributes, whose names have no space."""


def graded(gold: Gold, rating: Rating, asked: Questionnaire) -> Iterator[GradedAnswer]:
    """The choice, where the gold answer has it, and then `graded_questions`; nothing of a skip."""
    if rating.choice == "skip":
        return
    if gold.chooses:
        right = is_right(gold, rating.choice, rating.ranks, rating.score)
        yield GradedAnswer(CHOICE, None, None, right, guess(gold))
    yield from graded_questions(gold, rating, asked)


def graded_questions(
    gold: Gold, rating: Rating, asked: Questionnaire, order: Sequence[int] = ()
) -> Iterator[GradedAnswer]:
    """The questions to which the gold answer says something, as far as this rating was asked them.

    On the pair scale only the side counts, not the strength; a number from 1 to 7 may be one point off, for each
    completion; reasons have to be the same ones.

    Args:
        asked: the questions of the rating's version.
        order: in which the completions were shown, for what was said and expected; (): item order.
    """
    if rating.choice == "skip":
        return
    expected: Mapping[str, Any] = {"attributes": gold.attributes or {}, "tags": gold.tags or ()}
    said: Mapping[str, Any] = rating.answers or {}
    if order:
        expected, said = as_seen(expected, order), as_seen(said, order)
    given = said.get("attributes", {})
    for attribute in asked.attributes:
        name = attribute.name
        if name in given and name in expected.get("attributes", {}):
            wanted, value = expected["attributes"][name], given[name]
            if isinstance(wanted, int) == isinstance(value, int):
                yield GradedAnswer(name, value, wanted, _same(value, wanted), _guess_attribute(wanted))
    if gold.tags is not None and asked.tags and set(gold.tags) <= set(asked.tags.values()):
        tags = list(said.get("tags", ()))
        yield GradedAnswer(TAGS, tags, list(gold.tags), set(tags) == set(gold.tags), 0.5 ** len(asked.tags))


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, int):
        return (value > 0) - (value < 0) == (wanted > 0) - (wanted < 0)
    return all(abs(one - other) <= 1 for one, other in zip(value, wanted, strict=True))


def _guess_attribute(wanted: Any) -> float:
    return 1 / 2 if isinstance(wanted, int) else math.prod(map(_guess_score, wanted))


def _guess_score(wanted: int) -> float:
    return sum(abs(score - wanted) <= 1 for score in SCORES) / len(SCORES)


def guess(gold: Gold) -> float:
    """Probability that a random choice is right: one side of a pair, an order without ties, one of seven scores."""
    if gold.ranks is not None:
        alike = math.prod(math.factorial(count) for count in Counter(gold.ranks).values())
        return alike / math.factorial(len(gold.ranks)) if len(set(gold.ranks)) > 1 else 0.5
    return 1 / 2 if gold.score is None else _guess_score(gold.score)
