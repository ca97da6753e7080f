"""The formats that a row may have, and the conversation in it.

A row's keys determine its format: the first match in the order of `SHAPES`. `data.format` overrides this.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignment.config.sections import Format
from alignment.data.messages import (
    Chat,
    Turns,
    check_text,
    key_names,
    list_of,
    message_of,
    messages_of,
    split_answer,
    text_of,
    tools_of,
)
from alignment.data.row_files import BadRow
from alignment.templates.builtin import INPUT_HEADING
from alignment.templates.rendering import Message

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
SHAPES: dict[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "tree": ("message_tree_id", "prompt"),
    "self-instruct": ("instruction", "instances"),
    "pandalm": ("instruction", "response1", "response2", "annotator1"),
    "alpaca": ("instruction",),
    "pair": ("chosen", "rejected"),
    "ranking": ("prompt", "completions", "ranks"),
    "rating": ("prompt", "completion", "rating"),
    "completion": ("prompt", "completion"),
    "qa-feedback": ("question", "passages", "prediction 1", "preference"),
    "rag": ("question", "context|documents"),
    "faq": ("question", "answer"),
    "text": ("text",),
    "prompt": ("prompt",),
}
UNANSWERABLE = "The documents do not answer this."
"""The answer of a RAG row that is marked `unanswerable` and has no answer."""


def shape_of(row: Mapping[str, Any], format: Format, allowed: Sequence[Format]) -> Format:
    """The shape of a row: the first whose keys it has, or the one that `data.format` names.

    Raises:
        BadRow: the row has none of the `allowed` shapes.
    """

    def fits(shape: Format) -> bool:
        return shape in SHAPES and all(any(key in row for key in keys.split("|")) for keys in SHAPES[shape])

    matching: Iterator[Format] = (shape for shape in SHAPES if fits(shape))
    shape: Format = format if format in SHAPES else next(matching, "auto")
    if shape in allowed and fits(shape):
        return shape
    note = f", a {shape} row, which this stage does not learn from" if fits(shape) else ""
    wanted = [shape] if shape in allowed else allowed
    expected = " | ".join("+".join(SHAPES[shape]).replace("|", "/") for shape in wanted)
    raise BadRow(f"found the keys {key_names(row)}{note}; expected {expected} (data.columns renames)")


# --- one shape each ------------------------------------------------------------------------------------------------


def prompt_turns(row: Mapping[str, Any]) -> Turns:
    """The conversation under `prompt`, which is a string or messages."""
    if isinstance(row["prompt"], list):
        return messages_of(row, "prompt")
    return (Message(role="user", content=text_of(row, "prompt")),)


def completion_of(row: Mapping[str, Any], key: str) -> str:
    """A completion: a string or one assistant message."""
    if isinstance(row.get(key), list):
        messages = messages_of(row, key)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(f"'{key}' must be one assistant message")
        return messages[0]["content"]
    return text_of(row, key)


def alpaca_prompt(instruction: str, extra: Any) -> Turns:
    """An instruction, followed by its input under a heading."""
    section = f"{INPUT_HEADING}{extra}" if isinstance(extra, str) and extra.strip() else ""
    return (Message(role="user", content=instruction + section),)


def instances(row: Mapping[str, Any]) -> Iterator[tuple[Turns, str]]:
    """The `instances` of a Self-Instruct row: inputs and outputs of one instruction."""
    for index, instance in enumerate(list_of(row, "instances"), 1):
        if not isinstance(instance, Mapping):
            raise BadRow(f"instance {index} must be an object, found {type(instance).__name__}")
        prompt = alpaca_prompt(text_of(row, "instruction"), instance.get("input"))
        yield prompt, check_text(instance.get("output"), f"the output of instance {index}")


def sharegpt(row: Mapping[str, Any]) -> Chat:
    """ShareGPT's `conversations` of `from` and `value`; turns after the last answer are dropped."""
    messages = []
    for index, item in enumerate(list_of(row, "conversations"), 1):
        name = f"turn {index} of 'conversations'"
        role = SHAREGPT_ROLES.get(item.get("from", item.get("role"))) if isinstance(item, Mapping) else None
        if role is None:
            sender = item.get("from", item.get("role")) if isinstance(item, Mapping) else item
            raise BadRow(f"{name} is from {sender!r}; expected {', '.join(SHAREGPT_ROLES)}")
        messages.append(message_of({**item, "role": role, "content": item.get("value", item.get("content"))}, name))
    if row.get("system"):
        messages.insert(0, Message(role="system", content=text_of(row, "system")))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("the conversation has no turn of the assistant's (gpt)")
    return Chat(tuple(messages), tools_of(row))


