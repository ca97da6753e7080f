"""Conversations: message lists in any dialect, and transcripts written as one text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.keys import is_empty
from alignment.data.messages import Chat, Turns, check_text, messages_of, parsed, text_of, turns_in
from alignment.data.row_files import BadRow
from alignment.data.tool_calls import call_of, tools_of, with_schemas
from alignment.templates.rendering import Message

AFTER_LAST_ANSWER = "the turns after the last answer are left out"
_HH = re.compile(r"\n\n(Human|Assistant):")
_MARKED = re.compile(r"(?:\A|\n+)[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE|SYSTEM|Human|Assistant|User|System):[ \t]*")
_OTHER_MARKS = re.compile(
    r"(?:\A|\n+|(?<=\S)[ \t]*(?=###))[ \t]*###[ \t]*(Human|Assistant|User|System)[ \t]*:[ \t]*"
    r"|<\|(user|assistant|system)\|>\s*|<\|im_start\|>(user|assistant|system)\s*"
    r"|(?:\A|\n)[ \t]*<(human|bot|user|assistant|system)>[ \t]*:[ \t]*"
)
"""Guanaco's, Zephyr's, ChatML's and OIG's marks of turns."""
_TURN_ENDS = re.compile(r"(?:<\|im_end\|>|<\|end\|>|<\|endoftext\|>|</s>)\s*\Z")
_SPEAKERS = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "bot": "assistant",
    "system": "system",
    "function response": "tool",
}
_CALL = re.compile(r"<functioncall>\s*(\{.*\})\s*\Z", re.DOTALL)


def chat_of(row: Mapping[str, Any], key: str) -> Chat:
    """The conversation under a key, with the row's system turn and tools."""
    value = parsed(row[key])
    if isinstance(value, str):
        turns, tools = marked_transcript(value, key), _tools_in(row.get("system"))
        if tools:
            row = {**row, "system": row["system"][: row["system"].index("{")]}
        return Chat(with_system(row, turns), tools or tools_of(row))
    return Chat(with_system(row, messages_of(row, key)), tools_of(row))


def calling_chat(row: Mapping[str, Any]) -> Chat:
    """The conversation of a `query` that is answered by calls of the row's tools, as xLAM's rows are.

    Raises:
        BadRow: its answers are no calls.
    """
    answers = parsed(row["answers"])
    if not isinstance(answers, list) or not answers:
        raise BadRow("'answers' beside 'tools' must be a list of calls, {\"name\": ..., \"arguments\": {...}}")
    calls = [call_of(call, f"answer {index} of 'answers'") for index, call in enumerate(answers, 1)]
    asked = Message(role="user", content=text_of(row, "query"))
    return Chat(
        with_system(row, (asked, Message(role="assistant", content="", tool_calls=calls))), with_schemas(tools_of(row))
    )


def answered(chat: Chat) -> Chat:
    """The conversation through its last answer.

    Raises:
        BadRow: it has no answer.
    """
    last = next((i for i in reversed(range(len(chat.messages))) if chat.messages[i]["role"] == "assistant"), None)
    if last is None:
        raise BadRow("the conversation has no turn of the assistant's")
    if last + 1 == len(chat.messages):
        return chat
    return Chat(chat.messages[: last + 1], chat.tools, (*chat.notes, AFTER_LAST_ANSWER))


def with_system(row: Mapping[str, Any], turns: Turns) -> Turns:
    """The turns below the row's `system`; a conversation that has a system turn keeps one, with both texts."""
    system = row.get("system")
    if is_empty(system) or (isinstance(system, str) and not system.strip()):
        return turns
    if isinstance(system, str):
        text = re.sub(r"\ASYSTEM:\s*", "", check_text(system, "'system'"))
    else:  # Anthropic's blocks, or Gemini's parts
        system = system.get("parts", system) if isinstance(system, Mapping) else system
        (message,) = turns_in([{"role": "system", "content": system}], "system")
        text = message["content"]
    if turns and turns[0]["role"] == "system":
        first = turns[0]["content"]
        text = first if text.strip() in first else f"{text}\n\n{first}"
        turns = turns[1:]
    return (Message(role="system", content=text), *turns)


