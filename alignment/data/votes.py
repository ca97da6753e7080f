"""Rows in which somebody chose one of two answers: votes, arenas, strengths, two scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.data.chats import with_system
from alignment.data.importers import PassedOver
from alignment.data.keys import is_empty
from alignment.data.messages import Turns, check_text, holds_turns, list_of, parsed, text_of, turns_in
from alignment.data.preferences import Choice, choice_number, labeler_of, number_of, split_sides
from alignment.data.questions import prompt_of
from alignment.data.row_files import BadRow
from alignment.templates.rendering import Message

TIES = (
    "tie", "tied", "draw", "equal", "same", "both", "bothgood", "equallygood", "aboutthesame", "nopreference",
    "tiebothgood", "neither",
)  # fmt: skip
BAD_TIES = ("bothbad", "tiebothbad", "botharebad", "bothpoor", "neithergood", "allbad")
SKIPS = ("skip", "skipped", "ignore", "unsure", "dontknow", "cannottell", "canttell", "notapplicable", "na")
_STEMS = ("", "model", "response", "answer", "output", "completion")
_WINNERS: dict[str, Choice] = {
    **dict.fromkeys(("first", "left", *(stem + end for stem in _STEMS for end in "a1")), "first"),
    **dict.fromkeys(("second", "right", *(stem + end for stem in _STEMS for end in "b2")), "second"),
    **dict.fromkeys((*TIES, *BAD_TIES), "tie"),
}
"""What words mean, in lower case and without signs, as those of TIES, BAD_TIES and SKIPS are."""


class VotedPair(NamedTuple):
    """Two answers and one vote. `strength` is 1 (slightly) to 3 (much better), None if not asked."""

    prompt: Turns
    first: str
    second: str
    choice: Choice
    strength: int | None = None
    labeler: str | None = None
    scores: tuple[float, float] | None = None


_REFUSED = ("rejected", "expired", "returned", "abandoned", "skipped")
ASSIGNMENTS = ("assignmentstatus", "assignmentid", "hitid", "approve", "reject", "approvaltime", "rejectiontime")
"""Keys of MTurk and Toloka that say whether the requester accepted the work, without case and signs."""


def check_accepted(row: Mapping[str, Any]) -> None:
    """Raise PassedOver for an assignment of MTurk or Toloka that was refused, or never handed in."""
    found = {re.sub(r"[\W_]+", "", str(key).lower()): str(row[key] or "").strip().lower() for key in row}
    is_assignment = any(name in found for name in ("assignmentstatus", "assignmentid", "hitid"))
    marks = [found.get(name, "") for name in ("reject", "rejectiontime")] if is_assignment else []
    if found.get("assignmentstatus") in _REFUSED or any(mark not in ("", "nan", "0", "no", "false") for mark in marks):
        raise PassedOver("the assignment was rejected or has expired, so its answer is no vote")


def voted(row: Mapping[str, Any]) -> VotedPair:
    """Two answers and who won, as people and arenas write it."""
    check_accepted(row)
    sides = [_side_of_vote(row, key) for key in ("first", "second")]
    prompt, first, second = split_sides(row, _prompt_of_vote(row, *sides), *sides)
    return VotedPair(prompt, first, second, _winner(row), None, labeler_of(row))


def _models(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the models whose answers stand first and second, where the row has both."""
    names = row.get("model_a"), row.get("model_b")
    return (names[0], names[1]) if isinstance(names[0], str) and isinstance(names[1], str) else None


def _side_of_vote(row: Mapping[str, Any], key: str) -> Turns:
    value = row[key]
    if isinstance(value, str) and holds_turns(parsed(value)):
        value = parsed(value)
    texts, asked = parsed(value), parsed(row["prompt"])
    if "winner_model_b" in row and isinstance(texts, list) and isinstance(asked, list):
        value = texts
        if len(value) != len(asked) or not value:  # a text for each turn, as in Arena's votes
            raise BadRow(f"'{key}' has {len(value)} texts for the {len(asked)} of the prompt")
        return turns_in([text for both in zip(asked, value, strict=True) for text in both], key)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return turns_in(value, key)
    return (Message(role="assistant", content=check_text(value, f"'{key}'")),)


def _prompt_of_vote(row: Mapping[str, Any], *sides: Turns) -> Turns:
    return () if all(side[0]["role"] in ("user", "system") for side in sides) else prompt_of(row)


def _winner(row: Mapping[str, Any]) -> Choice:
    if "winner_model_b" in row:
        won = [
            key
            for key in ("choice", "winner_model_b", "winner_tie")
            if str(row.get(key)).lower() in ("1", "1.0", "true")
        ]
        if len(won) != 1:
            raise BadRow("one of 'winner_model_a', 'winner_model_b' and 'winner_tie' must be 1")
        return {"choice": "first", "winner_model_b": "second", "winner_tie": "tie"}[won[0]]  # type: ignore[return-value]
    return winner_of(row["choice"], _models(row))


class UncertainChoice(BadRow):
    """A number says who won, and which answer it means is not certain: no number of its file is, so reading stops."""


