"""`alignment models diff` for people."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from alignment.terminal import console, one_line, screen

_TITLES = {
    "made_from": "Made from",
    "config": "Config",
    "metrics": "Metrics",
    "made": "How it was made",
    "code": "Code",
    "packages": "Packages",
}
_LONGEST = 60


def print_diff(found: dict[str, Any]) -> None:
    """Print what `alignment.models.diff.diff` found; parts in which nothing differs are named in one line."""
    out = screen()
    same = []
    for key, title in _TITLES.items():
        if found[key]:
            out.print(_pairs(title, found["versions"], found[key]))
            out.print()
        else:
            same.append(title.lower())
    _print_data(found)
    if "weights" in found:
        _print_weights(found["weights"], found["versions"])
    if same:
        out.print(Text(f"the same: {', '.join(same)}", style="dim"))


def _pairs(title: str, versions: list[str], pairs: dict[str, list[Any]]) -> Table:
    table = Table(title, *versions, box=None, pad_edge=False)
    for key, pair in pairs.items():
        table.add_row(*(Text(part) for part in (one_line(key), *map(_spelled, pair))))
    return table


def _spelled(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = one_line(text)
    # In a pipe nothing is cut: it may be compared by a program.
    return text if len(text) <= _LONGEST or not console().is_terminal else text[: _LONGEST - 1] + "\u2026"


def _print_data(found: dict[str, Any]) -> None:
    out, data = screen(), found["data"]
    first, second = found["versions"]
    for title, lines in (
        (f"Data of {first} alone", data["only_first"]),
        (f"Data of {second} alone", data["only_second"]),
        ("Data of both", data["both"]),
    ):
        if lines:
            out.print(Text(title, style="bold"))
            for line in lines:
                out.print(Text(f"  {one_line(line)}"))
    out.print()


def _print_weights(found: dict[str, Any], versions: list[str]) -> None:
    out = screen()
    table = Table(f"Layer ({found['compared']})", "tensors", "|B-A|/|A|", box=None, pad_edge=False)
    for layer, row in found["layers"].items():
        table.add_row(Text(one_line(layer)), str(row["tensors"]), _share(row["relative"]))
    table.add_row(Text("all", style="bold"), "", _share(found["relative"]))
    out.print(table)
    for name, (one, two) in found["other_shapes"].items():
        out.print(Text(f"not compared: {one_line(name)} is {one} in {versions[0]} and {two} in {versions[1]}"))
    for version, names in zip(versions, (found["only_first"], found["only_second"]), strict=True):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            out.print(Text(f"in {version} alone: {one_line(', '.join(names[:3]))}{more}"))
    if found["merged"]:
        out.print(Text(f"merged for this: {', '.join(found['merged'])}", style="dim"))
    out.print()


def _share(value: float | None) -> str:
    return "from zero" if value is None else f"{value:.4f}" if value >= 1e-4 or value == 0 else f"{value:.1e}"
