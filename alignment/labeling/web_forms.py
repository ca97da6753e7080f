"""The form of an item on the rating page: what it shows, and what is read from it when it comes back."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException

from alignment.labeling.answers import PAIR, SINGLE, SKIP, LabelerAnswer
from alignment.labeling.asking import OVERALL, Draft, TextKind, heading, new_draft
from alignment.labeling.marking import in_lines, marks_in
from alignment.ratings import Assignment
from alignment.ratings.questionnaire import Questionnaire

COMMENT_CHARACTERS = 4000
SHORT = ("much better", "clearly", "slightly", "tie", "slightly", "clearly", "much better")
INCOMPLETE = (
    "Not saved yet, the item is still open: a ranking needs a rank for each answer, every question an answer, and the"
    " choice comes last."
)
NO_PASSAGE = "Not saved yet: there is no such passage, or no such kind: {}."
Form = Mapping[str, str]
Button = tuple[str, str, str]
"""Its key, words that only a screen reader needs, and its words."""


# --- shown -----------------------------------------------------------------------------------------------------------


def names_of(item: Assignment) -> list[str]:
    """Names of the answers. They are letters because on a phone left and right stand one below the other."""
    names = {"pair": ["Answer A", "Answer B"], "single": ["Answer"]}
    return names.get(item.kind) or [f"Answer {number + 1}" for number in range(len(item.completions))]


def by_letter(words: str) -> str:
    """Our own words of the terminal as the page says them."""
    return words.replace("LEFT", "A").replace("RIGHT", "B")


def buttons(kind: str) -> list[Button]:
    """The seven buttons of a choice."""
    if kind == "pair":
        sides = ("A is", "A is", "A is", "a", "B is", "B is", "B is")
        return [(str(place + 1), sides[place], SHORT[place]) for place in range(7)]
    return [(key, "of 7", "") for key in SINGLE]


def shown_steps(draft: Draft, kind: str) -> list[dict[str, Any]]:
    """The questions before the overall choice: heading, scale and buttons of each, and the key that was given."""
    total = len(draft.steps) + 1
    shown = []
    for number, step in enumerate(draft.steps, 1):
        name = by_letter(step.name) if kind == "pair" else step.name.capitalize()
        scale = "pair" if step.place is None else "single"
        given = draft.given[number - 1] if number <= len(draft.given) else None
        shown.append(
            {
                "heading": heading(number, total, name, step.attribute.ask),
                "scale": scale,
                "ends": ("A is better", "B is better") if scale == "pair" else ("worst", "best"),
                "buttons": buttons(scale),
                "given": next((key for key, value in step.keys.items() if value == given), ""),
            }
        )
    return shown


def overall_heading(questionnaire: Questionnaire, draft: Draft, kind: str) -> str:
    """The question of the overall choice; empty for an item with the one choice alone."""
    if not draft.steps:
        return questionnaire.overall or ""
    total = len(draft.steps) + 1
    return heading(total, total, "", questionnaire.overall or OVERALL[kind])


def marked_lines(item: Assignment, questionnaire: Questionnaire, draft: Draft) -> dict[int, str]:
    """The passages that are marked in each answer as they are typed, with those lines that named none."""
    lines = {
        place: in_lines(text, draft.marks.get(place, ()), questionnaire.spans) + draft.unfound.get(place, [])
        for place, text in enumerate(item.completions)
    }
    return {place: "\n".join(each) for place, each in lines.items() if each}


# --- read ------------------------------------------------------------------------------------------------------------


def as_sent(item: Assignment, form: Form) -> Assignment:
    """The item with the versions of guideline and questions that the form was made with."""
    versions: dict[str, int | None] = {}
    for name, newest in (("guideline", item.guideline), ("questions", item.questions)):
        sent = form.get(name, "")
        if sent and not (re.fullmatch("[0-9]{1,9}", sent) and 1 <= int(sent) <= (newest or 0)):
            raise HTTPException(422, INCOMPLETE)
        versions[name] = int(sent) if sent else None
    return replace(item, guideline=versions["guideline"], questions=versions["questions"])


def answer_in(item: Assignment, form: Form) -> LabelerAnswer | None:
    """The choice that the form makes; None if that is no whole answer."""
    key = form.get("answer", "")
    if key == "s":
        return SKIP
    if item.kind == "rank":
        ranks = [form.get(f"rank{number + 1}", "") for number in range(len(item.completions))]
        if key == "ranked" and all(re.fullmatch("[1-9]", rank) for rank in ranks):
            return LabelerAnswer("ranked", ranks=tuple(map(int, ranks)))
        return None
    return (PAIR if item.kind == "pair" else SINGLE).get(key)


def kept_in(item: Assignment, draft: Draft, form: Form) -> dict[str, Any]:
    """The draft as it is kept, with the ranks as they stand in the lists of the form, gaps too."""
    ranks = [form.get(f"rank{number + 1}", "") for number in range(len(item.completions))]
    given = [int(rank) if re.fullmatch("[1-9]", rank) else None for rank in ranks]
    return draft.kept | ({"ranks": given} if any(given) else {})


def draft_in(item: Assignment, questionnaire: Questionnaire, form: Form) -> Draft:
    """What the form has beside the choice: answers to the questions up to the first without one, and texts."""
    draft = new_draft(questionnaire, item)
    for number, step in enumerate(draft.steps):
        value = step.keys.get(form.get(f"question{number}", ""))
        if value is None:
            break
        draft.given.append(value)
    draft.tags = [words for key, words in questionnaire.tags.items() if f"tag-{key}" in form]
    texts: dict[TextKind, bool] = {"rewrites": questionnaire.rewrite, "comments": questionnaire.comments}
    for kind, may_be in texts.items():
        for place, original in enumerate(item.completions if may_be else ()):
            draft.write(kind, place, form.get(f"{kind}{place}", ""), original)
    for place, text in enumerate(item.completions if questionnaire.spans else ()):
        lines = form.get(f"spans{place}", "").splitlines()
        draft.marks[place], draft.unfound[place] = marks_in(text, lines, questionnaire.spans)
    draft.comment = form.get("comment", "").strip()[:COMMENT_CHARACTERS]
    draft.flagged = "flag" in form
    return draft


def saved(code: str) -> str:
    """Words for what was saved, from a code of a few forms: free words in a link could say anything on the page."""
    kind, _, rest = code.partition("-")
    answer = {"pair": PAIR, "single": SINGLE}.get(kind, {}).get(rest)
    if kind == "rank" and re.fullmatch("[1-9]{2,9}", rest):
        answer = LabelerAnswer("ranked", ranks=tuple(map(int, rest)))
    if answer is None:
        return "Skipped." if code == "skip" else ""
    return f"Saved: {by_letter(str(answer))}."


def seconds_of(form: Form, shown_at: float) -> float:
    """How long the labeler looked at the item.

    The page counts while it is in view, which leaves out the phone call in between; but a browser may say anything,
    so never more than passed here since the form was made. Without a script that is all there is.
    """
    passed = max(0.0, time.time() - shown_at)
    try:
        told = float(form.get("seconds", ""))
    except ValueError:
        return passed
    return min(told, passed) if math.isfinite(told) and told >= 0 else passed
