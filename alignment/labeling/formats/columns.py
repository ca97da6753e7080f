"""Any table of votes: a row for each vote, with columns that are told by their names or named by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.data import formats
from alignment.data.annotations import parsed
from alignment.data.importers import PassedOver
from alignment.data.marks import marks_in
from alignment.data.preferences import are_places, choice_number
from alignment.data.row_files import BadRow
from alignment.data.votes import ASSIGNMENTS, check_accepted
from alignment.labeling.entries import plain_turns
from alignment.labeling.formats.fields import (
    LISTS,
    PROMPTS,
    SINGLES,
    ShownAnswer,
    ShownTask,
    answer_of,
    ending,
    filled,
    first_key,
    named_key,
    plain,
    prompt_of,
    slot_keys,
    task_of,
    turns_of,
)
from alignment.labeling.formats.reading import SIDES, ImportOptions, Read, Row
from alignment.labeling.formats.vote_checks import HEEDED, check_direction, check_header, check_unmarked
from alignment.labeling.formats.voting import (
    CHOICES,
    COMMENTS,
    LABELERS,
    RATINGS,
    SECONDS,
    STRENGTHS,
    Who,
    against,
    judged,
    labeler_of,
    meaning,
    preferred,
    ranked,
    said_of,
    scored,
    seconds_of,
)

DROPS = "columns that are not named in --columns and whose names say nothing (they are listed as not used)"
_WORST = ("worst", "leastpreferred")
_RANKS = ("ranks", "ranking", "rank")
_SCORES = ("scores", "ratings")
_RATER = re.compile(r"(?:rater|annotator|labell?er|judge|worker|evaluator|reviewer)(\d+)")
_SAID_BESIDE = ("vote", "choice", "preference", "rating", "score", "label")
_VOTES = ("votes", "judgments", "judgements", "annotations", "labels", "preferences")


def recognises_votes(row: Row) -> bool:
    """Whether the names of the columns tell a prompt, its answers and what was said of them."""
    if {"chosen", "rejected"} <= row.keys():
        return True
    prompt = first_key(row, PROMPTS)
    rest = {key: value for key, value in row.items() if key != prompt}
    if prompt is None:
        return False
    said = (*CHOICES, *_RANKS, *_SCORES)
    if slots := slot_keys(rest):
        return bool(first_key(rest, said) or _rater_columns(rest) or _votes_key(rest) or _side_ratings(rest, slots))
    listed = first_key(rest, LISTS, lambda value: isinstance(parsed(value), list))
    if listed:
        return bool(first_key(rest, said) or _rater_columns(rest) or _votes_key(rest) or _inner(parsed(rest[listed])))
    return first_key(rest, SINGLES) is not None and bool(first_key(rest, RATINGS) or _rater_columns(rest))


def read_votes(row: Row, options: ImportOptions) -> Read:
    check_accepted(row)
    check_header(row)
    check_unmarked(row, _said_keys(row, options), options)
    if votes := _votes_key(row):
        return _each_vote(row, votes, options)
    if raters := _raters(row, options):
        return _each_rater(row, raters, options)
    who = _who(row, options)
    chosen = options.key("chosen", row) or ("chosen" if "chosen" in row and "a" not in options.columns else None)
    if chosen:
        return [_chosen(row, chosen, options.key("rejected", row) or "rejected", who, options)]
    said = {key: row[key] for key in row if key not in _said_keys(row, options)}
    task = task_of(said, options)
    if ranks := named_key(row, "ranks", _RANKS, options):
        return ranked(task, _list(row[ranks], ranks), who)
    if (scores := named_key(row, "scores", _SCORES, options)) and len(task.answers) > 1:
        return ranked(task, [-number for number in _list(row[scores], scores)], who)
    if len(task.answers) > 1:
        choice = named_key(row, "choice", CHOICES, options)
        if choice is None and (found := _beside(row, task, who, options)) is not None:
            return found
        if choice is None:
            raise BadRow(f"no choice among the keys {', '.join(map(str, row))}; name it with --columns choice=KEY")
        _check_best(row, choice, task, options)
        if plain(choice) == "best" and (worst := first_key(row, _WORST, filled)):
            return _best_and_worst(task, row[choice], row[worst], who, options)
        return judged(task, row[choice], who, options, _strength(row, options))
    rating = named_key(row, "rating", RATINGS, options) or named_key(row, "choice", CHOICES, options)
    if rating is None:
        raise BadRow(f"no rating among the keys {', '.join(map(str, row))}; name it with --columns rating=KEY")
    check_direction(rating, options)
    return scored(task, row[rating], who, options)


def _best_and_worst(task: ShownTask, best: Any, worst: Any, who: Who, options: ImportOptions) -> Read:
    """The pairs that a best and a worst answer decide; the answers between them were not compared."""
    places = said_of(best, task, options), said_of(worst, task, options)
    if not all(isinstance(place, int) for place in places) or places[0] == places[1]:
        raise BadRow(f"the best answer is {best!a} and the worst {worst!a}; expected two of the answers")
    first, last = int(places[0]), int(places[1])
    others = [place for place in range(len(task.answers)) if place != first]
    return [
        *against(task, [first], others, who),
        *against(task, [place for place in others if place != last], [last], who),
    ]


def _check_best(row: Row, choice: str, task: ShownTask, options: ImportOptions) -> None:
    """Refuse `best` as a place in a list or beside `worst`: people count it from 0 and from 1."""
    worst = first_key(row, _WORST, lambda value: choice_number(value) is not None)
    is_place = worst is not None or all(answer.key.isdigit() for answer in task.answers)
    if plain(choice) == "best" and is_place and (number := choice_number(meaning(row[choice], options))) is not None:
        from_1, from_0 = (
            ",".join(f"{place}={side}" for place, side in enumerate(SIDES[: len(task.answers)], start))
            for start in (1, 0)
        )
        raise BadRow(
            f"'{choice}' is {number}, a place that is counted from 0 or from 1; say which with --labels='{from_1}' or "
            f"--labels='{from_0}'"
        )


def _beside(row: Row, task: ShownTask, who: Who, options: ImportOptions) -> Read | None:
    """Ratings of each answer, in columns beside theirs or inside the answers; None if there are none."""
    ratings = _side_ratings(row, [answer.key for answer in task.answers])
    if ratings:
        single = ((task._replace(answers=(answer,)), row[ratings[answer.key]]) for answer in task.answers)
        return [part for one, value in single for part in scored(one, value, who, options)]
    listed = options.key("completions", row) or first_key(row, LISTS, lambda value: isinstance(parsed(value), list))
    inner = _inner(parsed(row[listed])) if listed else None
    return None if inner is None else ranked(task, inner, who)


def _side_ratings(row: Row, answers: Sequence[str]) -> dict[str, str]:
    """The key of each answer's rating, as `rating_a` beside `response_a`; {} unless each has one."""
    names = {answer: ending(answer) for answer in answers}
    found = {
        answer: first_key(row, [name + end for name in RATINGS] + [end + name for name in RATINGS])
        for answer, end in names.items()
        if end
    }
    each = {answer: key for answer, key in found.items() if key}
    return each if len(each) == len(answers) else {}