def parse_transcript(text: str) -> Turns:
    """Turns of an HH transcript (`\\n\\nHuman: ... \\n\\nAssistant: ...`), stripped of surrounding white space."""
    messages: list[Message] = []
    parts = _HH.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(
            "a transcript must begin with '\\n\\nHuman:' and hold turns marked '\\n\\nAssistant:'; of a row of answers "
            "alone name what was asked, a text or turns: --column prompt=KEY"
        )
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if not content.strip():
            raise BadRow(f"turn {len(messages) + 1} of the transcript ({role}) is empty")
        messages.append(Message(role=role, content=content.strip()))
    return tuple(messages)


def open_transcript(text: str) -> Turns | None:
    """The turns of a prompt that is written as a transcript and ends where the answer begins; None: a plain text."""
    stripped = text.strip()
    if not (stripped.startswith("Human:") and stripped.endswith("\n\nAssistant:")):
        return None
    return parse_transcript("\n\n" + stripped.removesuffix("Assistant:").rstrip())


def marked_transcript(text: str, key: str) -> Turns:
    """Turns of a text with the marks `USER:` and `ASSISTANT:` (Glaive's), or `Human:` and `Assistant:`, or those of
    Guanaco (`### Human:`), OIG (`<human>:`), Zephyr (`<|user|>`) and ChatML (`<|im_start|>user`).

    Raises:
        BadRow: it does not begin with such a mark.
    """
    if _OTHER_MARKS.match(text.lstrip()):
        parts = [_TURN_ENDS.sub("", part) for part in _OTHER_MARKS.split(text.strip()) if part is not None]
    else:
        parts = _MARKED.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(
            f"'{key}' must be a list of messages, or a text of turns marked 'USER:' and 'ASSISTANT:', '### Human:', "
            f"'<human>:', '<|user|>' or '<|im_start|>user'; --column prompt={key} --column completion=KEY reads it as "
            "a text to which KEY is the answer"
        )
    return tuple(_marked_turns(parts, key))


_ASKS = re.compile(r"(?:\A|\n)[ \t]*(?:Human|User|USER|Customer)[ \t]*:")
_ANSWERS = re.compile(r"(?:\n|[.?!][ \t]+)[ \t]*(?:Assistant|ASSISTANT|AI|Bot)[ \t]*:")


def is_transcript(text: str) -> bool:
    """Whether a text holds turns of two speakers, marked in it."""
    if "sistant:" not in text and "SISTANT:" not in text and "AI:" not in text and "Bot:" not in text:
        return "[/INST]" in text or "<bot>:" in text or "<|assistant|>" in text or "<|im_start|>assistant" in text
    if "### Assistant:" in text or "<bot>:" in text or ("USER:" in text and "ASSISTANT:" in text):
        return True
    return bool(_ASKS.search(text) and _ANSWERS.search(text))


def _marked_turns(parts: list[str], key: str) -> Iterator[Message]:
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = _SPEAKERS[speaker.lower()]
        text = content.replace("<|endoftext|>", "").strip()
        call = _CALL.search(text) if role == "assistant" else None
        if call is None:
            yield Message(role=role, content=check_text(text, f"a turn of '{key}'"))
            continue
        # Glaive writes the arguments as JSON text in single quotes.
        inner = re.sub(r"'(\{.*\})'", lambda found: json.dumps(found[1]), call[1], flags=re.DOTALL)
        try:
            calls = [call_of(json.loads(inner), f"a turn of '{key}'")]
        except (ValueError, RecursionError) as error:
            raise BadRow(f"a call in '{key}' is no JSON: {inner[:60]!r}") from error
        yield Message(role=role, content=text[: call.start()].strip(), tool_calls=calls)


def _tools_in(system: Any) -> tuple[dict[str, Any], ...]:
    """The functions that Glaive's system text describes, as JSON objects one after the other."""
    if not isinstance(system, str) or "{" not in system:
        return ()
    decoder, position, functions = json.JSONDecoder(), system.index("{"), []
    while position >= 0:
        try:
            function, position = decoder.raw_decode(system, position)
        except (ValueError, RecursionError):
            return ()
        functions.append(function)
        position = system.find("{", position)
    named = all(isinstance(function, dict) and "name" in function for function in functions)
    return tools_of({"tools": functions}) if named else ()
