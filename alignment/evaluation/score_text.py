"""Scores and costs of each side, in tables and plain lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignment.terminal import one_line

_GIB = 2**30
MOST_SIDES_ACROSS = 3


def percent(value: float) -> str:
    """A share in whole percent, with a digit more near 0 and 1."""
    return f"{100 * value:.{int(0 < value < 0.02 or 0.98 < value < 1)}f}%"


def interval(estimate: Mapping[str, Any] | None) -> str:
    """`61% (55-67)`."""
    if estimate is None:
        return "-"
    low, high = estimate["ci"]
    return f"{percent(estimate['value'])} ({100 * low:.0f}-{100 * high:.0f})"


def score_tables(scores: Mapping[str, Sequence[Mapping[str, Any]]], box: Any) -> Iterator[RenderableType]:
    """Each judge's measures by side, a line for each pair, and the gaps between slices."""
    for judge, measures in scores.items():
        table = Table("side", *(measure["measure"] for measure in measures), box=box, pad_edge=False)
        table.columns[0].overflow = "fold"
        for side in measures[0]["sides"]:
            cells = (cell(measure["sides"][side], is_share=measure["is_share"]) for measure in measures)
            table.add_row(Text(one_line(side)), *cells)
        title = Text(one_line(f"{judge}, mean of each side"), style="bold")
        lines = [Text(one_line(line)) for line in difference_lines(measures[0])]
        yield Group(title, table, *lines)
        for column, sides in measures[0]["gaps"].items():
            yield from _gaps(judge, measures[0], column, sides, box)


def cell(estimate: Mapping[str, Any] | None, *, is_share: bool) -> str:
    """A mean with its interval, as a table shows it."""
    if is_share or estimate is None:
        return interval(estimate)
    low, high = estimate["ci"]
    return f"{estimate['value']:.2f} ({low:.2f} to {high:.2f})"


def _points(value: float, *, is_share: bool) -> str:
    return f"{100 * value:.0f}" if is_share else f"{value:.2f}"


def difference_lines(measure: Mapping[str, Any]) -> Iterator[str]:
    """A plain line for each pair: who leads in this measure, or that nothing is shown."""
    for row in measure["differences"]:
        a, b, estimate = row["a"], row["b"], row["estimate"]
        if estimate is None:
            continue
        unit = " points" if measure["is_share"] else ""
        value, (low, high) = estimate["value"], estimate["ci"]
        if high < 0:
            a, b, value, low, high = b, a, -value, -high, -low
        size, least, most = (_points(each, is_share=measure["is_share"]) for each in (value, low, high))
        if low > 0:
            yield f"{measure['measure']}: {a} leads {b} by {size}{unit} (95% interval {least} to {most})"
        else:
            yield f"{measure['measure']}: no difference shown, {a} less {b} is {size}{unit} ({least} to {most})"


def _gaps(
    judge: str, measure: Mapping[str, Any], column: str, sides: Mapping[str, Any], box: Any
) -> Iterator[RenderableType]:
    """The means by slice, and a line for each side. More sides than a screen has room for get their lines alone."""
    lines = [Text(one_line(gap_line(measure, column, side, parts))) for side, parts in sides.items()]
    title = Text(one_line(f"{judge}, {measure['measure']} by {column}"))
    if len(sides) > MOST_SIDES_ACROSS:
        yield Group(title, *lines)
        return
    table = Table(one_line(column), "prompts", *map(one_line, sides), box=box, pad_edge=False)
    for each in table.columns:
        each.overflow = "fold"
    for name in next(iter(sides.values())):
        means = [(parts[name]["n"], parts[name]["mean"]) for parts in sides.values()]
        shown = (cell(mean, is_share=measure["is_share"]) for _, mean in means)
        table.add_row(Text(one_line(name)), str(means[0][0]), *shown)
    yield Group(title, table, *lines)


def gap_line(measure: Mapping[str, Any], column: str, side: str, parts: Mapping[str, Any]) -> str:
    """The gap that stands out most from its interval, in words; or that none is shown."""
    gaps = {name: part["gap"] for name, part in parts.items() if part["gap"] is not None}
    shown = {name: gap for name, gap in gaps.items() if gap["ci"][0] > 0 or gap["ci"][1] < 0}
    if not shown:
        return f"no gap between values of {column} is shown for {side}"
    name = max(shown, key=lambda each: abs(shown[each]["value"]))
    gap = shown[name]
    value, *ends = sorted((abs(x) for x in (gap["value"], *gap["ci"])), key=lambda x: x != abs(gap["value"]))
    size, low, high = (_points(x, is_share=measure["is_share"]) for x in (value, min(ends), max(ends)))
    unit = " points" if measure["is_share"] else ""
    where = "above" if gap["value"] > 0 else "below"
    return f"{side}: {column}={name} is {size}{unit} {where} the others ({low} to {high})"


def cost_table(sides: Mapping[str, Mapping[str, Any]], box: Any) -> RenderableType | None:
    """Speed, latency, memory and price of each side; None where nothing of it is known."""
    costs = {side: figures["costs"] for side, figures in sides.items()}
    names = {
        "tokens_per_second": ("tokens/s", lambda x: f"{x:.3g}" if x < 1000 else f"{x:.0f}"),
        "latency_p50": ("p50 s", lambda x: f"{x:.2g}"),
        "latency_p95": ("p95 s", lambda x: f"{x:.2g}"),
        "peak_bytes": ("peak GiB", lambda x: f"{x / _GIB:.1f}"),
        "price_per_1000": ("per 1,000", lambda x: f"{x:.3g}"),
    }
    known = [name for name in names if any(each[name] is not None for each in costs.values())]
    if not known:
        return None
    table = Table("side", *(names[name][0] for name in known), box=box, pad_edge=False)
    table.columns[0].overflow = "fold"
    for side, each in costs.items():
        cells = ("-" if each[name] is None else names[name][1](each[name]) for name in known)
        table.add_row(Text(one_line(side)), *cells)
    lines = []
    if "price_per_1000" in known:
        prices = ", ".join(
            f"{side} {each['price_per_1000']:.3g}" for side, each in costs.items() if each["price_per_1000"] is not None
        )
        lines.append(Text(one_line(f"price of 1,000 answers: {prices}")))
    return Group(table, *lines)
