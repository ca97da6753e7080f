"""The shapes that a row may have, and the conversation in it.

A shape is told by the keys of the row, in the order of `SHAPES`; `data.format` names one outright.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from alignment.config.sections import Format
from alignment.data.row_files import BadRow
from alignment.templates.builtin import INPUT_HEADING
from alignment.templates.rendering import Message

ROLES = ("system", "user", "assistant", "tool")
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
"""The answer of a RAG row that is marked `unanswerable` and gives none of its own."""

Turns = tuple[Message, ...]


class Chat(NamedTuple):
    """A conversation with the tools that the assistant may call."""

    messages: Turns
    tools: tuple[dict[str, Any], ...] = ()


def shape_of(row: Mapping[str, Any], format: Format, allowed: Sequence[Format]) -> Format:
    """The shape of a row: the first whose keys it has, or the one that `data.format` names.

    Raises:
        BadRow: it has none of the `allowed` shapes.
    """

    def fits(shape: Format) -> bool:
        return shape in SHAPES and all(any(key in row for key in keys.split("|")) for keys in SHAPES[shape])

    told: Iterator[Format] = (shape for shape in SHAPES if fits(shape))
    shape: Format = format if format in SHAPES else next(told, "auto")
    if shape in allowed and fits(shape):
        return shape
    named = f", a {shape} row, which this stage does not learn from" if fits(shape) else ""
    wanted = [shape] if shape in allowed else allowed
    expected = " | ".join("+".join(SHAPES[shape]).replace("|", "/") for shape in wanted)
    raise BadRow(f"found the keys {_keys(row)}{named}; expected {expected} (data.columns renames)")


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


# --- texts and messages --------------------------------------------------------------------------------------------


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The text under a key.

    Raises:
        BadRow: none there, no text, or an empty one.
    """
    if key not in row:
        raise BadRow(f"no key '{key}'; found the keys {_keys(row)} (data.columns renames)")
    return check_text(row[key], f"'{key}'")


def check_text(value: Any, name: str) -> str:
    """The value, if it is a text that is not empty; `name` says what it is in errors."""
    if not isinstance(value, str):
        raise BadRow(f"{name} must be a text, found {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character")
    return value


def messages_of(row: Mapping[str, Any], key: str) -> Turns:
    """A list of OpenAI messages."""
    messages = []
    for number, item in enumerate(_list(row, key), 1):
        name = f"message {number} of '{key}'"
        if not isinstance(item, Mapping):
            raise BadRow(f"{name} must be an object, found {type(item).__name__}")
        if item.get("role") not in ROLES:
            raise BadRow(f"{name} has role {item.get('role')!r}; expected {', '.join(ROLES)}")
        messages.append(_message(item, name))
    return tuple(messages)


def _list(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = row[key]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}' must be a list of messages, found {type(value).__name__ if value else 'an empty one'}")
    return value


def _message(item: Mapping[str, Any], name: str) -> Message:
    role, content = item["role"], item.get("content")
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(check_text(part.get("text"), f"a part of {name}") for part in content)
    calls = item.get("tool_calls")
    message = Message(role=role, content="" if calls and not content else check_text(content, f"the content of {name}"))
    if calls:
        if role != "assistant":
            raise BadRow(f"{name} has tool_calls; only the assistant calls tools")
        message["tool_calls"] = [_tool_call(call, name) for call in calls]
    weight = item.get("weight")
    if weight is not None:
        if role != "assistant" or weight not in (0, 1):
            raise BadRow(f"{name} has weight {weight!r}; expected 0 or 1, on an assistant's message")
        message["weight"] = int(weight)
    for key in ("name", "tool_call_id"):
        if isinstance(item.get(key), str):
            message[key] = item[key]
    return message


def _tool_call(call: Any, name: str) -> dict[str, Any]:
    """A call with its arguments as an object; OpenAI has them as JSON in a text."""
    try:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
        if not isinstance(function["name"], str) or not isinstance(function["arguments"], dict):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise BadRow(
            f'{name}: each of tool_calls must be {{"function": {{"name": ..., "arguments": ...}}}} with a JSON object '
            f"as arguments, found {str(call)[:80]}"
        ) from None
    return {**call, "function": function}


