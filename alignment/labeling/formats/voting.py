"""What labelers said, in the words of other tools, as ratings of our own."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.preferences import choice_number
from alignment.data.row_files import BadRow
from alignment.data.votes import BAD_TIES, SKIPS, TIES
from alignment.labeling.answers import BOTH_BAD
from alignment.labeling.entries import Entry, short_digest
from alignment.labeling.formats.choice_numbers import place_of
from alignment.labeling.formats.fields import ShownAnswer, ShownTask, ending, plain
from alignment.labeling.formats.reading import SIDES, ImportOptions, Read
from alignment.ratings import Completion
from alignment.ratings.records import dense

LABELERS = (
    "labeler", "labeller", "labelername", "labelerid", "annotator", "annotatorid", "annotatorname", "rater", "raterid",
    "ratername", "worker", "workerid", "judge", "judgeid", "user", "userid", "username", "evaluator", "evaluatorid",
    "reviewer", "coder", "assessor", "person", "completedby", "email", "emailaddress", "who", "grader", "scorer",
    "voter", "turker", "crowdworker", "participant", "respondent", "expert", "moderator", "tester", "expertname",
    "workername",
    "reviewername", "evaluatorname", "judgename", "assessorname", "participantname",
    *(f"{who}id" for who in (
        "assessor", "reviewer", "coder", "grader", "turker", "crowdworker", "participant", "respondent", "expert",
        "moderator", "person", "prolific", "subject", "rated", "voter", "scorer", "tester",
    )),
    *(f"{done}by" for done in (
        "rated", "evaluated", "judged", "annotated", "labeled", "labelled", "reviewed", "scored", "graded", "assessed",
        "ranked", "voted", "answered", "checked", "compared", "submitted", "created",
    )),
)  # fmt: skip
CHOICES = (
    "choice", "vote", "winner", "preference", "preferred", "better", "best", "verdict", "judgment", "judgement",
    "selected", "selection", "decision", "humanpreference", "label",
)  # fmt: skip
RATINGS = ("rating", "score", "stars", "grade", "overallscore", "humanscore", "helpfulness", "quality", "label")
STRENGTHS = ("strength", "preferencestrength", "degree")
COMMENTS = ("comment", "comments", "notes", "note", "reason", "reasoning", "rationale", "explanation", "justification")
SECONDS = ("seconds", "leadtime", "timespent", "durationseconds", "duration")
GOOD = (
    "good",
    "yes",
    "accept",
    "accepted",
    "positive",
    "pass",
    "correct",
    "helpful",
    "thumbsup",
    "up",
    "like",
    "true",
    "acceptable",
)
BAD = (
    "bad",
    "no",
    "reject",
    "rejected",
    "negative",
    "fail",
    "incorrect",
    "unhelpful",
    "thumbsdown",
    "down",
    "dislike",
    "false",
    "unacceptable",
)
Said = int | Literal["tie", "both bad"]
_STRENGTH_WORDS = {
    **dict.fromkeys(("slightly", "somewhat", "a bit", "a little", "marginally"), 1),
    **dict.fromkeys(("", "clearly", "moderately"), 2),
    **dict.fromkeys(("much", "far", "significantly", "strongly", "a lot", "way"), 3),
}
_BETTER = re.compile(
    r"(?P<who>.+?) (?:is|was) (?:the )?(?P<how>slightly|somewhat|a bit|a little|marginally|clearly|moderately|much|far"
    r"|significantly|strongly|a lot|way|) ?(?:better|preferred|best)(?: (?:than|response|answer|one).*)?\s*[.!]?",
    re.IGNORECASE | re.DOTALL,
)
_STARS = re.compile(r"\s*([★⭐✭✩☆\ufe0f]+)\s*")


class UnknownWord(BadRow):
    """A word of a file whose meaning is to be given with --labels; all of them are named together."""

    def __init__(self, word: str, about: str, meanings: str, unlike: str) -> None:
        self.word, self.about, self.meanings, self.unlike = word, about, meanings, unlike
        super().__init__(words_fix([self]))


def words_fix(words: Sequence[UnknownWord]) -> str:
    """What is to be said about all words of one kind, in one option."""
    first = words[0]
    shown = dict.fromkeys(word.word for word in words)
    labels = ",".join(f"{word}=MEANING" for word in shown)
    return (
        f"{first.about} {', '.join(map(ascii, shown))[:400]} {first.unlike}; say what each means with "
        f"--labels={shlex.quote(labels)} (MEANING: {first.meanings})"
    )


class Who(NamedTuple):
    """Who voted, and what stands beside the vote. A labeler without a name is None."""

    labeler: str | None
    comment: str = ""
    seconds: float | None = None
    flags: tuple[str, ...] = ()


def labeler_of(value: Any) -> str | None:
    """A labeler's name as it is given; a number becomes a text, of an account its address or else its number."""
    if isinstance(value, Mapping):
        names = (value.get(key) for key in ("email", "username", "name", "id"))
        return labeler_of(next((name for name in names if name not in (None, "")), None))
    if value is None or isinstance(value, bool | list) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a table makes of a number if other rows have none
    return str(value).strip() or None