def winner_of(value: Any, models: tuple[str, str] | None = None) -> Choice:
    """Who won, in words; of numbers 1 and 2 are read.

    Args:
        models: the names of the models whose answers are the first and the second; one of them may have won by name.

    Raises:
        UncertainChoice: another number; PassedOver: the labeler skipped; BadRow: another word.
    """
    number = choice_number(value)
    text = number or re.sub(r"[\W_]+", "", str(value).lower())
    if models and models[0] != models[1] and value in models:
        return "first" if value == models[0] else "second"
    if is_empty(value) or text in SKIPS:
        raise PassedOver("the labeler skipped it")
    if number not in (None, "1", "2"):
        fraction = re.fullmatch(r"1[.,]\d+", number)
        raise UncertainChoice(
            f"who won is {value!r}{' (between the two answers)' * bool(fraction)}, and of numbers 1 (the first) and 2 "
            "alone are certain: 0 and 1, -1 and 1 and scales have several readings; `alignment rate import --db "
            "ratings.db FILE` looks at all numbers of the file, and reads it or says what to give; or write a, b, tie"
        )
    if isinstance(value, bool) or text not in _WINNERS:
        raise BadRow(
            f"who won is {value!r}; expected a, b, 1, 2, model_a, model_b, tie{_or_model(models)}; `alignment "
            "rate import --db ratings.db FILE` reads words such as 'A is much better', and others with --labels"
        )
    return _WINNERS[text]


def _or_model(models: tuple[str, str] | None) -> str:
    return f" or one of the models {models[0]} and {models[1]}" if models else " (or a name in model_a or model_b)"


def arena(row: Mapping[str, Any]) -> VotedPair:
    """Two conversations and who won. `turn` says how many exchanges were judged (MT-bench's first, or all)."""
    sides = [turns_in(list_of(row, key), key) for key in ("conversation_a", "conversation_b")]
    turn = row.get("turn")
    if isinstance(turn, int | float) and not isinstance(turn, bool) and turn >= 1:
        sides = [_first_exchanges(side, int(turn)) for side in sides]
    prompt, first, second = split_sides(row, (), *sides)
    return VotedPair(prompt, first, second, winner_of(row["winner"], _models(row)), None, labeler_of(row))


def _first_exchanges(turns: Turns, count: int) -> Turns:
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    return turns[: answers[count - 1] + 1] if len(answers) > count else turns


def strength(row: Mapping[str, Any]) -> VotedPair:
    """Two answers with a strength from -3 (the first is much better) over 0 (a tie) to 3."""
    key = "preference_strength"
    value = number_of(row[key], f"'{key}'")
    if value != int(value) or abs(value) > 3:
        raise BadRow(f"'{key}' is {value:g}; expected -3 (the first is much better) to 3 (the second), 0 a tie")
    choice: Choice = "first" if value < 0 else "second" if value > 0 else "tie"
    first, second = (check_text(row[side], f"'{side}'") for side in ("first", "second"))
    return VotedPair(prompt_of(row), first, second, choice, int(abs(value)) or None, labeler_of(row))


def two_scores(row: Mapping[str, Any]) -> VotedPair:
    """WebGPT's two answers with a score each; equal ones are a tie."""
    scores = [number_of(row[key], f"'{key}'") for key in ("score_0", "score_1")]
    first, second = (check_text(row[key], f"'{key}'") for key in ("answer_0", "answer_1"))
    choice: Choice = "first" if scores[0] > scores[1] else "second" if scores[0] < scores[1] else "tie"
    prompt = prompt_of({**row, "prompt": row["question"]})
    return VotedPair(prompt, first, second, choice, scores=(scores[0], scores[1]))


def zero_or_one(row: Mapping[str, Any], key: str) -> bool:
    """A choice that is written as 0 or 1: whether it is 1."""
    value = number_of(row[key], f"'{key}'")
    if value not in (0, 1):
        raise BadRow(f"'{key}' is {value:g}; expected 0 or 1 (the answer of this number)")
    return value == 1


def safety(row: Mapping[str, Any]) -> VotedPair:
    """A row of PKU-SafeRLHF, or another whose answers are named 0 and 1: which of them is better."""
    check_accepted(row)
    sides = [_side_of_vote(row, key) for key in ("response_0", "response_1")]
    prompt, first, second = split_sides(row, _prompt_of_vote(row, *sides), *sides)
    value = row["better_response_id"]
    if is_empty(value):
        raise PassedOver("the labeler skipped it")
    named = re.fullmatch(r"(?:response|answer|output|completion)_?([01])", str(value).strip().lower())
    if named:
        choice: Choice = "second" if named[1] == "1" else "first"
    elif choice_number(value) is not None or isinstance(value, bool):
        if number_of(value, "'better_response_id'") not in (0, 1):
            raise UncertainChoice(
                f"'better_response_id' is {value} beside answers named 0 and 1, so no number of this file is certain; "
                "`alignment rate import --db ratings.db FILE` looks at all of them and reads it or says what to give; "
                "or write a, b and tie"
            )
        choice = "second" if zero_or_one(row, "better_response_id") else "first"
    else:
        choice = winner_of(value, _models(row))
    return VotedPair(prompt, first, second, choice, None, labeler_of(row))


def reddit(row: Mapping[str, Any]) -> VotedPair:
    """A row of SHP: a post and two comments; `labels` is 1 where the first is better."""
    first, second = (check_text(row[key], f"'{key}'") for key in ("human_ref_A", "human_ref_B"))
    prompt = with_system(row, (Message(role="user", content=text_of(row, "history")),))
    return VotedPair(prompt, first, second, "first" if zero_or_one(row, "labels") else "second")