def tools_of(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The `tools` of an OpenAI row."""
    tools = row.get("tools") or []
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        if all(isinstance(tool["function"]["name"], str) for tool in tools):
            return tuple(tools)
    except (KeyError, TypeError, ValueError):
        pass
    raise BadRow('\'tools\' must be a list of {"type": "function", "function": {"name": ...}}')


def with_answer(prompt: Turns, answer: str) -> Turns:
    """The conversation with the assistant's answer."""
    return (*prompt, Message(role="assistant", content=answer))


def split_answer(messages: Turns) -> tuple[Turns, str]:
    """What stands before the assistant's last turn, and that turn."""
    if messages[-1]["role"] != "assistant":
        raise BadRow("the conversation must end with the assistant's turn")
    if len(messages) < 2:
        raise BadRow("the conversation has no turn before the assistant's")
    return messages[:-1], messages[-1]["content"]


def merged(messages: Sequence[Message]) -> Turns:
    """Turns of one role that follow each other as one turn; what comes before the first question or after the last
    answer is left out."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1] = Message(role=message["role"], content=f"{turns[-1]['content']}\n{message['content']}")
        elif turns or message["role"] != "assistant":
            turns.append(Message(role=message["role"], content=message["content"]))
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return tuple(turns)


# --- one shape each ------------------------------------------------------------------------------------------------


def prompt_turns(row: Mapping[str, Any]) -> Turns:
    """`prompt`, a text or messages."""
    if isinstance(row["prompt"], list):
        return messages_of(row, "prompt")
    return (Message(role="user", content=text_of(row, "prompt")),)


def completion_of(row: Mapping[str, Any], key: str) -> str:
    """A completion, a text or one assistant message."""
    if isinstance(row.get(key), list):
        messages = messages_of(row, key)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(f"'{key}' must be one assistant message")
        return messages[0]["content"]
    return text_of(row, key)


def alpaca_prompt(instruction: str, extra: Any) -> Turns:
    """An instruction, and its input under a heading of its own."""
    section = f"{INPUT_HEADING}{extra}" if isinstance(extra, str) and extra.strip() else ""
    return (Message(role="user", content=instruction + section),)


def instances(row: Mapping[str, Any]) -> Iterator[tuple[Turns, str]]:
    """Self-instruct's `instances`: inputs and outputs of one instruction."""
    for number, instance in enumerate(_list(row, "instances"), 1):
        if not isinstance(instance, Mapping):
            raise BadRow(f"instance {number} must be an object, found {type(instance).__name__}")
        prompt = alpaca_prompt(text_of(row, "instruction"), instance.get("input"))
        yield prompt, check_text(instance.get("output"), f"the output of instance {number}")


def sharegpt(row: Mapping[str, Any]) -> Chat:
    """ShareGPT's `conversations` of `from` and `value`; what comes after the last answer is left out."""
    messages = []
    for number, item in enumerate(_list(row, "conversations"), 1):
        name = f"turn {number} of 'conversations'"
        role = SHAREGPT_ROLES.get(item.get("from", item.get("role"))) if isinstance(item, Mapping) else None
        if role is None:
            found = item.get("from", item.get("role")) if isinstance(item, Mapping) else item
            raise BadRow(f"{name} is from {found!r}; expected {', '.join(SHAREGPT_ROLES)}")
        messages.append(_message({**item, "role": role, "content": item.get("value", item.get("content"))}, name))
    if row.get("system"):
        messages.insert(0, Message(role="system", content=text_of(row, "system")))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("the conversation has no turn of the assistant's (gpt)")
    return Chat(tuple(messages), tools_of(row))


def parse_transcript(text: str) -> Turns:
    """Turns of an HH transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`), surrounding spaces dropped."""
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
    """Prompt, chosen and rejected; or both as whole transcripts or conversations."""
    if "prompt" in row:
        return prompt_turns(row), completion_of(row, "chosen"), completion_of(row, "rejected")
    sides = [
        messages_of(row, key) if isinstance(row[key], list) else parse_transcript(text_of(row, key))
        for key in ("chosen", "rejected")
    ]
    (prompt, chosen), (other, rejected) = (split_answer(side) for side in sides)
    if prompt != other:
        raise BadRow("'chosen' and 'rejected' differ before the assistant's last turn")
    return prompt, chosen, rejected


class RankedAnswers(NamedTuple):
    """Answers to one prompt with their ranks; 1 is better than 2, equal ranks are a tie."""

    prompt: Turns
    completions: tuple[str, ...]
    ranks: tuple[float, ...]


def ranking(row: Mapping[str, Any]) -> RankedAnswers:
    """`prompt`, `completions` and `ranks`."""
    completions, ranks = row["completions"], row["ranks"]
    if not (isinstance(completions, list) and isinstance(ranks, list) and len(completions) == len(ranks) >= 2):
        raise BadRow("'completions' and 'ranks' must be lists of one length, of two or more")
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) for rank in ranks):
        raise BadRow(f"'ranks' must be numbers (1 is the best), found {ranks}")
    texts = tuple(check_text(text, f"completion {number}") for number, text in enumerate(completions, 1))
    return RankedAnswers(prompt_turns(row), texts, tuple(ranks))


