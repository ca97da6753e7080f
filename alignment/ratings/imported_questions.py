"""Questions made of answers that came without them, and whether such answers fit the questions that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alignment.ratings.questionnaire import TAG_KEYS, Answers, Attribute, Questionnaire


def questions_of(answers: Sequence[Answers]) -> Questionnaire:
    """The questions that all these answers fit: an attribute is asked by its name, for the file has no other words.

    Raises:
        ValueError: no questionnaire has so many attributes, tags or spans, or one attribute has two scales.
    """
    scales: dict[str, Literal["pair", "1-7"]] = {}
    for given in answers:
        for name, value in given.get("attributes", {}).items():
            scale: Literal["pair", "1-7"] = "pair" if isinstance(value, int) else "1-7"
            if scales.setdefault(name, scale) != scale:
                raise ValueError(f"answers: {name} has answers on the pair scale and on 1 to 7")
    tags = dict.fromkeys(tag for given in answers for tag in given.get("tags", ()))
    if len(tags) > len(TAG_KEYS):
        raise ValueError(f"answers: {len(tags)} tags, and at most {len(TAG_KEYS)} can be asked for")
    spans = dict.fromkeys(kind for given in answers for marks in given.get("spans", ()) for *_, kind in marks)
    return Questionnaire(
        attributes=tuple(Attribute(name=name, ask=name, scale=scale) for name, scale in scales.items()),
        tags=dict(zip(TAG_KEYS, tags, strict=False)),
        rewrite=any(given.get("rewrites") for given in answers),
        comments=any(given.get("comments") for given in answers),
        spans=tuple(spans),
    )


def missing_question(here: Questionnaire, asked: Questionnaire) -> str | None:
    """What answers to `asked` have that `here` does not ask; None if they are answers to `here` too."""
    scales = {each.name: each.scale for each in here.attributes}
    for each in asked.attributes:
        if each.name not in scales:
            return f"the attribute {each.name!a}"
        if scales[each.name] != each.scale:
            return f"the attribute {each.name!a} on the scale {each.scale}"
    for tag in asked.tags.values():
        if tag not in here.tags.values():
            return f"the tag {tag!a}"
    for kind in asked.spans:
        if kind not in here.spans:
            return f"the kind of span {kind!a}"
    if asked.rewrite and not here.rewrite:
        return "rewritten answers"
    return "comments on single answers" if asked.comments and not here.comments else None


def described(asked: Questionnaire) -> str:
    """What is asked, in a line."""
    parts = [f"{each.name} ({each.scale})" for each in asked.attributes]
    parts += [f"{len(asked.tags)} tags"] * bool(asked.tags) + [f"{len(asked.spans)} kinds of spans"] * bool(asked.spans)
    parts += ["rewritten answers"] * asked.rewrite + ["comments on single answers"] * asked.comments
    return ", ".join(parts)
