"""Table rows for metrics with intervals, each with a bar; all bars of a table share one scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_VOTES = 10
"""Minimum number of votes for a bootstrap interval."""
SUSPICIOUS = 0.80
"""Accuracy above which leakage is likely: two people agree on 63 to 77% of such pairs (Ouyang et al. 2022, section 3.4;
Stiennon et al. 2020, appendix C.2; Bai et al. 2022, section 2.1)."""

STYLE = """.bars { table-layout: fixed; } .bars th { white-space: normal; font-weight: 400; }
.bars .name { width: 34%; }
.bars .number { width: 22%; } .bars small { display: block; color: var(--dim); font-size: .8rem; line-height: 1.3; }
.bars .main th, .bars .main .number b { font-weight: 600; } .bars .number b { font-weight: 400; }
.bars td, .bars th { vertical-align: middle; } .bars td:last-child { padding-right: 0; }
.bars svg { display: block; width: 100%; height: 1.5rem; }
.range { stroke: var(--note); stroke-width: 3; opacity: .45; } .mean { stroke: var(--note); stroke-width: 4; }
.chance { stroke: currentColor; stroke-dasharray: 3 3; opacity: .5; } .beyond { fill: var(--warning); opacity: .12; }
.scale { position: relative; height: 1.2rem; color: var(--dim); font-size: .8rem; }
.scale span { position: absolute; white-space: nowrap; transform: translateX(-50%); }
"""
MACRO = """{% macro bars(rows, scale) %}<table class="bars">
<thead><tr><td class="name"></td><td class="number"></td><td><div class="scale" aria-hidden="true">
{% for tick in scale.ticks %}<span style="left:{{ tick.at }}%">{{ tick.text }}</span>{% endfor %}
</div></td></tr></thead>
{% for row in rows %}<tr{% if row.main %} class="main"{% endif %}><th scope="row">{{ row.name }}
<small>{{ row.about }}</small></th><td class="number"><b>{{ row.value }}</b><small>{{ row.range }}</small></td>
<td><svg viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label="{{ row.name }}: {{ row.value }},
{{ row.range }}">{% if scale.beyond is not none %}
<rect class="beyond" x="{{ scale.beyond }}" y="0" width="{{ 100 - scale.beyond }}" height="24"></rect>{% endif %}
{% for tick in scale.ticks if tick.dashed %}<line class="chance" x1="{{ tick.at }}" x2="{{ tick.at }}" y1="0" y2="24"
vector-effect="non-scaling-stroke"></line>{% endfor %}
{% if row.enough %}<line class="range" x1="{{ row.low }}" x2="{{ row.high }}" y1="12" y2="12"
vector-effect="non-scaling-stroke"></line>{% endif %}
<line class="mean" x1="{{ row.at }}" x2="{{ row.at }}" y1="5" y2="19" vector-effect="non-scaling-stroke"></line>
</svg></td></tr>
{% endfor %}</table>{% endmacro %}
"""


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def percents(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


@dataclass(frozen=True)
class ShareScale:
    """The range of fractions that bars are drawn on, with reference lines.

    Args:
        marks: dashed lines, each with its text.
        beyond: fraction above which the background is shaded and labelled.
    """

    low: float
    high: float
    marks: tuple[tuple[float, str], ...] = ((0.5, "50%"),)
    beyond: float | None = SUSPICIOUS

    @classmethod
    def around(cls, rows: Iterable[Mapping[str, Any]]) -> ShareScale:
        """A scale for accuracies: from guessing to suspicious values, widened to whole tenths for the intervals of
        large rows."""
        ends = [end for row in rows if row["n"] >= 100 or row["main"] for end in row["ends"]]
        return cls(math.floor(10 * min([0.4, *ends])) / 10, math.ceil(10 * max([0.9, *ends])) / 10)

    @classmethod
    def holding(cls, rows: Sequence[Mapping[str, Any]], marks: Sequence[tuple[float, str]]) -> ShareScale:
        """A scale for any fractions: whole tenths that hold all intervals and lines."""
        ends = [*(end for row in rows for end in row["ends"]), *(at for at, _ in marks)]
        low, high = math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10
        return cls(low, high if high > low else low + 0.1, tuple(marks), None)

    def at(self, share: float) -> float:
        return round(100 * min(1.0, max(0.0, (share - self.low) / (self.high - self.low))), 2)

    def place(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add the positions of the bar to each row."""
        for row in rows:
            row |= {"at": self.at(row["mean"]), "low": self.at(row["ends"][0]), "high": self.at(row["ends"][1])}

    def drawn(self) -> dict[str, Any]:
        ticks = [{"at": self.at(share), "text": text, "dashed": True} for share, text in self.marks]
        if self.beyond is not None:
            ticks.append({"at": self.at(self.beyond), "text": f"{self.beyond:.0%}", "dashed": False})
        return {"ticks": ticks, "beyond": None if self.beyond is None else self.at(self.beyond)}


def bar(name: str, estimate: Mapping[str, Any], about: str = "", main: bool = False) -> dict[str, Any]:
    """A row from an estimate: a value with its interval and number of votes."""
    counted = f"{estimate['n']:,} {'vote' if estimate['n'] == 1 else 'votes'}"
    return {
        "name": name,
        "about": f"{about}; {counted}" if about else counted,
        "value": percent(estimate["value"]),
        "range": percents(estimate["ci"]) if estimate["n"] >= MIN_VOTES else "too few",
        "enough": estimate["n"] >= MIN_VOTES,
        "mean": estimate["value"],
        "ends": estimate["ci"],
        "n": estimate["n"],
        "main": main,
    }


_SLICES = {
    "difference": (
        "By score difference",
        "A calibrated model is right more often at larger differences.",
    ),
    "strength": ("By strength of the vote", ""),
    "length": (
        "By length of the preferred answer",
        "A model that prefers one length is right in one row only.",
    ),
    "size": ("By number of answers judged together", ""),
    "source": ("By source", ""),
    "labeler": ("By labeler", ""),
}


def slice_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Title, introduction and rows of each slice of the held-out votes that has several parts.

    Args:
        evaluation: a reward model's evaluation, as in `RUN/evaluation.json`.
    """
    return [
        (title, about, [bar(row["name"], row) for row in evaluation["by"][kind]])
        for kind, (title, about) in _SLICES.items()
        if len(evaluation["by"][kind]) > 1
    ]