def parse_transcript(text: str) -> Turns:
    """Turns of an HH transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`), stripped of surrounding white space."""
    messages: list[Message] = []
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("a transcript must begin with '\\n\\nHuman:' and hold turns marked '\\n\\nAssistant:'")
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if not content.strip():
            raise BadRow(f"turn {len(messages) + 1} of the transcript ({role}) is empty")
        messages.append(Message(role=role, content=content.strip()))
    return tuple(messages)


def pair_of(row: Mapping[str, Any]) -> tuple[Turns, str, str]:
    """Prompt, chosen and rejected completion; both may also be whole transcripts or conversations."""
    if "prompt" in row:
        return prompt_turns(row), completion_of(row, "chosen"), completion_of(row, "rejected")
    sides = [
        messages_of(row, key) if isinstance(row[key], list) else parse_transcript(text_of(row, key))
        for key in ("chosen", "rejected")
    ]
    (prompt, chosen), (rejected_prompt, rejected) = (split_answer(side) for side in sides)
    if prompt != rejected_prompt:
        raise BadRow("'chosen' and 'rejected' differ before the assistant's last turn")
    return prompt, chosen, rejected


class RankedAnswers(NamedTuple):
    """Answers to one prompt with their ranks; 1 is better than 2, equal ranks are a tie."""

    prompt: Turns
    completions: tuple[str, ...]
    ranks: tuple[float, ...]


def ranking(row: Mapping[str, Any]) -> RankedAnswers:
    """A row of `prompt`, `completions` and `ranks`."""
    completions, ranks = row["completions"], row["ranks"]
    if not (isinstance(completions, list) and isinstance(ranks, list) and len(completions) == len(ranks) >= 2):
        raise BadRow("'completions' and 'ranks' must be lists of the same length, two or more")
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) for rank in ranks):
        raise BadRow(f"'ranks' must be numbers (1 is the best), found {ranks}")
    texts = tuple(check_text(text, f"completion {index}") for index, text in enumerate(completions, 1))
    return RankedAnswers(prompt_turns(row), texts, tuple(ranks))


Choice = Literal["first", "second", "tie"]
_CHOICES: dict[int, Choice] = {0: "tie", 1: "first", 2: "second"}
"""The codes of PandaLM and QA-Feedback."""


def _choice(value: Any, name: str) -> Choice:
    try:
        code = int(value)  # a CSV file has strings
    except (TypeError, ValueError):
        code = -1
    if code not in _CHOICES or isinstance(value, bool):
        raise BadRow(f"{name} is {value!r}; expected 0 (a tie), 1 or 2 (which is better)")
    return _CHOICES[code]


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
        return (Message(role="user", content=check_text(extra, "'input'")),)
    return alpaca_prompt(text_of(row, "instruction"), extra)


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


def qa_prompt(row: Mapping[str, Any]) -> Turns:
    """The question below its passages, as in a RAG row; the question alone if there are no passages."""
    question = text_of(row, "question")
    passages = _documents(row["passages"] or [], "passages")
    return (Message(role="user", content=rag_prompt(question, passages) if passages else question),)


def rag(row: Mapping[str, Any]) -> tuple[Turns, str | None]:
    """A question about documents, and its answer.

    `context` or `documents` is a string or a list of documents. `distractors` are irrelevant documents; all are
    shuffled with the question as the seed, so that no position reveals the relevant one. `unanswerable` marks a
    question that the documents do not answer.
    """
    question = text_of(row, "question")
    documents = _documents(row.get("documents", row.get("context")), "documents" if "documents" in row else "context")
    distractors = _documents(row.get("distractors") or [], "distractors")
    if distractors:
        documents += distractors
        random.Random(question).shuffle(documents)
    if not documents:
        raise BadRow("no document; a question without any is a `question`, `answer` row")
    answer = row.get("answer")
    if row.get("unanswerable") and not answer:
        answer = UNANSWERABLE
    return (Message(role="user", content=rag_prompt(question, documents)),), answer


def rag_prompt(question: str, documents: Sequence[str]) -> str:
    """The question below its numbered documents, as in training; use it at inference too."""
    numbered = "\n\n".join(f"[{index}] {document}" for index, document in enumerate(documents, 1))
    return f"Documents:\n\n{numbered}\n\nQuestion: {question}"


def _documents(value: Any, key: str) -> list[str]:
    """Documents as strings. Each is a string, an object with `text` and maybe `title`, or a list as in HotpotQA."""
    texts = []
    for document in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        if isinstance(document, Mapping):
            parts = [document.get("title"), document.get("text", document.get("content"))]
            texts.append("\n".join(check_text(part, f"a document of '{key}'") for part in parts if part is not None))
        elif isinstance(document, list) and document:
            title, *sentences = (part for item in document for part in (item if isinstance(item, list) else [item]))
            body = " ".join(check_text(sentence, f"a sentence of '{key}'") for sentence in sentences)
            texts.append(f"{check_text(title, f'a title of {key!r}')}\n{body}".strip())
        else:
            texts.append(check_text(document, f"a document of '{key}'"))
    return texts
