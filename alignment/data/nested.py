"""Values that lie inside other keys (`request.messages`, `response.choices.0.message`): found by path, or suggested."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.keys import is_api_answer, known_key, plain_key, repeats
from alignment.data.messages import ROLES, parsed

MISSING = object()
"""Stands where a path leads to nothing."""
_DEEPEST = 6
_ASKED = ("prompt", "question", "query", "instruction", "input", "user_message", "message")
_ANSWERED = ("completion", "response", "answer", "output", "reply", "text", "content", "output_text")
_SENDERS = ("role", "from", "sender", "author", "speaker", "sender_type", "author_role")


def inner_value(row: Mapping[str, Any], path: str) -> Any:
    """What a dotted path leads to: keys of objects and places of lists from 0; MISSING if it leads to nothing."""
    value: Any = row
    for part in re.sub(r"\[(\d+)\]", r".\1", path).split("."):
        value = parsed(value)
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            return MISSING
    return value


def lost_beside(row: Mapping[str, Any], path: str, named: Mapping[str, str | None]) -> str | None:
    """What stands beside a value that a path leads to and changes the prompt; with the option that reads it."""
    parent, _, last = path.rpartition(".")
    beside = inner_value(row, parent) if parent else None
    for name, value in beside.items() if isinstance(beside, Mapping) else ():
        known = known_key(name)
        if name == last or known is None or known.changes == "answer" or value in (None, "", [], {}):
            continue
        if f"{parent}.{name}" in named.values() or set(known.names) & named.keys():
            continue
        if known.may_repeat and repeats(value, [inner_value(row, path)]):
            continue
        option = f"--column {known.names[0]}={parent}.{name}"
        return f"'{parent}.{name}' ({known.about}) stands beside '{path}': {option} reads it"
    return None


def suggested_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Which columns would read a row whose texts lie inside other keys; {} if none are seen."""
    found: dict[str, str] = {}
    for path, value in _inside(row):
        if _is_conversation(value):
            found.setdefault("messages" if _role(value[-1]) == "assistant" else "prompt", path)
        elif isinstance(value, Mapping) and (_role(value) == "assistant" or is_api_answer(value.get("choices"))):
            found.setdefault("completion", path)
        elif isinstance(value, str) and value.strip():
            name = plain_key(path.rpartition(".")[2])
            known = known_key(name)
            if known is not None and known.names[0] == "system":
                found.setdefault("system", path)
            elif name in _ASKED:
                found.setdefault("asked", path)
            elif name in _ANSWERED and "." in path:
                found.setdefault("answered", path)
    if "messages" in found:
        return {ours: found[ours] for ours in ("messages", "system") if ours in found}
    asked, answered = found.get("prompt") or found.get("asked"), found.get("completion") or found.get("answered")
    if asked is None or (answered and answered == asked):
        return {}
    named = {"system": found.get("system"), "prompt": asked, "completion": answered}
    return {ours: path for ours, path in named.items() if path}


def shown_columns(columns: Mapping[str, str]) -> str:
    """Columns as the commands and a config take them."""
    options = " ".join(f"--column {ours}={path}" for ours, path in columns.items())
    listed = ", ".join(f"{ours}: {path}" for ours, path in columns.items())
    return f"{options} (data.columns='{{{listed}}}')"


def _role(turn: Any) -> str | None:
    """Our name of a turn's role."""
    sender = next((turn[key] for key in _SENDERS if isinstance(turn.get(key), str)), "")
    return ROLES.get(sender.strip().lower())


def _is_conversation(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    return is_list and _role(value[0]) is not None and _role(value[-1]) is not None


def _inside(value: Any, path: str = "", depth: int = _DEEPEST) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a row by its path, the outer ones first; of lists the first item alone."""
    value = parsed(value)
    if path:
        yield path, value
    if not depth or _is_conversation(value):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if re.fullmatch(r"[\w-]+", str(key)):
                yield from _inside(inner, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, list) and value:
        yield from _inside(value[0], f"{path}.0", depth - 1)
