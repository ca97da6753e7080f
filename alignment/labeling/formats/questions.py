"""Answers beside a vote, under the names that Argilla's questions and Label Studio's controls have for them.

Exports call them `attribute_helpful` (a label such as `response_a is much better`), `attribute_clear_response_a` (1 to
7), `tags`, `flags`, `comment`, and of each answer `comment_response_a`, `rewrite_response_a` and `spans_response_a`.
Other names are people's own: a further choice between two answers, and a number at each answer, are attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.row_files import BadRow
from alignment.labeling.entries import Entry
from alignment.labeling.formats.fields import ShownTask, plain
from alignment.labeling.formats.reading import SIDES, ImportOptions, Read
from alignment.labeling.formats.voting import Who, judged
from alignment.ratings import Item, Rating
from alignment.ratings.questionnaire import SCORES

AskedKind = Literal["label", "labels", "ranking", "rating", "text", "spans"]
DEGREES = {1: "slightly ", 2: "clearly ", 3: "much "}
CLEARLY = 2
"""The degree of a choice that was made without one, on a scale that has no such choice."""
_OURS = re.compile(r"tags|flags|comment|(attribute|comment|rewrite|spans)_.+")


class QuestionAnswer(NamedTuple):
    """An answer to a question: its name, the field that it stands at ("" if it is not told), and what was said.

    The value is a text for `label` and `text`, a list of texts for `labels`, ranks by field for `ranking`, a number for
    `rating`, and objects with start, end and label for `spans`.
    """

    name: str
    at: str
    kind: AskedKind
    value: Any


def is_ours(name: str) -> bool:
    """Whether a question is one that exports name, and stands beside the vote."""
    return _OURS.fullmatch(name) is not None


# --- writing ---------------------------------------------------------------------------------------------------------


def field_names(item: Item) -> list[str]:
    """The fields of an item's answers."""
    return ["response"] if item.kind == "single" else [f"response_{side}" for side in SIDES[: len(item.completions)]]


def asked_of(rating: Rating, fields: Sequence[str]) -> Iterator[QuestionAnswer]:
    """A vote, and all that was answered beside it."""
    if rating.kind == "pair":
        sign = {"first": 1, "second": -1}.get(rating.choice, 0)
        yield QuestionAnswer("preference", "prompt", "label", _label(sign, rating.strength, fields))
    elif rating.ranks is not None and len(rating.ranks) == 2:  # a ranking of two is read as a pair
        yield QuestionAnswer("preference", "prompt", "label", _label(rating.ranks[1] - rating.ranks[0], None, fields))
    elif rating.kind == "rank":
        yield QuestionAnswer("ranking", "prompt", "ranking", dict(zip(fields, rating.ranks or (), strict=True)))
    else:
        yield QuestionAnswer("rating", fields[0], "rating", rating.score)
    if rating.comment:
        yield QuestionAnswer("comment", "prompt", "text", rating.comment)
    if rating.flags:
        yield QuestionAnswer("flags", "prompt", "labels", list(rating.flags))
    answers = rating.answers or {}
    if tags := answers.get("tags"):
        yield QuestionAnswer("tags", "prompt", "labels", list(tags))
    for name, value in answers.get("attributes", {}).items():
        if isinstance(value, int):
            yield QuestionAnswer(f"attribute_{name}", "prompt", "label", _label(value, abs(value), fields))
            continue
        for field, number in zip(fields, value, strict=True):
            yield QuestionAnswer(f"attribute_{name}_{field}", field, "rating", number)
    for key in ("comments", "rewrites"):
        for field, text in zip(fields, answers.get(key, ()), strict=False):
            if text:
                yield QuestionAnswer(f"{key[:-1]}_{field}", field, "text", text)
    for field, spans in zip(fields, answers.get("spans", ()), strict=False):
        if spans:
            marked = [{"start": start, "end": end, "label": kind} for start, end, kind in spans]
            yield QuestionAnswer(f"spans_{field}", field, "spans", marked)


def _label(sign: int, degree: int | None, fields: Sequence[str]) -> str:
    return f"{fields[0 if sign > 0 else 1]} is {DEGREES.get(degree or 0, '')}better" if sign else "tie"


# --- reading ---------------------------------------------------------------------------------------------------------


def with_answers(vote: Read, task: ShownTask, asked: Sequence[QuestionAnswer], options: ImportOptions) -> Read:
    """A vote with what was answered beside it; the reasons why some of it cannot be kept."""
    entries = [part for part in vote if isinstance(part, Entry)]
    others: Read = [part for part in vote if not isinstance(part, Entry)]
    whole = len(entries) == 1 and len(entries[0].completions) == len(task.answers)
    if not asked or not whole:
        return [*vote, *(_no_vote(each) for each in asked)]
    found = _Answers(task, options)
    left = [reason for each in asked if (reason := found.take(each)) is not None]
    entry = entries[0]
    flags = [*entry.answers[0]["flags"], *(flag for flag in found.flags if flag not in entry.answers[0]["flags"])]
    answer = {**entry.answers[0], "flags": flags, "answers": found.answers(left)}
    return [*others, replace(entry, answers=[answer]), *left]


