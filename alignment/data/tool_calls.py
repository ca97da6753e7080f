"""Tools and the calls of them, in the ways that files write them, as OpenAI's `tools` and `tool_calls`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment.data.row_files import BadRow


def call_of(call: Any, name: str) -> dict[str, Any]:
    """A call with its arguments as an object. Files also have the arguments as JSON text, or no `function` around.

    Raises:
        BadRow: it has no name, or its arguments are no object; `name` says which message it stands in.
    """
    try:
        outer = {key: value for key, value in call.items() if value is not None}
        inner = outer.pop("function", None)
        if inner is None:
            inner = {key: outer.pop(key) for key in ("name", "arguments", "input") if key in outer}
            outer.pop("type", None)
        arguments = inner["arguments"] if "arguments" in inner else inner["input"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else without_none(arguments or {})
        if not isinstance(inner["name"], str) or not isinstance(arguments, dict):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise BadRow(
            f'{name}: each of tool_calls must be {{"function": {{"name": ..., "arguments": ...}}}} with a JSON object '
            f"as arguments, found {str(call)[:80]}"
        ) from None
    return {"type": "function", **outer, "function": {"name": inner["name"], "arguments": arguments}}


def calls_in_text(text: str, name: str) -> list[dict[str, Any]]:
    """The calls that a turn of the role `function_call` holds as JSON: one, or a list of them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is a function call, but no JSON: {text[:60]!r}") from None
    return [call_of(call, name) for call in (value if isinstance(value, list) else [value])]


def tools_of(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools of a row: OpenAI's `tools`, its older `functions`, or Anthropic's with an `input_schema`."""
    tools = row.get("tools") or row.get("functions") or []
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return tuple(_tool(tool) for tool in tools)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise BadRow('\'tools\' must be a list of {"type": "function", "function": {"name": ...}}') from None


def with_schemas(tools: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The tools with parameters as a JSON schema; xLAM's files have the properties of one alone."""

    def schema(function: dict[str, Any]) -> dict[str, Any]:
        given = function.get("parameters")
        is_schema = not isinstance(given, Mapping) or "properties" in given or given.get("type") == "object"
        return function if is_schema else {**function, "parameters": {"type": "object", "properties": given}}

    return tuple({**tool, "function": schema(tool["function"])} for tool in tools)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    outer = without_none(tool)
    function = outer.pop("function", None)
    if function is None:
        function, outer = {key: value for key, value in outer.items() if key != "type"}, {}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    if not isinstance(function["name"], str):
        raise ValueError
    return {"type": "function", **outer, "function": function}


def without_none(value: Any) -> Any:
    """A value without the entries that are None: a Parquet column gives each object the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value]
    return value
