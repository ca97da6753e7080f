"""Read and check the strings, messages and tool calls of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data.row_files import BadRow
from alignment.templates.rendering import Message

ROLES = ("system", "user", "assistant", "tool")

Turns = tuple[Message, ...]


class Chat(NamedTuple):
    """A conversation with the tools that the assistant may call."""

    messages: Turns
    tools: tuple[dict[str, Any], ...] = ()


def key_names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The string under a key.

    Raises:
        BadRow: it is missing, not a string, or empty.
    """
    if key not in row:
        raise BadRow(f"no key '{key}'; found the keys {key_names(row)} (data.columns renames)")
    return check_text(row[key], f"'{key}'")


def check_text(value: Any, name: str) -> str:
    """The value, if it is a non-empty string; `name` names it in errors."""
    if not isinstance(value, str):
        raise BadRow(f"{name} must be a string, found {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character")
    return value


def messages_of(row: Mapping[str, Any], key: str) -> Turns:
    """The list of OpenAI messages under a key."""
    messages = []
    for index, item in enumerate(list_of(row, key), 1):
        name = f"message {index} of '{key}'"
        if not isinstance(item, Mapping):
            raise BadRow(f"{name} must be an object, found {type(item).__name__}")
        if item.get("role") not in ROLES:
            raise BadRow(f"{name} has role {item.get('role')!r}; expected {', '.join(ROLES)}")
        messages.append(message_of(item, name))
    return tuple(messages)


def list_of(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = row[key]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{key}' must be a list of messages, found {type(value).__name__ if value else 'an empty one'}")
    return value


def message_of(item: Mapping[str, Any], name: str) -> Message:
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
    """A call with its arguments as an object; OpenAI's files have them as a JSON string."""
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
    """The conversation followed by the assistant's answer."""
    return (*prompt, Message(role="assistant", content=answer))


def split_answer(messages: Turns) -> tuple[Turns, str]:
    """The turns before the assistant's last turn, and that turn's content."""
    if messages[-1]["role"] != "assistant":
        raise BadRow("the conversation must end with the assistant's turn")
    if len(messages) < 2:
        raise BadRow("the conversation has no turn before the assistant's")
    return messages[:-1], messages[-1]["content"]


def merge_turns(messages: Sequence[Message]) -> Turns:
    """Merge consecutive turns of one role; drop turns before the first question and after the last answer."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1] = Message(role=message["role"], content=f"{turns[-1]['content']}\n{message['content']}")
        elif turns or message["role"] != "assistant":
            turns.append(Message(role=message["role"], content=message["content"]))
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return tuple(turns)