Choice = Literal["first", "second", "tie"]
_SAID: dict[int, Choice] = {0: "tie", 1: "first", 2: "second"}
"""How PandaLM and QA-Feedback write down what a person preferred."""


def _choice(value: Any, name: str) -> Choice:
    try:
        number = int(value)  # a CSV file has texts
    except (TypeError, ValueError):
        number = -1
    if number not in _SAID or isinstance(value, bool):
        raise BadRow(f"{name} is {value!r}; expected 0 (a tie), 1 or 2 (which is better)")
    return _SAID[number]


class AnnotatedPair(NamedTuple):
    """Two responses to an instruction and what each annotator said, by their column."""

    prompt: Turns
    first: str
    second: str
    votes: tuple[tuple[str, Choice], ...]


def pandalm(row: Mapping[str, Any]) -> AnnotatedPair:
    """PandaLM's rows: `instruction`, `input`, two responses, and a vote in each of `annotator1`, `annotator2`, ...

    A response may be empty: a model said nothing, and people judged that. A truth value or a number is the text that it
    was before somebody's program read it as such (four published answers are `true`).
    """
    first, second = (_response(row, key) for key in ("response1", "response2"))
    columns = sorted((key for key in row if re.fullmatch(r"annotator\d+", key)), key=lambda key: int(key[9:]))
    votes = tuple((key, _choice(row[key], f"'{key}'")) for key in columns if row[key] not in (None, ""))
    if not votes:
        raise BadRow("no annotator said which response is better")
    return AnnotatedPair(pandalm_prompt(row), first, second, votes)


def pandalm_prompt(row: Mapping[str, Any]) -> Turns:
    """The instruction with its input, as Alpaca's; the input alone where there is none (one published row)."""
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
    """Answers to one prompt and what was said of each two of them, in the order of `itertools.combinations`."""

    prompt: Turns
    completions: tuple[str, ...]
    choices: tuple[Choice, ...]


def qa_feedback(row: Mapping[str, Any]) -> Tournament:
    """QA-Feedback's rows: a question with passages, `prediction 1` to K, and a `preference` for each two of them."""
    names = [f"prediction {number}" for number in range(1, 10) if f"prediction {number}" in row]
    pairs = list(itertools.combinations(range(len(names)), 2))
    said = row["preference"]
    if not pairs or not isinstance(said, list) or len(said) != len(pairs):
        found = f"{len(said)} entries" if isinstance(said, list) else type(said).__name__
        raise BadRow(f"'preference' must have an entry for each two of the {len(names)} predictions, found {found}")
    choices = tuple(_choice(value, f"entry {number} of 'preference'") for number, value in enumerate(said, 1))
    return Tournament(qa_prompt(row), tuple(text_of(row, name) for name in names), choices)


def qa_prompt(row: Mapping[str, Any]) -> Turns:
    """The question below its passages, as any RAG row's; alone where there are none."""
    question = text_of(row, "question")
    passages = _documents(row["passages"] or [], "passages")
    return (Message(role="user", content=rag_prompt(question, passages) if passages else question),)


def rag(row: Mapping[str, Any]) -> tuple[Turns, str | None]:
    """A question about documents, and its answer.

    `context` or `documents` is a text or a list of documents; `distractors`, more of them that do not help, are mixed
    in, in an order drawn from the question, so that no place gives the right one away. `unanswerable` marks a question
    that the documents do not answer.
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
    """The question below its numbered documents, as it is trained; use it wherever such a model is asked."""
    numbered = "\n\n".join(f"[{number}] {document}" for number, document in enumerate(documents, 1))
    return f"Documents:\n\n{numbered}\n\nQuestion: {question}"


def _documents(value: Any, key: str) -> list[str]:
    """Each a text, an object with `text` and perhaps `title`, or a list of a title and sentences, as in HotpotQA."""
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