def _inner(answers: Any) -> list[float] | None:
    """Ranks from numbers that stand inside the answers: their ranks, or scores, of which the highest is the best."""
    if not isinstance(answers, list) or not all(isinstance(each, Mapping) for each in answers):
        return None
    for name, sign in (("rank", 1), ("overall_score", -1), ("score", -1), ("rating", -1)):
        values = [each.get(name) for each in answers]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return [sign * value for value in values if value is not None]
    return None


def _votes_key(row: Row) -> str | None:
    """The key that holds a vote for each labeler: a list of objects with names, or (in `votes`) a choice by name."""

    def holds(value: Any) -> bool:
        value = parsed(value)
        is_list = isinstance(value, list) and bool(value)
        return is_list and all(isinstance(each, Mapping) and first_key(each, LABELERS) for each in value)

    by_name = first_key(row, ("votes",), lambda value: isinstance(parsed(value), Mapping) and bool(parsed(value)))
    return by_name or first_key(row, _VOTES, holds)


def _each_vote(row: Row, key: str, options: ImportOptions) -> Read:
    """The votes that stand in one row, each as if it had a row of its own."""
    value, rest = parsed(row[key]), {name: row[name] for name in row if name != key}
    if isinstance(value, Mapping):
        said = {name: vote if isinstance(vote, Mapping) else {"choice": vote} for name, vote in value.items()}
        value = [{"labeler": name, **vote} for name, vote in said.items()]
    read: Read = []
    for vote in value:
        try:
            read += read_votes({**rest, **vote}, options)
        except PassedOver as reason:
            read.append(reason)
    return read


