"""Rows that say which answer is better: pairs, rankings, votes."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignment.data.chats import marked_transcript, parse_transcript, with_system
from alignment.data.importers import PassedOver
from alignment.data.keys import is_empty
from alignment.data.messages import (
    Chat,
    Turns,
    answer_of,
    check_ends,
    check_text,
    holds_turns,
    list_of,
    parsed,
    text_of,
    turns_in,
)
from alignment.data.questions import alpaca_prompt, prompt_of, qa_prompt
from alignment.data.row_files import BadRow
from alignment.data.shapes import ANSWERS
from alignment.data.tool_calls import tools_of
from alignment.templates.rendering import Message

Choice = Literal["first", "second", "tie"]
_CHOICES: dict[int, Choice] = {0: "tie", 1: "first", 2: "second"}
"""The codes of PandaLM and QA-Feedback."""
_SCORES = ("overall_score", "score", "rating", "fine-grained_score", "reward", "pm_score")
_ANSWER_TEXTS = ("response", "answer", "text", "content", "completion", "output", "generated_text")


# --- pairs -----------------------------------------------------------------------------------------------------------


class PairRow(NamedTuple):
    """Prompt, chosen and rejected completion."""

    prompt: Turns
    chosen: str
    rejected: str


def pair_of(row: Mapping[str, Any]) -> tuple[Turns, str, str]:
    """Prompt, chosen and rejected completion of a row with our names.

    Both may be whole transcripts or conversations; the prompt is then their longest common start that ends before an
    answer. A prompt that they repeat is not learned twice. A rejected text beside a chosen conversation stands in place
    of its last answer.
    """
    _check_no_places(row)
    chosen, rejected = parsed(row["chosen"]), parsed(row["rejected"])
    if "prompt" not in row and holds_turns(chosen) and isinstance(chosen, list) and isinstance(rejected, str):
        turns = _side(row, "chosen", ())
        other = Message(role="assistant", content=check_text(row["rejected"], "'rejected'"))
        return PairRow(*split_sides(row, (), turns, (*turns[:-1], other)))
    prompt = prompt_of(row) if "prompt" in row else ()
    row = _without_repeated_prompt(row, prompt)
    sides = [_side(row, key, prompt) for key in ("chosen", "rejected")]
    return PairRow(*split_sides(row, prompt, *sides))


def _check_no_places(row: Mapping[str, Any]) -> None:
    """Refuse numbers beside a list of answers: they are places in it, not the texts `0` and `1`."""
    said = row["chosen"], row["rejected"]
    beside = next((key for key in ANSWERS.split("|") if isinstance(parsed(row.get(key)), list)), None)
    if beside and are_places(said, parsed(row[beside])):
        raise BadRow(
            f"'chosen' is {str(said[0])[:40]} and 'rejected' is {str(said[1])[:40]}, places in '{beside}'; write the "
            "answers themselves there (alignment rate import reads places that are counted from 0)"
        )


def _without_repeated_prompt(row: Mapping[str, Any], prompt: Turns) -> Mapping[str, Any]:
    """The row without a question that stands, on a line of its own, at the head of both answers."""
    if len(prompt) != 1 or not all(isinstance(row[key], str) for key in ("chosen", "rejected")):
        return row
    head = prompt[0]["content"].strip()
    rest = {
        key: row[key].lstrip().removeprefix(head)
        for key in ("chosen", "rejected")
        if row[key].lstrip().startswith(head)
    }
    if len(rest) == 2 and all(text.strip() and text.lstrip(" ")[:1] == "\n" for text in rest.values()):
        return {**row, **{key: text.strip() for key, text in rest.items()}}
    return row


def _side(row: Mapping[str, Any], key: str, prompt: Turns) -> Turns:
    """The turns of one side."""
    value = row[key]
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parsed(value) if holds_turns(parsed(value)) else value
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        if len(value) != 1:
            raise BadRow(f"'{key}' holds {len(value)} texts; a row of several answers has `completions` and `ranks`")
        value = value[0]
    if isinstance(value, list | dict):
        return turns_in(list_of({key: value}, key), key)
    if not prompt:
        return parse_transcript(check_text(value, f"'{key}'"))
    text = check_text(value, f"'{key}'")
    if re.match(r"\s*(Human|User|USER):", text) and re.search(r"\n(Assistant|ASSISTANT):", text):
        turns = marked_transcript(text, key)
        if turns[0]["content"] == prompt[-1]["content"].strip() or turns[0]["content"] == prompt[0]["content"].strip():
            return turns
    return (Message(role="assistant", content=text),)


def split_sides(row: Mapping[str, Any], prompt: Turns, first: Turns, second: Turns) -> tuple[Turns, str, str]:
    """The prompt and two answers of two conversations, which may hold the prompt or follow it.

    Args:
        row: its system turn stands above conversations that bring their prompt.
    """
    for side in (first, second):
        if not side or side[-1]["role"] != "assistant":
            raise BadRow("the conversation must end with the assistant's turn")
    return _common_start(*(_below(prompt, side, row) for side in (first, second)))


def _below(prompt: Turns, side: Turns, row: Mapping[str, Any]) -> Turns:
    """A side with what was asked: below the prompt, or as it is if it brings its own questions, this one among them."""
    if side[0]["role"] == "assistant":
        return (*prompt, *side)
    asked = {turn["content"].strip() for turn in side if turn["role"] == "user"}
    if any(turn["content"].strip() not in asked for turn in prompt if turn["role"] == "user"):
        raise BadRow("'prompt' is not in the conversations beside it; data.columns='{prompt: null}' leaves it out")
    return with_system(row, side)


def _common_start(first: Turns, second: Turns) -> tuple[Turns, str, str]:
    for side in (first, second):
        check_ends(side)
    size = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))
    size = min(size, len(first) - 1, len(second) - 1)
    while size and not (first[size]["role"] == second[size]["role"] == "assistant"):
        size -= 1
    if size and first[size - 1]["role"] == "assistant":
        size -= 1  # the answer that both begin with
    if not size:
        raise BadRow("'chosen' and 'rejected' begin with different questions")
    return first[:size], answer_of(first[size:]), answer_of(second[size:])


def openai_pair(row: Mapping[str, Any]) -> tuple[PairRow, Chat]:
    """A row of OpenAI's preference fine-tuning, and its question with the tools."""
    asked = row["input"]
    if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list):
        raise BadRow("'input' must be an object with `messages`")
    prompt = with_system(row, turns_in(asked["messages"], "input.messages"))
    sides = [turns_in(list_of(row, key), key) for key in ("preferred_output", "non_preferred_output")]
    return PairRow(*split_sides({}, prompt, *sides)), Chat(prompt, tools_of(asked))


