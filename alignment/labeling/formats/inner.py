"""What lies inside other values of a row, by the paths that `--columns` names (`params.prompt`, `displayed_text.0`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alignment.data.messages import parsed


def inner_fix(row: Any) -> str:
    inner = [
        f"{key}.{name}"
        for key, value in (row.items() if isinstance(row, Mapping) else ())
        if isinstance(value, Mapping)
        for name in value
    ]
    return f" (a key inside another as {inner[0]})" if inner else ""


def with_inner(row: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The row with what lies inside its values under the names of their paths, such as `params.prompt`."""
    inner: dict[str, Any] = {}
    for name in names:
        value: Any = row
        for part in () if name in row else name.split("."):
            value = _single(parsed(value))
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                break
        else:
            inner |= {} if name in row else {name: _single(value)}
    return {**row, **inner} if inner else row


def _single(value: Any) -> Any:
    """What a list of one holds, as Scale AI writes its answers."""
    while isinstance(value, list) and len(value) == 1 and not isinstance(value[0], Mapping):
        value = value[0]
    return value