def seconds_of(value: Any) -> float | None:
    """A duration in seconds; None where it is none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


# --- which answer --------------------------------------------------------------------------------------------------


def said_of(value: Any, task: ShownTask, options: ImportOptions) -> Said:
    """Which of a task's answers a word or number means, from 0; or that none is better.

    Raises:
        BadRow: it is none of them; PassedOver: the labeler skipped.
    """
    given, value = value, meaning(value, options)
    word = plain(value)
    if value in (None, "") or word in SKIPS:
        raise PassedOver("the labeler skipped it")
    if word in BAD_TIES:
        return "both bad"
    if word in TIES:
        return "tie"
    if (number := choice_number(value)) is not None:
        return place_of(number, task, options, meaning(given, ImportOptions()) != value)
    found = [place for place, answer in enumerate(task.answers) if word in _names(answer)]
    if len(found) != 1:
        found = [place for place in [_by_ending(ending(word), task.answers)] if place is not None]
    if len(found) == 1:
        return found[0]
    sides = ", ".join(SIDES[: len(task.answers)])
    keys = ", ".join(answer.key for answer in task.answers)
    raise UnknownWord(str(value), "the choice", f"{sides}, tie, both bad or skip", f"is none of {keys} or tie")


def meaning(value: Any, options: ImportOptions) -> Any:
    """A label without its list, in the word that the user gave for it; a number that is whole without its point."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value.strip() if isinstance(value, str) else str(value)
    whole = re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)
    for word in (text, whole):
        if word in options.labels:
            return options.labels[word]
    return whole if isinstance(value, str) else value


def _names(answer: ShownAnswer) -> set[str]:
    return {plain(name) for name in (answer.key, answer.model, answer.text) if name} - {""}


def _by_ending(end: str, answers: Sequence[ShownAnswer]) -> int | None:
    """The place of the answer that `b`, `right`, `second` or `2` names."""
    ends = [ending(answer.key) for answer in answers]
    if end in ends and end:
        return ends.index(end)
    words = ({"left": 0, "first": 0, "one": 0, "right": 1, "second": 1, "two": 1, "third": 2}).get(end)
    place = words if words is not None else ord(end) - ord("a") if len(end) == 1 else None
    return place if place is not None and 0 <= place < len(answers) else None


# --- entries -------------------------------------------------------------------------------------------------------


def judged(
    task: ShownTask, value: Any, who: Who, options: ImportOptions, strength: int | None = None, metadata: Any = None
) -> Read:
    """The entries of a choice among two answers or more, or of a word for one answer (good, bad, 1 to 7)."""
    if len(task.answers) == 1:
        return scored(task, value, who, options, metadata=metadata)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    better = _BETTER.fullmatch(value.strip()) if isinstance(value, str) and str(value) not in options.labels else None
    if better:
        value, strength = better["who"], strength or _STRENGTH_WORDS[better["how"].lower()]
        strength = None if strength == 2 and not better["how"] else strength
    arrows = re.fullmatch(r"\[*([A-Z])(>{1,2}|=|<{1,2})([A-Z])\]*", value.strip()) if isinstance(value, str) else None
    if arrows:
        value = "tie" if arrows[2] == "=" else arrows[1] if arrows[2][0] == ">" else arrows[3]
        strength = {"=": None, ">": 1, "<": 1}.get(arrows[2], 3)
    said = said_of(value, task, options)
    places = range(len(task.answers))
    if said in ("tie", "both bad"):
        flags = (*who.flags, BOTH_BAD) if said == "both bad" else who.flags
        return ranked(task, [1 for _ in places], who._replace(flags=flags), metadata)
    if len(task.answers) == 2:
        return [pair(task, "first" if said == 0 else "second", who, strength, metadata)]
    return against(task, [int(said)], [place for place in places if place != said], who, metadata)


def pair(
    task: ShownTask,
    choice: Literal["first", "second", "tie"],
    who: Who,
    strength: int | None = None,
    metadata: Any = None,
) -> Entry:
    """A vote on two answers."""
    strength = None if choice == "tie" else strength
    return Entry(
        "pair", task.prompt, _completions(task.answers), [_answer(who, choice) | {"strength": strength}], 1, metadata
    )


def ranked(task: ShownTask, ranks: Sequence[float], who: Who, metadata: Any = None) -> Read:
    """A ranking, 1 the best; two answers are a pair."""
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) and math.isfinite(rank) for rank in ranks):
        raise BadRow(f"the ranks {list(ranks)} must be numbers (1 is the best)")
    if len(ranks) != len(task.answers):
        raise BadRow(f"{len(ranks)} ranks of {len(task.answers)} answers")
    if len(ranks) == 2:
        choice: Literal["first", "second", "tie"] = (
            "first" if ranks[0] < ranks[1] else "second" if ranks[1] < ranks[0] else "tie"
        )
        return [pair(task, choice, who, None, metadata)]
    answer = _answer(who, "ranked") | {"ranks": list(dense(ranks))}  # type: ignore[arg-type]
    return [Entry("rank", task.prompt, _completions(task.answers), [answer], 1, metadata)]


