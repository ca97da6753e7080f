"""Check one conversation: the order of its turns, template markers in its contents, and answers that must be JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.data.duplicates import folded
from alignment.data.row_files import DataError
from alignment.errors import UserError
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


def parse_json(text: str) -> Any:
    """The value of a JSON text, as RFC 8259 has it: NaN and Infinity, which Python writes, are none.

    Raises:
        ValueError: it is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_schema(path: Path, option: str = "--schema") -> Callable[[str], str | None]:
    """The check of answers (`schema_validator`) against a file's JSON schema.

    Raises:
        UserError: jsonschema is not installed, or the file cannot be read or is no schema.
    """
    try:
        return schema_validator(json.loads(path.read_text(encoding="utf-8")), option)
    except ImportError:
        raise UserError(f"{option} needs the package jsonschema: pip install 'rlhf-alignment-suite[schema]'") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {option} takes a file with a JSON schema") from None
    except Exception as error:  # noqa: BLE001 - ValueError, or jsonschema's SchemaError, which need not be there
        raise UserError(f"{path}: not a JSON schema: {str(error).splitlines()[0]}") from None


def schema_validator(schema: Mapping[str, Any], option: str = "--schema") -> Callable[[str], str | None]:
    """A function that says what is wrong with an answer by a JSON schema; it fetches nothing from the network.

    Args:
        option: what gave the schema, for messages.

    Raises:
        ImportError: jsonschema is not installed.
        jsonschema.SchemaError: the schema itself is wrong.
        DataError: raised by the returned function if the schema refers to another file, or cannot be followed.
    """
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema)
    kind.check_schema(schema)
    validator = kind(schema, registry=Registry())

    def check(answer: str) -> str | None:
        try:
            value = parse_json(answer)
        except ValueError:
            return "not JSON"
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except Unresolvable as missing:
            raise DataError(f"{option}: {missing.ref!r} is not in the file; put everything into one schema") from None
        except RecursionError:
            raise DataError(f"{option}: the schema refers to itself without end; correct it") from None
        return None if error is None else f"{error.json_path}: {error.message[:200]}"

    return check
