"""Files that others train on: TRL's and OpenAI's preferences, and HelpSteer. A row is a vote, in HelpSteer 3 a pair."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from alignment.data.messages import LongAnswer
from alignment.data.preferences import openai_pair
from alignment.data.row_files import BadRow
from alignment.labeling.entries import Rows, Stored, plain_turns
from alignment.labeling.formats.columns import read_votes
from alignment.labeling.formats.exchanged import read_hh
from alignment.labeling.formats.fields import ShownAnswer
from alignment.labeling.formats.published import HELPSTEER_ATTRIBUTES, read_helpsteer
from alignment.labeling.formats.questions import CLEARLY
from alignment.labeling.formats.read_back import Votes, Written, write_checked
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import Who, preferred
from alignment.ratings import Rating
from alignment.ratings.pairs import choice_of

_SINGLE = "scores of one answer"
_COMPARED = "votes on several answers"
_CONVERSATION = "scores whose prompt is a conversation, not one question"


def _preferences(votes: Votes, left_out: Counter[str]) -> Iterator[tuple[Rating, str, str]]:
    """Each vote with the better and the worse text; ties are counted."""
    texts = [each.text for each in votes.item.completions]
    for rating in votes.ratings:
        if rating.kind == "single":
            left_out[_SINGLE] += 1
            continue
        for first, second in itertools.combinations(range(len(texts)), 2):
            choice = choice_of(rating, first, second)
            if choice == "tie":
                left_out["ties"] += 1
            elif choice is not None:
                better, worse = (first, second) if choice == "first" else (second, first)
                yield rating, texts[better], texts[worse]


def _turns(votes: Votes) -> list[dict[str, str]]:
    return [dict(turn) for turn in votes.item.prompt]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# --- TRL: conversational preferences, and unpaired ones --------------------------------------------------------------


def write_trl(stored: Stored, left_out: Counter[str]) -> Rows:
    def rows(votes: Votes, left_out: Counter[str]) -> Written:
        for rating, better, worse in _preferences(votes, left_out):
            row = {"prompt": _turns(votes), "chosen": _said(better), "rejected": _said(worse)}
            yield row | {"labeler": votes.hashes[rating.labeler]}, [rating]

    return write_checked(stored, left_out, rows, read_hh)


def recognises_trl(row: Row) -> bool:
    pairs = {"prompt", "chosen", "rejected"} <= row.keys() <= {"prompt", "chosen", "rejected", "labeler"}
    return pairs and all(isinstance(row[key], list) for key in ("prompt", "chosen", "rejected"))


def write_trl_unpaired(stored: Stored, left_out: Counter[str]) -> Rows:
    def rows(votes: Votes, left_out: Counter[str]) -> Written:
        for rating in votes.ratings:
            if rating.score is None:
                left_out[_COMPARED] += 1
            elif rating.score == 4:
                left_out["scores of 4, the middle"] += 1
            else:
                row: dict[str, Any] = {"prompt": _turns(votes), "completion": _said(votes.item.completions[0].text)}
                yield row | {"label": rating.score > 4, "labeler": votes.hashes[rating.labeler]}, [rating]

    return write_checked(stored, left_out, rows, read_votes)


def recognises_trl_unpaired(row: Row) -> bool:
    named = {"prompt", "completion", "label"} <= row.keys() <= {"prompt", "completion", "label", "labeler"}
    return named and isinstance(row["label"], bool) and isinstance(row["completion"], list)


# --- OpenAI: preference fine-tuning ----------------------------------------------------------------------------------


def recognises_openai(row: Row) -> bool:
    return {"input", "preferred_output", "non_preferred_output"} <= row.keys()


def read_openai(row: Row, options: ImportOptions) -> Read:
    (prompt, chosen, rejected), chat = openai_pair(row)
    if chat.tools or isinstance(chosen, LongAnswer) or isinstance(rejected, LongAnswer):
        raise BadRow("the row has tools or answers of several turns, and labelers judge one answer")
    sides = (ShownAnswer("preferred_output", chosen), ShownAnswer("non_preferred_output", rejected))
    return [preferred(plain_turns(prompt), *sides, Who(None))]


def write_openai(stored: Stored, left_out: Counter[str]) -> Rows:
    def rows(votes: Votes, left_out: Counter[str]) -> Written:
        for rating, better, worse in _preferences(votes, left_out):
            asked = {"messages": _turns(votes), "tools": [], "parallel_tool_calls": True}
            yield {"input": asked, "preferred_output": _said(better), "non_preferred_output": _said(worse)}, [rating]

    return write_checked(stored, left_out, rows, read_openai)


# --- HelpSteer 3 for pairs, HelpSteer 2 for scores -------------------------------------------------------------------


def write_helpsteer(stored: Stored, left_out: Counter[str]) -> Rows:
    compared = any(rating.kind != "single" for rating in stored.counting)
    return write_checked(stored, left_out, _helpsteer_3 if compared else _helpsteer_2, read_helpsteer)


def _helpsteer_3(votes: Votes, left_out: Counter[str]) -> Written:
    if votes.item.kind == "single":
        left_out[_SINGLE] += len(votes.ratings)
        return
    texts = [each.text for each in votes.item.completions]
    for first, second in itertools.combinations(range(len(texts)), 2):
        each = []
        for rating in votes.ratings:
            sign = {"first": -1, "second": 1}.get(choice_of(rating, first, second) or "", 0)
            vote: dict[str, Any] = {"score": sign * (rating.strength or CLEARLY), "reasoning": rating.comment}
            beside = rating.answers or {} if rating.kind == "pair" else {}  # a ranking's would come with each pair
            comments = beside.get("comments") or [None] * len(texts)
            each.append(vote | {"feedback1": comments[first], "feedback2": comments[second]})
        mean = sum(vote["score"] for vote in each) / len(each)
        row: dict[str, Any] = {"context": _turns(votes), "response1": texts[first], "response2": texts[second]}
        overall = int(math.copysign(math.floor(abs(mean) + 0.5), mean))
        yield row | {"overall_preference": overall, "individual_preference": each}, votes.ratings


def _helpsteer_2(votes: Votes, left_out: Counter[str]) -> Written:
    if [turn["role"] for turn in votes.item.prompt] != ["user"]:
        left_out[_CONVERSATION] += len(votes.ratings)
        return
    scale = votes.item.metadata.get("scale")
    for rating in votes.ratings:
        assert rating.score is not None
        given = rating.given if scale == [0, 4] and rating.given is not None else _of_five(rating.score)
        said = (rating.answers or {}).get("attributes", {})
        row: dict[str, Any] = {"prompt": votes.item.prompt[0]["content"], "response": votes.item.completions[0].text}
        row["helpfulness"] = int(given) if given == int(given) else given
        attributes = {name: _of_five(said[name][0]) if name in said else None for name in HELPSTEER_ATTRIBUTES}
        yield row | attributes, [rating]


def _of_five(score: int) -> int:
    """A score from 1 to 7 on the scale 0 to 4."""
    return math.floor((score - 1) * 4 / 6 + 0.5)