def against(task: ShownTask, better: Iterable[int], worse: Iterable[int], who: Who, metadata: Any = None) -> Read:
    """A pair of each better answer with each worse one: among the others nobody judged."""
    worse = list(worse)
    return [
        pair(task._replace(answers=tuple(task.answers[place] for place in sorted((good, bad)))),
             "first" if good < bad else "second", who, None, metadata)
        for good in better
        for bad in worse
    ]  # fmt: skip


def preferred(
    prompt: list[dict[str, str]],
    chosen: ShownAnswer,
    rejected: ShownAnswer,
    who: Who,
    strength: int | None = None,
    metadata: Any = None,
) -> Entry:
    """A pair of a chosen and a rejected answer.

    Which of them stands first is drawn from the texts: were it always the chosen one, `first` would say what won.
    """
    if chosen.text == rejected.text:
        raise BadRow("'chosen' and 'rejected' are the same")
    sides = sorted((chosen, rejected), key=lambda answer: short_digest(answer.text))
    return pair(
        ShownTask(prompt, tuple(sides)),
        "first" if sides[0] == chosen else "second",
        who,
        strength,
        metadata,
    )


def scored(
    task: ShownTask,
    value: Any,
    who: Who,
    options: ImportOptions,
    scale: tuple[float, float] | None = None,
    metadata: Any = None,
) -> Read:
    """The score of one answer, on the scale of its source, with its place on 1 to 7."""
    given, limits = number_of(meaning(value, options), options.scale or scale)
    if options.worst_high and limits is not None:
        given = limits[0] + limits[1] - given  # the best is the highest of what is kept
    answer = _answer(who, "scored")
    if limits is None:
        answer |= {"score": int(given)}
    else:
        low, high = limits
        answer |= {"score": 1 + math.floor(6 * (given - low) / (high - low) + 0.5), "given": given}
        metadata = (metadata or {}) | {"scale": [low, high]}
    return [Entry("single", task.prompt, _completions(task.answers), [answer], 1, metadata)]


def number_of(value: Any, scale: tuple[float, float] | None) -> tuple[float, tuple[float, float] | None]:
    """A rating and its scale, None for whole numbers from 1 to 7. `80%`, `4/5`, good and bad have scales of their own.

    Raises:
        BadRow: it is no number, or not on its scale; PassedOver: there is none.
    """
    if value in (None, "") or plain(value) in SKIPS:
        raise PassedOver("the labeler skipped it")
    if isinstance(value, bool):
        value, scale = float(value), (0.0, 1.0)
    if isinstance(value, str):
        if fraction := re.fullmatch(r"\s*([\d.]+)\s*(%|/\s*([\d.]+))\s*", value):
            value, scale = fraction[1], (0.0, float(fraction[3] or 100))
        elif (stars := _STARS.fullmatch(value)) and re.search("[★⭐✭]", value):
            shown = stars[1].replace("\ufe0f", "")
            value, scale = sum(star in "★⭐✭" for star in shown), scale or (1.0, 5.0 if len(shown) <= 5 else 10.0)
        elif plain(value) in (*GOOD, *BAD):
            value, scale = float(plain(value) in GOOD), (0.0, 1.0)
        elif re.fullmatch(r"\s*-?\d+,\d\d?\s*", value):  # a decimal comma; with three digits it may part thousands
            value = value.replace(",", ".")
    try:
        given = float(value)
    except (TypeError, ValueError):
        given = math.nan
    if not math.isfinite(given):
        if isinstance(value, str) and _DATE.fullmatch(value.strip()):
            raise BadRow(
                f"the rating {value!a} is a date, as spreadsheets make of numbers such as 4.5; write the number "
                "that was meant"
            )
        raise UnknownWord(str(value), "the rating", "a number of the scale, or skip", "is no number")
    if scale is None:
        if given not in range(1, 8):
            raise BadRow(
                f"the rating {given:g} is no whole number from 1 to 7; name the scale with --scale LOW..HIGH, as 0..100"
            )
        return given, None
    if not scale[0] <= given <= scale[1]:
        raise BadRow(f"the rating {given:g} is not on the scale {scale[0]:g} to {scale[1]:g}; see --scale LOW..HIGH")
    return given, None if scale == (1, 7) and given.is_integer() else scale


_MONTH = "jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz]"
_DATE = re.compile(
    rf"\d{{1,2}}[.\-/ ]+({_MONTH})\w*\.?([\-/ ]\d{{2,4}})?|({_MONTH})\w*[.\-/ ]+\d{{1,4}}"
    r"|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}",
    re.I,
)


def _completions(answers: Sequence[ShownAnswer]) -> tuple[Completion, ...]:
    return tuple(Completion(answer.text, model=answer.model) for answer in answers)


def _answer(who: Who, choice: str) -> dict[str, Any]:
    beside = {"comment": who.comment, "seconds": who.seconds, "flags": list(who.flags)}
    return {"labeler": who.labeler, "choice": choice} | beside