# --- numbers ---------------------------------------------------------------------------------------------------------


def number_of(value: Any, name: str) -> float:
    """A finite number; a CSV file has it as text.

    Raises:
        BadRow: it is none, or not finite.
    """
    if isinstance(value, str):
        if re.fullmatch(r"\s*-?\d+,\d\d?\s*", value):  # a decimal comma; with three digits it may part thousands
            value = value.replace(",", ".")
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"{name} must be a number, found {value!r}")
    return float(value)


_NUMBER = re.compile(r"([+\-\u2212]?\d+)(?:\.0*)?|[+\-\u2212]?\d*[.,]\d+")


def choice_number(value: Any) -> str | None:
    """The number that a choice is written as, as `-1` or `2`; None for a word."""
    found = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value).strip())
    return None if found is None else found[1] or found[0]


def are_places(said: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Whether a number among the chosen and the rejected may be a place in a list of answers, not an answer in it."""
    numbers = [number for number in map(choice_number, said) if number is not None]
    texts = [str(answer).strip() for answer in answers]
    are_answers = all(str(value).strip() in texts for value in said)
    in_range = any(number.isdigit() and int(number) <= len(texts) for number in numbers)
    return bool(numbers) and (in_range or not are_answers)


def labeler_of(row: Mapping[str, Any]) -> str | None:
    """Who judged; a number is a name too."""
    value = row.get("labeler")
    if is_empty(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"'labeler' must be a string, found {type(value).__name__}")
    return str(value)


# --- rankings --------------------------------------------------------------------------------------------------------


class RankedAnswers(NamedTuple):
    """Answers to one prompt with their ranks; 1 is better than 2, equal ranks are a tie."""

    prompt: Turns
    completions: tuple[str, ...]
    ranks: tuple[float, ...]
    labeler: str | None = None


_LOW_IS_BEST = ("ranks", "ranking", "rank")


def ranking(row: Mapping[str, Any], original: Mapping[str, Any]) -> RankedAnswers:
    """A row of answers with their ranks or scores; an answer without one was not judged and is left out.

    Args:
        original: the row with its own names, by which ranks and scores are told apart.
    """
    answers, values = parsed(row["completions"]), parsed(row["ranks"])
    key = next(name for name in ("ranks", "ranking", "scores", "ratings", "rewards") if name in original)
    if not (isinstance(answers, list) and isinstance(values, list) and len(answers) == len(values) >= 2):
        raise BadRow(f"'completions' and '{key}' must be lists of the same length, two or more")
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values):
        best = "1 is the best" if key in _LOW_IS_BEST else "the highest is the best"
        raise BadRow(f"'{key}' must be numbers ({best}), not texts, found {values}")
    texts = [_answer_text(answer, f"completion {index}") for index, answer in enumerate(answers, 1)]
    return _judged(row, texts, values, key)


def scored(row: Mapping[str, Any]) -> RankedAnswers:
    """A row of answers that each have their rank or score, as UltraFeedback's and Nectar's."""
    answers = list_of(row, "completions")
    if not all(isinstance(answer, Mapping) for answer in answers) or len(answers) < 2:
        raise BadRow("'completions' has neither ranks nor scores; give `ranks` (1 is the best) or `scores` beside it")
    texts = [_answer_text(answer, f"completion {index}") for index, answer in enumerate(answers, 1)]
    key = next((key for key in ("rank", *_SCORES) if any(answer.get(key) is not None for answer in answers)), None)
    if key is None:
        values: list[Any] = [_mean_annotation(answer) for answer in answers]
        key = "annotations"
        if all(value is None for value in values):
            raise BadRow(f"no completion has a rank or a score ({', '.join(('rank', *_SCORES))})")
    else:
        values = [answer.get(key) for answer in answers]
    named = [(value, f"'{key}' of completion {index}") for index, value in enumerate(values, 1)]
    numbers = [None if value in (None, "", "N/A") else _maybe_nan(value, name) for value, name in named]
    return _judged(row, texts, numbers, key)


def _maybe_nan(value: Any, name: str) -> float | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    return number_of(value, name)


def _mean_annotation(answer: Mapping[str, Any]) -> float | None:
    """The mean of UltraFeedback's ratings of one answer."""
    annotations = answer.get("annotations")
    found = [entry.get("Rating") for entry in annotations.values()] if isinstance(annotations, Mapping) else []
    numbers = [float(value) for value in found if isinstance(value, str) and value.isdigit()]
    return sum(numbers) / len(numbers) if numbers else None


def _answer_text(answer: Any, name: str) -> str:
    if isinstance(answer, Mapping):
        if {"role", "from"} & answer.keys():
            return answer_of(turns_in([answer], name))
        answer = next((answer[key] for key in _ANSWER_TEXTS if isinstance(answer.get(key), str)), None)
    elif isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        return answer_of(turns_in(answer, name))
    return check_text(answer, name)


def _judged(row: Mapping[str, Any], texts: Sequence[str], values: Sequence[float | None], key: str) -> RankedAnswers:
    """The answers that were judged, by ranks."""
    sign = 1 if key in _LOW_IS_BEST else -1
    judged = [
        (text, sign * value)
        for text, value in zip(texts, values, strict=True)
        if value is not None and not math.isnan(value)
    ]
    if any(math.isinf(value) for _, value in judged):
        raise BadRow(f"'{key}' must be finite numbers, found {list(values)}")
    if len(judged) < 2:
        raise PassedOver(f"fewer than two of the {len(texts)} answers were judged ('{key}' is null or NaN)")
    completions, ranks = zip(*judged, strict=True)
    return RankedAnswers(prompt_of(row), completions, ranks, labeler_of(row))


# --- PandaLM and QA-Feedback -----------------------------------------------------------------------------------------


def _choice(value: Any, name: str) -> Choice:
    try:
        code = float(value)  # a CSV file has strings, and pandas' has 1.0
    except (TypeError, ValueError):
        code = -1
    if code not in _CHOICES or isinstance(value, bool):
        raise BadRow(f"{name} is {value!r}; expected 0 (a tie), 1 or 2 (which is better)")
    return _CHOICES[int(code)]


class AnnotatedPair(NamedTuple):
    """Two responses to an instruction and each annotator's vote, with its column."""

    prompt: Turns
    first: str
    second: str
    votes: tuple[tuple[str, Choice], ...]


def pandalm(row: Mapping[str, Any]) -> AnnotatedPair:
    """A PandaLM row: `instruction`, `input`, two responses, and a vote in each of `annotator1`, `annotator2`, ...

    A response may be empty, because models do return nothing. A boolean or a number is read as the string that it was
    before it was parsed (four published answers are `true`).
    """
    first, second = (_response(row, key) for key in ("response1", "response2"))
    columns = sorted((key for key in row if re.fullmatch(r"annotator\d+", key)), key=lambda key: int(key[9:]))
    votes = tuple((key, _choice(row[key], f"'{key}'")) for key in columns if row[key] not in (None, ""))
    if not votes:
        raise BadRow("no annotator said which response is better")
    return AnnotatedPair(pandalm_prompt(row), first, second, votes)


def pandalm_prompt(row: Mapping[str, Any]) -> Turns:
    """The instruction with its input, as in Alpaca; the input alone if the instruction is empty (one published row)."""
    instruction, extra = row["instruction"], row.get("input")
    if isinstance(instruction, str) and not instruction.strip() and isinstance(extra, str) and extra.strip():
        return with_system(row, (Message(role="user", content=check_text(extra, "'input'")),))
    return with_system(row, alpaca_prompt(text_of(row, "instruction"), extra))


def _response(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, bool | int | float):
        return str(value)
    return value if value == "" else check_text(value, f"'{key}'")


class Tournament(NamedTuple):
    """Answers to one prompt and a choice for each pair of them, in the order of `itertools.combinations`."""

    prompt: Turns
    completions: tuple[str, ...]
    choices: tuple[Choice, ...]


def qa_feedback(row: Mapping[str, Any]) -> Tournament:
    """A QA-Feedback row: a question with passages, `prediction 1` to K, and a `preference` for each pair of them."""
    names = [f"prediction {index}" for index in range(1, 10) if f"prediction {index}" in row]
    pairs = list(itertools.combinations(range(len(names)), 2))
    preferences = row["preference"]
    if not pairs or not isinstance(preferences, list) or len(preferences) != len(pairs):
        actual = f"{len(preferences)} entries" if isinstance(preferences, list) else type(preferences).__name__
        raise BadRow(f"'preference' must have an entry for each pair of the {len(names)} predictions, found {actual}")
    choices = tuple(_choice(value, f"entry {index} of 'preference'") for index, value in enumerate(preferences, 1))
    return Tournament(qa_prompt(row), tuple(text_of(row, name) for name in names), choices)
