"""What labelers are asked of an item beside the choice, and the answers to it.

A questionnaire is declared in a YAML file and kept in the ratings file, a version for each change. Answers are an
object for JSON, without what was not given:

- `attributes`: values by name. On the pair scale, 3 (the first answer is much better) to -3 (the second is), 0 a tie;
  on the scale 1 to 7, a list with a number for each completion.
- `tags`: the words of the reasons.
- `rewrites` and `comments`: a text or null for each completion.
- `spans`: for each completion a list of passages, each [start, end, kind] in characters of its text.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from alignment.config.loading import read_values, validate
from alignment.config.sections import Section
from alignment.errors import UserError
from alignment.terminal import one_line

TAKEN = "bcefjkmqrsux"  # letters that mean something else on the screen or on the page
TAG_KEYS = "".join(letter for letter in string.ascii_lowercase if letter not in TAKEN)
SCORES = range(1, 8)
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _in_a_line(words: str) -> str:
    if not (shown := one_line(words)):
        raise ValueError("expected words, found nothing")
    return shown


Words = Annotated[str, Field(max_length=200), AfterValidator(_in_a_line)]
Answers = Mapping[str, Any]
KEYS = ("attributes", "tags", "rewrites", "comments", "spans")


class Attribute(Section):
    """One attribute that is judged by itself."""

    name: str
    """How it is called in exports, reports and configs."""
    ask: Words
    """The question that labelers read."""
    scale: Literal["pair", "1-7"] = "1-7"
    """`pair`: which of two answers is better in it; `1-7`: how good each answer is in it."""

    @model_validator(mode="before")
    @classmethod
    def _is_whole(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not {"name", "ask"} <= value.keys():
            raise ValueError(f"expected `name: helpful` and `ask: Which answer helps more?`, found {value!a}"[:300])
        return value

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!a}: expected at most 32 of a-z, 0-9 and _, beginning with a letter")
        return self


class Questionnaire(Section):
    """What labelers are asked of each item. Nothing is asked beside the choice by default."""

    attributes: Annotated[tuple[Attribute, ...], Field(max_length=12)] = ()
    """Asked one after another, before the overall choice."""
    overall: Words | None = None
    """The question of the overall choice, which is always asked, and last."""
    tags: dict[str, Words] = Field(default_factory=dict)
    """Reasons, each with the letter that sets and clears it."""
    rewrite: bool = False
    """Whether an answer may be rewritten as it should have been."""
    comments: bool = False
    """Whether each answer may get a comment of its own, beside the one on the item."""

    spans: Annotated[tuple[Words, ...], Field(max_length=9)] = ()
    """What can be wrong in a passage of an answer; labelers mark such passages."""

    @model_validator(mode="after")
    def _has_no_double(self) -> Self:
        names = [attribute.name for attribute in self.attributes]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two attributes have the name {twice[0]}; give one of them another name")
        wrong = [key for key in self.tags if len(key) != 1 or key not in TAG_KEYS]
        if wrong:
            raise ValueError(f"tags: the key {wrong[0]!a} cannot be had; use one of {' '.join(TAG_KEYS)}")
        words = list(self.tags.values())
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"two tags have the words {twice[0]!a}; keep one of them")
        if twice := [kind for kind in self.spans if self.spans.count(kind) > 1]:
            raise ValueError(f"spans: {twice[0]!a} stands twice; keep one of them")
        return self

    def of_kind(self, kind: str) -> tuple[Attribute, ...]:
        """The attributes that are asked of an item: those on the pair scale of pairs alone."""
        return tuple(each for each in self.attributes if each.scale == "1-7" or kind == "pair")


def read_questionnaire(path: str | Path) -> Questionnaire:
    """Read a questionnaire from a YAML file.

    Raises:
        ConfigError: the file, the key or the value that is wrong, and what was expected.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a YAML file of questions")
    return validate(Questionnaire, read_values(path), str(path))


def checked_questions(text: str) -> str:
    """A questionnaire as a ratings file keeps it, in JSON; "" asks nothing. Raises UserError if it is none."""
    try:
        return as_kept(validate(Questionnaire, json.loads(text or "{}"), "questions"))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"questions {text[:80]!a} are no JSON object ({error})") from None


def as_kept(questionnaire: Questionnaire) -> str:
    """The JSON that a ratings file keeps: the same for the same questions; "" for none."""
    asked = questionnaire.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(asked) if asked else ""


