"""What the assistant thought before its answer: handed to templates that read it, and found in what they render."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names that templates have for it (Qwen3's, GPT-OSS's, others')."""
_THINK = re.compile(r"\A\s*<think>(.*?)</think>(.*)\Z", re.DOTALL)


class Thought(NamedTuple):
    """The reasoning of a turn and the answer after it, both stripped."""

    reasoning: str
    answer: str


def reads_reasoning(template: str) -> list[str]:
    """The names under which a template reads reasoning."""
    return [name for name in REASONING if re.search(rf"\.{name}\b|['\"]{name}['\"]", template)]


def with_reasoning(template: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their `reasoning_content` under the names that the template reads, or without it."""
    names = reads_reasoning(template)
    given = [
        ({key: value for key, value in message.items() if key != "reasoning_content"}, message.get("reasoning_content"))
        for message in messages
    ]
    return [{**rest, **dict.fromkeys(names, thought)} if thought else rest for rest, thought in given]


def thought_of(message: Mapping[str, Any]) -> Thought | None:
    """The reasoning of a turn: beside its content, or in it between <think> and </think>."""
    if message.get("reasoning_content"):
        return Thought(message["reasoning_content"].strip(), message["content"].strip())
    found = _THINK.match(message["content"]) if "</think>" in message["content"] else None
    if found is None or not found[1].strip() or not found[2].strip():
        return None
    return Thought(found[1].strip(), found[2].strip())