def _rater_columns(row: Row) -> dict[str, str | None]:
    """The columns of several raters, `rater1`, `rater_2`: each with the column of what it said, where it names one."""
    found = {key: match[1] for key in row if (match := _RATER.fullmatch(plain(key)))}
    return {key: first_key(row, [name + number for name in _SAID_BESIDE]) for key, number in found.items()}


def _raters(row: Row, options: ImportOptions) -> dict[str, str | None]:
    """As `_rater_columns`, where no other column was named as the vote or the labeler."""
    named = {"choice", "rating", "labeler", "ranks", "scores", "chosen"} & options.columns.keys()
    return {} if named or "chosen" in row else _rater_columns(row)


def _each_rater(row: Row, raters: Mapping[str, str | None], options: ImportOptions) -> Read:
    """A vote for each rater's column, by the rater's name or else by the column's."""
    rest = {key: row[key] for key in row if key not in raters and key not in raters.values()}
    said = [
        {"labeler": row[rater] if beside else rater, "choice": row[beside or rater]}
        for rater, beside in raters.items()
        if filled(row[beside or rater])
    ]
    if not said:
        raise PassedOver("no rater said anything")
    return _each_vote({**rest, "votes": said}, "votes", options)


def used_by_votes(row: Row, options: ImportOptions) -> set[str]:
    """The keys of a row that `read_votes` reads."""
    said = _said_keys(row, options)
    said |= {votes} if (votes := _votes_key(row)) else set()
    raters = _raters(row, options)
    said |= {*raters, *(beside for beside in raters.values() if beside)}
    said |= {worst} if (worst := first_key(row, _WORST)) and first_key(row, ("best",)) else set()
    said |= {key for key in row if plain(key) in ASSIGNMENTS}
    said |= {
        each.column for each in marks_in(row, [key for key in row if key != "rejected"]) if each.mark.effect in HEEDED
    }
    if {"chosen", "rejected"} <= row.keys():
        prompt = prompt_of(row, options)[1] if named_key(row, "prompt", PROMPTS, options) else set()
        listed = _places(row, "chosen", "rejected", options)
        return said | prompt | {"chosen", "rejected", "chosen_model", "rejected_model", *([listed] if listed else ())}
    said |= set(_side_ratings(row, slot_keys(row)).values())
    task = task_of({key: row[key] for key in row if key not in said}, options)
    return said | task.used | set(options.columns.values())


def _said_keys(row: Row, options: ImportOptions) -> set[str]:
    """The keys that hold what was said, and who said it: none of them is a prompt or an answer."""
    roles = {
        "choice": CHOICES, "strength": STRENGTHS, "rating": RATINGS, "ranks": _RANKS, "scores": _SCORES,
        "labeler": LABELERS, "comment": COMMENTS, "seconds": SECONDS,
    }  # fmt: skip
    return {key for role, names in roles.items() if (key := named_key(row, role, names, options))}


def _who(row: Row, options: ImportOptions) -> Who:
    found = {
        role: row[key]
        for role, names in {"labeler": LABELERS, "comment": COMMENTS, "seconds": SECONDS}.items()
        if (key := named_key(row, role, names, options)) and filled(row[key])
    }
    seconds = found.get("seconds")
    if seconds is not None and seconds_of(seconds) is None:
        raise BadRow(f"the seconds {seconds!a} are no number of 0 or more")
    return Who(labeler_of(found.get("labeler")), str(found.get("comment", "")), seconds_of(seconds))