def _no_vote(asked: QuestionAnswer) -> PassedOver:
    if asked.kind == "spans":
        return PassedOver("spans, which are no vote")
    return PassedOver(f"an answer to '{asked.name}' without one vote on the same answers")


class _Answers:
    """What was answered beside one vote, while it is put together."""

    def __init__(self, task: ShownTask, options: ImportOptions) -> None:
        self.task, self.options = task, options
        size = len(task.answers)
        self.flags: list[str] = []
        self._attributes: dict[str, int] = {}
        self._numbers: dict[str, dict[int, int]] = {}
        self._tags: list[str] = []
        self._texts: dict[str, list[str | None]] = {"comments": [None] * size, "rewrites": [None] * size}
        self._spans: list[list[list[Any]]] = [[] for _ in task.answers]

    def take(self, asked: QuestionAnswer) -> PassedOver | None:
        """Take one answer, or say why it is left out."""
        side = self._side(asked)
        prefix = asked.name.partition("_")[0]
        if asked.kind == "spans":
            return self._mark(side, asked.value)
        if asked.kind == "labels":
            (self.flags if asked.name == "flags" else self._tags).extend(dict.fromkeys(map(str, asked.value)))
            return None
        if asked.kind == "text" and prefix in ("comment", "rewrite") and side is not None:
            self._texts[f"{prefix}s"][side] = str(asked.value) or None
            return None
        if asked.kind == "rating":
            return self._rate(asked, side)
        return self._choose(asked)

    def _side(self, asked: QuestionAnswer) -> int | None:
        """Which answer the question is about: the one answer, that of its field, or that which its name has."""
        keys = [answer.key for answer in self.task.answers]
        if len(keys) == 1:
            return 0
        if asked.at in keys:
            return keys.index(asked.at)
        found = [place for place, key in enumerate(keys) if plain(key) in plain(asked.name)]
        return found[0] if len(found) == 1 else None

    def _mark(self, side: int | None, spans: Sequence[Mapping[str, Any]]) -> PassedOver | None:
        if side is None:
            return PassedOver("spans, which are no vote")
        length = len(self.task.answers[side].text)
        marks = [[each.get("start"), each.get("end"), each.get("label")] for each in spans]
        for start, end, kind in marks:
            if not (type(start) is int and type(end) is int and isinstance(kind, str) and 0 <= start < end <= length):
                return PassedOver("spans that are not inside their answer")
        self._spans[side] += marks
        return None

    def _rate(self, asked: QuestionAnswer, side: int | None) -> PassedOver | None:
        number: Any = asked.value
        if side is None:
            return PassedOver(f"a number for '{asked.name}', whose name does not say which answer it is about")
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if type(number) is not int or number not in SCORES:
            return PassedOver(f"a number for '{asked.name}' that is not a whole number from 1 to 7")
        name = self._name(asked, side)
        if side in self._numbers.setdefault(name, {}):
            return PassedOver(f"a second answer to '{name}', which '{asked.name}' is as a name of a question")
        self._numbers[name][side] = number
        return None

    def _choose(self, asked: QuestionAnswer) -> PassedOver | None:
        unread = PassedOver(f"an answer to '{asked.name}', which is no choice between two answers")
        if len(self.task.answers) != 2:
            return unread
        try:
            entries = judged(self.task, asked.value, Who(None), self.options)
        except (BadRow, PassedOver):
            return unread
        name = self._name(asked, None)
        if name in self._attributes:
            return PassedOver(f"a second answer to '{name}', which '{asked.name}' is as a name of a question")
        answer: Mapping[str, Any] = next((part.answers[0] for part in entries if isinstance(part, Entry)), {})
        sign = {"first": 1, "second": -1}.get(answer["choice"], 0)
        self._attributes[name] = sign * (answer.get("strength") or CLEARLY)
        return None

    def _name(self, asked: QuestionAnswer, side: int | None) -> str:
        """The attribute that a question is about, as a name of our questions."""
        name = asked.name.removeprefix("attribute_")
        if side is not None:
            key = re.escape(self.task.answers[side].key)
            name = re.sub(rf"^{key}[\W_]+|[\W_]+{key}$", "", name)
        name = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_" if not is_ours(asked.name) else "")
        return (name if name[:1].isalpha() else f"q_{name}")[:32]

    def answers(self, left: list[PassedOver]) -> dict[str, Any] | None:
        """All of it as a ratings file has it; adds the reasons why numbers are left out."""
        attributes: dict[str, Any] = dict(self._attributes)
        places = range(len(self.task.answers))
        for name, numbers in self._numbers.items():
            if name in attributes:
                left += [PassedOver(f"numbers for '{name}' beside a choice of that name") for _ in numbers]
            elif len(numbers) < len(places):
                left += [PassedOver(f"a number for '{name}' at some of the answers alone") for _ in numbers]
            else:
                attributes[name] = [numbers[place] for place in places]
        found: dict[str, Any] = {"attributes": attributes, "tags": list(dict.fromkeys(self._tags))}
        found |= {key: texts for key, texts in self._texts.items() if any(texts)}
        found |= {"spans": self._spans} if any(self._spans) else {}
        return {key: value for key, value in found.items() if value} or None
