"""Check one conversation: the order of its turns, template markers in its contents, and answers that must be JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.data.duplicates import folded
from alignment.data.row_files import DataError
from alignment.templates.rendering import Message

# A text with one of these was already rendered by a template, or would forge a turn in one.
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]"),
    *("<<SYS>>", "### Instruction", "### Response:", "\n\nHuman:", "\n\nAssistant:", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<start_of_turn>", "### Human:", "### Assistant:", "### User:"),
)


def turn_problems(messages: Sequence[Message], markers: Sequence[str] = MARKERS) -> list[str]:
    """The names of the checks on roles and contents that a usable conversation fails."""
    roles = [message["role"] for message in messages]
    dialogue = [role for role in roles if role != "system"]
    contents = [message["content"] for message in messages]
    problems = {
        "same_role": any(a == b != "tool" for a, b in itertools.pairwise(dialogue)),
        "assistant_first": len(dialogue) > 1 and dialogue[0] == "assistant",
        "system_later": "system" in roles[1:],
        "markers": any(marker in content for content in contents for marker in markers),
        "echo": roles[-2:] == ["user", "assistant"] and folded(contents[-1]) == folded(contents[-2]),
    }
    return [name for name, failed in problems.items() if failed]


def schema_validator(schema: Mapping[str, Any]) -> Callable[[str], str | None]:
    """A function that checks answers against a JSON schema; it fetches nothing from the network.

    Raises:
        ImportError: jsonschema is not installed.
        jsonschema.SchemaError: the schema itself is wrong.
        DataError: raised by the returned function if the schema refers to another file.
    """
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema)
    kind.check_schema(schema)
    validator = kind(schema, registry=Registry())

    def check(answer: str) -> str | None:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return "not JSON"
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except Unresolvable as missing:
            raise DataError(f"--schema: {missing.ref!r} is not in the file; put everything into one schema") from None
        return None if error is None else f"{error.json_path}: {error.message[:200]}"

    return check
