"""The questions of one item in their order, and what the labeler has given to it so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.labeling.answers import BETTER, FLAGGED, Ranking
from alignment.labeling.marking import Mark
from alignment.ratings import Assignment, Rating
from alignment.ratings.questionnaire import Attribute, Questionnaire, as_seen
from alignment.terminal import clean

OVERALL = {
    "pair": "Which answer is better, all in all?",
    "rank": "Which answer is best, all in all, and which come next?",
    "single": "How good is the answer, all in all?",
}
TextKind = Literal["rewrites", "comments"]
PAIR_KEYS = {**{str(4 - value): value for value in range(-3, 4)}, "left": 2, "right": -2}
SCORE_KEYS = {str(score): score for score in range(1, 8)}


@dataclass(frozen=True)
class Step:
    """One key's worth of an item: an attribute of the pair, or of the answer `place` (from 0, as shown)."""

    attribute: Attribute
    place: int | None
    name: str
    """The letter of that answer; empty for a pair, and where there is one answer alone."""

    @property
    def keys(self) -> Mapping[str, int]:
        """What each key answers."""
        return PAIR_KEYS if self.place is None else SCORE_KEYS

    def in_words(self, value: int) -> str:
        """An answer to it."""
        if self.place is not None:
            return f"{self.attribute.name}{f', {self.name}' if self.name else ''}: {value} of 7"
        side = "LEFT is" if value > 0 else "RIGHT is"
        return f"{self.attribute.name}: {f'{side} {BETTER[abs(value)]}' if value else 'a tie'}"


def steps_of(questionnaire: Questionnaire, kind: str, count: int) -> list[Step]:
    """The steps before the overall choice of an item with so many answers."""
    steps = []
    for attribute in questionnaire.of_kind(kind):
        if attribute.scale == "pair":
            steps.append(Step(attribute, None, ""))
        else:
            steps += [Step(attribute, place, name_of(kind, place)) for place in range(count)]
    return steps


def heading(number: int, total: int, name: str, question: str) -> str:
    """A question as labelers read it; `name` is that of the answer it is about, if it is about one."""
    return f"{number} of {total}{', ' * bool(name)}{name}: {question}"


def name_of(kind: str, place: int) -> str:
    """What an answer is called on the screen; empty where there is one alone."""
    return {"pair": ("LEFT", "RIGHT")[place % 2], "rank": f"ANSWER {place + 1}", "single": ""}[kind]


@dataclass
class Draft:
    """What the labeler has given to an item beside the overall choice."""

    ranking: Ranking
    steps: Sequence[Step] = ()
    given: list[int] = field(default_factory=list)
    """Answers to the first steps."""
    tags: list[str] = field(default_factory=list)
    texts: dict[TextKind, dict[int, str]] = field(default_factory=lambda: {"rewrites": {}, "comments": {}})
    """Rewritten answers and comments on single ones, by their place on the screen."""
    marks: dict[int, list[Mark]] = field(default_factory=dict)
    """Passages that are wrong, by the answer's place on the screen."""
    unfound: dict[int, list[str]] = field(default_factory=dict)
    """Lines of a form that name no passage."""
    comment: str = ""
    flagged: bool = False

    @property
    def step(self) -> Step | None:
        """What is asked now; None: the overall choice."""
        return self.steps[len(self.given)] if len(self.given) < len(self.steps) else None

    def toggle(self, tag: str) -> None:
        """Set a reason, or clear it."""
        if tag in self.tags:
            self.tags.remove(tag)
        else:
            self.tags.append(tag)

    @property
    def answers(self) -> dict[str, Any]:
        """The answers to the questionnaire, in the order shown, as the store takes them."""
        attributes: dict[str, Any] = {}
        for step, value in zip(self.steps, self.given, strict=False):
            if step.place is None:
                attributes[step.attribute.name] = value
            else:
                attributes.setdefault(step.attribute.name, []).append(value)
        texts: dict[str, Any] = {
            kind: [given.get(place) for place in range(self.ranking.size)]
            for kind, given in self.texts.items()
            if given
        }
        if any(self.marks.values()):
            texts["spans"] = [self.marks.get(place, []) for place in range(self.ranking.size)]
        return {"attributes": attributes, "tags": self.tags, **texts}

    @property
    def kept(self) -> dict[str, Any]:
        """All of it for JSON, as `new_draft` takes it back; empty if nothing was given."""
        places = range(self.ranking.size)
        found = {
            "answers": {key: value for key, value in self.answers.items() if value},
            "unfound": [self.unfound.get(place, []) for place in places] if any(self.unfound.values()) else [],
            "ranks": [self.ranking.ranks.get(place + 1) for place in places] if self.ranking.placed else [],
            "comment": self.comment,
            "flagged": self.flagged,
        }
        return {key: value for key, value in found.items() if value}

    def write(self, kind: TextKind, place: int, text: str, original: str) -> None:
        """Keep what was written about an answer; an empty text, or an answer as it was, is nothing."""
        kept = text.replace("\r\n", "\n")
        if not kept.strip() or (kind == "rewrites" and kept == clean(original)):
            self.texts[kind].pop(place, None)
        else:
            self.texts[kind][place] = kept


def new_draft(questionnaire: Questionnaire, assignment: Assignment, kept: Mapping[str, Any] | None = None) -> Draft:
    """An empty draft of an item; or one with what was kept of it (`Draft.kept`) and is still asked."""
    count, kept = len(assignment.completions), kept or {}
    answers = kept.get("answers", {})
    draft = Draft(Ranking(count, kept.get("ranks", ())), steps_of(questionnaire, assignment.kind, count))
    draft.given = _given(draft.steps, answers.get("attributes", {}))
    draft.tags = [tag for tag in answers.get("tags", []) if tag in questionnaire.tags.values()]
    for kind, may_be in (("rewrites", questionnaire.rewrite), ("comments", questionnaire.comments)):
        texts = answers.get(kind, ()) if may_be else ()
        draft.texts[kind] = {place: text for place, text in enumerate(texts) if text}  # type: ignore[index]
    draft.marks = {
        place: [(start, end, kind) for start, end, kind in marks if kind in questionnaire.spans]
        for place, marks in enumerate(answers.get("spans", ()))
    }
    if questionnaire.spans:
        draft.unfound = dict(enumerate(kept.get("unfound", ())))
    draft.comment, draft.flagged = clean(kept.get("comment", "")), kept.get("flagged", False)
    return draft


def taken_back(former: Rating, assignment: Assignment) -> dict[str, Any]:
    """What came with an answer that was taken back, as `new_draft` takes it."""
    answers = as_seen(former.answers or {}, assignment.order_shown)
    return {"answers": answers, "comment": former.comment, "flagged": FLAGGED in former.flags}


def _given(steps: Sequence[Step], attributes: Mapping[str, Any]) -> list[int]:
    """What was answered to the steps, up to the first that was not: the questions may have changed since."""
    given: list[int] = []
    for step in steps:
        value = attributes.get(step.attribute.name)
        if step.place is not None:
            value = value[step.place] if isinstance(value, list) and step.place < len(value) else None
        if not isinstance(value, int):
            break
        given.append(value)
    return given