def _strength(row: Row, options: ImportOptions) -> int | None:
    key = named_key(row, "strength", STRENGTHS, options)
    if key is None or not filled(row[key]):
        return None
    words = {"1": 1, "2": 2, "3": 3, "1.0": 1, "2.0": 2, "3.0": 3}
    text = str(row[key]).strip()
    strength = words.get(options.labels.get(text, text))
    if strength is None:
        raise BadRow(f"the strength {row[key]!a} is not 1 (slightly), 2 or 3 (much better); see --labels WORD=2")
    return strength


def _list(value: Any, name: str) -> list[float]:
    value = parsed(value)
    if not isinstance(value, list) or not all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value
    ):
        raise BadRow(f"'{name}' must be a list of numbers, found {value!a}"[:200])
    return value


def _chosen(row: Row, chosen: str, rejected: str, who: Who, options: ImportOptions) -> Any:
    if rejected not in row:
        raise BadRow(f"no key '{rejected}' beside '{chosen}'; name it with --columns rejected=KEY")
    if listed := _places(row, chosen, rejected, options):
        row = {**row, **_at_places(row, chosen, rejected, listed)}
    prompt = options.key("prompt", row) or first_key(row, PROMPTS, filled)
    strength = _strength(row, options)
    if prompt is None:
        turns, better, worse = formats.pair_of({"chosen": parsed(row[chosen]), "rejected": parsed(row[rejected])})
        return preferred(plain_turns(turns), ShownAnswer(chosen, better), ShownAnswer(rejected, worse), who, strength)
    turns_before, _ = prompt_of(row, options)
    good, bad = (_side(row[key], key, turns_before, row.get(f"{key}_model")) for key in (chosen, rejected))
    return preferred(turns_before, good, bad, who, strength)


def _places(row: Row, chosen: str, rejected: str, options: ImportOptions) -> str | None:
    """The key of the list of answers in which `chosen` and `rejected` are places; None where they are answers.

    Raises:
        BadRow: they are numbers beside answers in columns.
    """
    numbers = [choice_number(row.get(key)) for key in (chosen, rejected)]
    listed = options.key("completions", row) or first_key(row, LISTS, lambda value: isinstance(parsed(value), list))
    if listed is not None:
        return listed if are_places((row.get(chosen), row.get(rejected)), parsed(row[listed])) else None
    if all(numbers) and slot_keys({key: row[key] for key in row if key not in (chosen, rejected)}):
        raise BadRow(
            f"'{chosen}' is {row[chosen]} and '{rejected}' is {row[rejected]} beside the answers; write the answers "
            f"themselves there"
        )
    return None


def _at_places(row: Row, chosen: str, rejected: str, listed: str) -> dict[str, Any]:
    """The answers that two places mean. One of them must be 0: otherwise they may be counted from 1."""
    answers, said = parsed(row[listed]), [choice_number(row[key]) for key in (chosen, rejected)]
    places = {name: place for place, name in enumerate(map(str, range(len(answers))))}
    if "0" not in said or not all(name in places for name in said) or any(each in said for each in map(str, answers)):
        raise BadRow(
            f"'{chosen}' is {str(row[chosen])[:40]} and '{rejected}' is {str(row[rejected])[:40]} beside "
            f"{len(answers)} '{listed}', and it is not certain which answers they mean; write the answers there"
        )
    return {key: answers[places[str(name)]] for key, name in zip((chosen, rejected), said, strict=True)}


def _side(value: Any, key: str, prompt: list[dict[str, str]], model: Any) -> ShownAnswer:
    """An answer, without the prompt where it repeats it."""
    value = parsed(value)
    if isinstance(value, list) and len(value) == len(prompt) + 1:
        if turns_of(value[:-1], key) != prompt:
            raise BadRow(f"'{key}' does not begin with the prompt")
        value = value[-1:]
    answer = answer_of(value, key)
    return answer._replace(model=model) if isinstance(model, str) and model else answer
