"""Plots as lists of SVG shapes for a page's template; they need no script and can be printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STYLE = """figure { margin: 0; max-width: 30rem; } figcaption { font-weight: 600; margin-bottom: .3rem; }
figure svg { display: block; width: 100%; height: auto; } figure text { fill: var(--dim); font-size: 11px; }
.axis { stroke: currentColor; opacity: .55; } .grid { stroke: var(--line); }
.ideal { stroke: currentColor; stroke-dasharray: 4 4; opacity: .55; }
.dot { fill: var(--note); stroke: var(--note); } .few { fill: none; stroke: var(--note); }
.whisker { stroke: var(--note); stroke-width: 1.5; }
.count { fill: var(--note); opacity: .3; } .preferred { fill: var(--note); fill-opacity: .28; stroke: var(--note); }
.other { fill: var(--warning); fill-opacity: .18; stroke: var(--warning); stroke-dasharray: 4 2; }
"""
MACRO = """{% macro chart(picture) %}<figure><figcaption>{{ picture.title }}</figcaption>
{{ drawing(picture) }}<p class="dim">{{ picture.note }}</p></figure>{% endmacro %}
{% macro drawing(picture) %}
<svg viewBox="0 0 {{ picture.width }} {{ picture.height }}" role="img" aria-label="{{ picture.label }}">
{% for shape in picture.shapes %}<{{ shape.tag }}
{%- for key, value in shape.attributes.items() %} {{ key }}="{{ value }}"{% endfor %}>
{%- if shape.title %}<title>{{ shape.title }}</title>{% endif %}{{ shape.text }}</{{ shape.tag }}>
{% endfor %}</svg>{% endmacro %}
"""
WIDTH, HEIGHT = 360, 300
_FEW = 10
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 342, 10, 250


@dataclass
class Picture:
    """An SVG picture: shapes in the order in which they are drawn."""

    title: str
    label: str
    """A text alternative for screen readers."""
    note: str = ""
    """An explanation below the picture."""
    width: int = WIDTH
    height: int = HEIGHT
    shapes: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tag: str, text: str = "", title: str = "", **attributes: Any) -> None:
        """Add one shape. `kind` is its class; `_` in an attribute is written as `-`."""
        kind = attributes.pop("kind", None)
        named = ({"class": kind} if kind else {}) | {key.replace("_", "-"): value for key, value in attributes.items()}
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in named.items()}
        self.shapes.append({"tag": tag, "attributes": rounded, "text": text, "title": title})

    def axes(
        self,
        x: Sequence[tuple[float, str]],
        y: Sequence[tuple[float, str]],
        x_name: str,
        y_name: str,
        box: tuple[float, float, float, float] = (_LEFT, _RIGHT, _TOP, _BOTTOM),
    ) -> None:
        """Add the axes of a box (left, right, top, bottom), ticks (position, text), and names with units."""
        left, right, top, bottom = box
        for place, text in y:
            self.add("line", kind="grid", x1=left, x2=right, y1=place, y2=place)
            self.add("text", text, x=left - 5, y=place + 4, text_anchor="end")
        for place, text in x:
            self.add("line", kind="axis", x1=place, x2=place, y1=bottom, y2=bottom + 4)
            self.add("text", text, x=place, y=bottom + 17, text_anchor="middle")
        self.add("line", kind="axis", x1=left, x2=right, y1=bottom, y2=bottom)
        self.add("line", kind="axis", x1=left, x2=left, y1=top, y2=bottom)
        self.add("text", x_name, x=(left + right) / 2, y=bottom + 36, text_anchor="middle")
        middle = (top + bottom) / 2
        self.add("text", y_name, text_anchor="middle", transform=f"translate(11 {middle}) rotate(-90)")


def reliability_chart(report: Mapping[str, Any]) -> Picture:
    """The reliability diagram: agreement by confidence with intervals, the diagonal, and the pairs in each bin."""
    rows = report["reliability"]
    most = max(row["n"] for row in rows)
    hollow = f" (hollow: fewer than {_FEW} pairs)" if any(row["n"] < _FEW for row in rows) else ""
    picture = Picture(
        "Reliability: agreement by predicted probability",
        "Fraction of votes that agree, by predicted probability: "
        + "; ".join(f"{row['confidence']:.0%} gives {row['value']:.0%}" for row in rows),
        f"Dots with 95% intervals{hollow}; dashed: perfectly calibrated; columns: pairs, {most:,} at most.",
    )

    def x(share: float) -> float:
        return _LEFT + (share - 0.5) * 2 * (_RIGHT - _LEFT)

    def y(share: float) -> float:
        return _BOTTOM - share * (_BOTTOM - _TOP)

    tenths = [tenth / 10 for tenth in range(5, 11)]
    quarters = [quarter / 4 for quarter in range(5)]
    picture.axes(
        [(x(share), f"{share:.0%}") for share in tenths],
        [(y(share), f"{share:.0%}") for share in quarters],
        "predicted probability of the preferred answer",
        "votes that agree",
    )
    for row in rows:
        height = max(1.0, 40 * row["n"] / most)
        picture.add(
            "rect",
            kind="count",
            x=x(row["low"]) + 1,
            y=_BOTTOM - height,
            width=x(row["high"]) - x(row["low"]) - 2,
            height=height,
            title=f"{row['low']:.1%} to {row['high']:.1%}: {row['n']:,} pairs",
        )
    picture.add("line", kind="ideal", x1=x(0.5), y1=y(0.5), x2=x(1), y2=y(1))
    for row in rows:
        x_position, (low, high) = x(row["confidence"]), row["ci"]
        picture.add("line", kind="whisker", x1=x_position, x2=x_position, y1=y(low), y2=y(high))
        agree = f"{row['value']:.1%} agree ({low:.1%} to {high:.1%})"
        about = f"{row['n']:,} pairs: confidence {row['confidence']:.1%}, {agree}"
        picture.add(
            "circle", kind="dot" if row["n"] >= _FEW else "few", cx=x_position, cy=y(row["value"]), r=4, title=about
        )
    return picture


def histogram_chart(report: Mapping[str, Any]) -> Picture:
    """Histograms of the scores of preferred and other answers."""
    scores = report["scores"]
    edges = scores["edges"]
    low, high = edges[0], edges[-1]
    most = max(max(scores[side]["counts"]) for side in ("preferred", "other"))
    means = {side: scores[side]["mean"] for side in ("preferred", "other")}
    picture = Picture(
        "Scores of preferred and other answers",
        f"Histogram of scores: mean {means['preferred']:.2f} of preferred answers, {means['other']:.2f} of the others",
        f"{scores['n']:,} pairs; the outer columns include outliers.",
    )

    def x(score: float) -> float:
        return _LEFT + (score - low) / (high - low) * (_RIGHT - _LEFT)

    def y(count: float) -> float:
        return _BOTTOM - count / most * (_BOTTOM - _TOP - 24)

    picture.axes(
        [(x(tick), text) for tick, text in nice_ticks(low, high)],
        [(y(count), f"{count:,}") for count in sorted({0, most // 2, most})],
        "score",
        "answers, one a pair",
    )
    for side in ("preferred", "other"):
        counts = scores[side]["counts"]
        steps = [f"M{x(low):.1f} {_BOTTOM}"]
        for start, end, count in zip(edges, edges[1:], counts, strict=False):
            steps.append(f"L{x(start):.1f} {y(count):.1f}L{x(end):.1f} {y(count):.1f}")
        picture.add("path", kind=side, d="".join(steps) + f"L{x(high):.1f} {_BOTTOM}Z")
    for index, (side, name) in enumerate((("preferred", "preferred by people"), ("other", "the other one"))):
        picture.add("rect", kind=side, x=_LEFT + 10 + 150 * index, y=_TOP, width=14, height=10)
        picture.add("text", name, x=_LEFT + 29 + 150 * index, y=_TOP + 9)
    return picture


def nice_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Two to `most` round numbers in a range, with their labels."""
    min_step = (high - low) / (most - 1)
    power = math.floor(math.log10(min_step))
    step = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**power >= min_step) * 10.0**power
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [multiple * step for multiple in range(math.ceil(low / step), math.floor(high / step) + 1)]
    digits = max(
        1, math.floor(math.log10(max(abs(low), abs(high), step) / step)) + 2
    )  # enough to distinguish two ticks
    form = f",.{decimals}f" if decimals <= 4 else f".{digits}g"
    return [(value, f"{value + 0.0:{form}}") for value in values]