def check_answers(questionnaire: Questionnaire, kind: str, count: int, answers: Answers) -> None:
    """Raise UserError unless every attribute that is asked of such an item is answered, and nothing else is."""
    check_shape(kind, count, answers)
    given, asked = answers.get("attributes", {}), questionnaire.of_kind(kind)
    names = [attribute.name for attribute in asked]
    if set(given) != set(names):
        raise UserError(f"answers to {', '.join(given) or 'no attribute'}: expected {', '.join(names) or 'none'}")
    for attribute in asked:
        if isinstance(given[attribute.name], int) != (attribute.scale == "pair"):
            raise UserError(
                f"{attribute.name} is {given[attribute.name]}: expected an answer on the scale {attribute.scale}"
            )
    unknown = [tag for tag in answers.get("tags", ()) if tag not in questionnaire.tags.values()]
    if unknown:
        raise UserError(f"tag {unknown[0]!a}: expected one of {', '.join(questionnaire.tags.values()) or 'no tags'}")
    for key, may_be in (("rewrites", questionnaire.rewrite), ("comments", questionnaire.comments)):
        if key in answers and not may_be:
            raise UserError(f"{key} were not asked for")
    kinds = {kind for spans in answers.get("spans", ()) for *_, kind in spans}
    if wrong := kinds - set(questionnaire.spans):
        raise UserError(f"span {min(wrong)!a}: expected one of {', '.join(questionnaire.spans) or 'no spans'}")


def check_shape(kind: str, count: int, answers: Answers) -> None:
    """Raise UserError unless these can be answers to some questionnaire, of an item with so many completions."""
    for problem in _problems(kind, count, answers):
        raise UserError(problem)


def _problems(kind: str, count: int, answers: Answers) -> Iterator[str]:
    unknown = [str(key) for key in answers if key not in KEYS]
    if unknown:
        yield f"answers have the unknown key {unknown[0]!a}; known are {', '.join(KEYS)}"
    for key in ("rewrites", "comments"):
        texts = answers.get(key, [None] * count)
        if not _is_list(texts, count) or not all(text is None or (isinstance(text, str) and text) for text in texts):
            yield f"{key} of answers must be a list of {count}, each a text or null"
    spans = answers.get("spans", [[]] * count)
    if not _is_list(spans, count) or not all(
        isinstance(marks, list | tuple) and all(map(_is_span, marks)) for marks in spans
    ):
        yield f"spans of answers must be a list of {count} lists, each span [start, end, kind]"
    attributes, tags = answers.get("attributes", {}), answers.get("tags", [])
    if not isinstance(attributes, dict) or not all(
        isinstance(name, str) and NAME.fullmatch(name) for name in attributes
    ):
        yield "attributes of answers must be an object of names and values"
        return
    for name, value in attributes.items():
        on_pair = kind == "pair" and type(value) is int and -3 <= value <= 3
        if not on_pair and not (_is_list(value, count) and all(type(x) is int and x in SCORES for x in value)):
            pair = "a number from -3 to 3, or " if kind == "pair" else ""
            yield f"{name} is {value!a}: expected {pair}a list of {count} numbers from 1 to 7"[:300]
    if (
        not isinstance(tags, list | tuple)
        or not all(isinstance(tag, str) for tag in tags)
        or len(set(tags)) < len(tags)
    ):
        yield "tags of answers must be a list of texts, each once"


def _is_list(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count


def _is_span(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    start, end, kind = value
    return type(start) is int and type(end) is int and 0 <= start < end and isinstance(kind, str)


def as_stored(answers: Answers, order: Sequence[int]) -> dict[str, Any] | None:
    """Answers in display order as they are stored, in item order; None if nothing is left of them."""
    return _reordered(answers, [list(order).index(place) for place in range(len(order))]) or None


def as_seen(answers: Answers, order: Sequence[int]) -> dict[str, Any]:
    """Stored answers in the order in which the completions were shown."""
    return _reordered(answers, order)


def _reordered(answers: Answers, places: Sequence[int]) -> dict[str, Any]:
    sign = 1 if list(places) == sorted(places) else -1
    attributes = {
        name: sign * value if isinstance(value, int) else [value[place] for place in places]
        for name, value in answers.get("attributes", {}).items()
    }
    kept = {"attributes": attributes, "tags": list(answers.get("tags", ()))}
    for key in ("rewrites", "comments", "spans"):
        texts = answers.get(key)
        kept[key] = [texts[place] for place in places] if texts and any(texts) else []
    return {key: value for key, value in kept.items() if value}
