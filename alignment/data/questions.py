"""Prompts: a question with its input, its documents, the exchanges before it and the system turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.data.chats import open_transcript, with_system
from alignment.data.keys import is_empty
from alignment.data.messages import Turns, check_text, holds_turns, list_of, parsed, text_of, turns_in
from alignment.data.row_files import BadRow
from alignment.templates.builtin import INPUT_HEADING
from alignment.templates.rendering import Message

UNANSWERABLE = "The documents do not answer this."
"""The answer of a RAG row that is marked `unanswerable` and has no answer."""


def prompt_of(row: Mapping[str, Any]) -> Turns:
    """The turns before the answer: `prompt`, a text or turns, with the row's input, documents, history and system."""
    value = row.get("prompt")
    if isinstance(value, str) and value.lstrip()[:1] == "[" and holds_turns(parsed(value)):
        value = parsed(value)
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):  # WebGPT's question
        value = value["full_text"]
    if not is_empty(row.get("distractors")) and is_empty(row.get("documents")):
        raise BadRow("'distractors' without documents; give the ones that answer the question as 'documents'")
    if isinstance(value, list):
        for key in ("input", "documents"):
            if not is_empty(row.get(key)):
                raise BadRow(f"'{key}' beside a prompt of turns is not read; put it into the user's turn")
        turns = turns_in(value, "prompt") if value else ()
        if not turns:
            raise BadRow("'prompt' must be a list of messages, found an empty one")
    elif not is_empty(row.get("documents")):
        turns = rag_turns({**row, "question": value})
    else:
        text = check_text(value, "'prompt'") if "prompt" in row else text_of(row, "prompt")
        turns = open_transcript(text) or alpaca_prompt(text, row.get("input"))
    return with_system(row, (*_history(row), *turns))


def _history(row: Mapping[str, Any]) -> Turns:
    """The earlier exchanges of a row: [question, answer] each, or turns."""
    value = parsed(row.get("history"))
    if is_empty(value):
        return ()
    if isinstance(value, list) and holds_turns(value):
        return turns_in(value, "history")
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRow("'history' must be a list of [question, answer], or of turns with role and content")
    return turns_in([text for pair in value for text in pair], "history")


def alpaca_prompt(instruction: str, extra: Any) -> Turns:
    """An instruction, followed by its input under a heading."""
    if not is_empty(extra) and not isinstance(extra, str):
        raise BadRow(f"'input' must be a string, found {type(extra).__name__}")
    section = f"{INPUT_HEADING}{extra}" if isinstance(extra, str) and extra.strip() else ""
    return (Message(role="user", content=instruction + section),)


def alpaca(row: Mapping[str, Any]) -> Turns:
    """The prompt of a row with an `instruction`."""
    return with_system(row, (*_history(row), *alpaca_prompt(text_of(row, "instruction"), row.get("input"))))


def instances(row: Mapping[str, Any]) -> Iterator[tuple[Turns, str]]:
    """The `instances` of a Self-Instruct row: inputs and outputs of one instruction."""
    for index, instance in enumerate(list_of(row, "instances"), 1):
        if not isinstance(instance, Mapping):
            raise BadRow(f"instance {index} must be an object, found {type(instance).__name__}")
        prompt = alpaca_prompt(text_of(row, "instruction"), instance.get("input"))
        yield with_system(row, prompt), check_text(instance.get("output"), f"the output of instance {index}")


def faq(row: Mapping[str, Any]) -> Turns:
    """The prompt of a row with a `question`."""
    question = (Message(role="user", content=text_of(row, "question")),)
    return with_system(row, (*_history(row), *question))


# --- documents to answer from ----------------------------------------------------------------------------------------


def rag(row: Mapping[str, Any]) -> tuple[Turns, str | None]:
    """A question about documents, and its answer; of SQuAD's answers the first.

    `context` or `documents` is a string or a list of documents. `distractors` are irrelevant documents; all are
    shuffled with the question as the seed, so that no position reveals the relevant one. `unanswerable` marks a
    question that the documents do not answer, and so does an empty list of answers.
    """
    prompt = with_system(row, (*_history(row), *rag_turns(row)))
    answer = row.get("answer")
    if isinstance(answer, Mapping):
        answer = answer.get("text")
    nothing = isinstance(answer, list) and not answer
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    marked = row.get("unanswerable")
    if (nothing or marked in (True, 1) or str(marked).lower() == "true") and not answer:
        answer = UNANSWERABLE
    return prompt, answer


def rag_turns(row: Mapping[str, Any]) -> Turns:
    """The user's turn: the question below the documents of a row."""
    question = text_of(row, "question")
    documents = documents_in(row.get("documents"), "documents")
    distractors = documents_in(row.get("distractors") or [], "distractors")
    if distractors:
        documents += distractors
        random.Random(question).shuffle(documents)
    if not documents:
        raise BadRow("no document; a question without any is a `question`, `answer` row")
    return (Message(role="user", content=rag_prompt(question, documents)),)


def rag_prompt(question: str, documents: Sequence[str]) -> str:
    """The question below its numbered documents, as in training; use it at inference too."""
    numbered = "\n\n".join(f"[{index}] {document}" for index, document in enumerate(documents, 1))
    return f"Documents:\n\n{numbered}\n\nQuestion: {question}"


def qa_prompt(row: Mapping[str, Any]) -> Turns:
    """The question below its passages, as in a RAG row; the question alone if there are no passages."""
    question = text_of(row, "question")
    passages = documents_in(row["passages"] or [], "passages")
    return with_system(row, (Message(role="user", content=rag_prompt(question, passages) if passages else question),))


def _flat(document: list[Any]) -> list[Any]:
    """The title and the sentences of a document of HotpotQA."""
    return [part for item in document for part in (item if isinstance(item, list) else [item])]


def documents_in(value: Any, key: str) -> list[str]:
    """Documents as strings; empty ones are left out.

    Each is a string, an object with `text` and maybe `title`, or a list as in HotpotQA.
    """
    texts = []
    if isinstance(value, Mapping) and isinstance(value.get("title"), list):  # HotpotQA's columns
        value = [list(pair) for pair in zip(value["title"], value.get("sentences") or [], strict=False)]
    if isinstance(value, str) and isinstance(found := parsed(value), list):  # a table's column
        value = found if all(isinstance(item, str | Mapping | list) for item in found) else value
    for document in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        if isinstance(document, str) and not document.strip():
            continue
        if isinstance(document, Mapping):
            parts = [document.get("title"), document.get("text", document.get("content"))]
            texts.append("\n".join(check_text(part, f"a document of '{key}'") for part in parts if part is not None))
        elif isinstance(document, list) and (sentences := _flat(document)):
            title, *sentences = sentences
            body = " ".join(check_text(sentence, f"a sentence of '{key}'") for sentence in sentences)
            texts.append(f"{check_text(title, f'a title of {key!r}')}\n{body}".strip())
        else:
            texts.append(check_text(document, f"a document of '{key}'"))
    return texts
