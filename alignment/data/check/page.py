"""Render the report as one self-contained HTML page without scripts."""

from __future__ import annotations

from typing import Any

from alignment.data.check.report import LENGTH_NAMES, DataReport, common_folder
from alignment.html import render

_STYLE = """svg { display: block; width: 100%; height: auto; } rect { fill: var(--note); opacity: .75; }
svg text { fill: var(--dim); font-size: 11px; } .limit { stroke: var(--error); stroke-dasharray: 4 3; }
.axis { stroke: var(--line); }
"""
_BODY = """<h1 class="{{ worst }}">{{ report.verdict }}</h1>
<p class="source">{{ report.sources | join(", ") }}</p>
<table class="facts">
{% for name, value in report.facts() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Findings</h2>
{% for finding in report.findings %}<div class="finding {{ finding.level }}">
<p><b>{{ finding.level }}</b> {{ finding.text }}</p>
{% if finding.advice %}<p class="advice">{{ finding.advice }}</p>{% endif %}
{{ places(finding.places, finding.count) }}</div>
{% else %}<p>No problems were found.</p>
{% endfor %}
{% if report.set_aside %}<h2>Rows set aside, by reason</h2>
<table><thead><tr><th scope="col" class="number">rows</th><th scope="col">reason</th></tr></thead>
{% for item in report.set_aside %}<tr><td class="number">{{ "{:,}".format(item.count) }}</td>
<td>{{ item.reason }}{{ places(item.places, item.count) }}</td></tr>
{% endfor %}</table>{% endif %}
{% if report.lengths %}<h2>Lengths in {{ report.unit }}</h2>
{{ chart(bars) }}
<div class="scroll"><table><thead><tr><th></th>
{% for name in length_names.values() %}<th scope="col" class="number">{{ name }}</th>{% endfor %}</tr></thead>
{% for name, lengths in report.lengths.items() %}<tr><th scope="row">{{ name }}</th>
{% for column in length_names %}<td class="number">{{ "{:,}".format(lengths[column]) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="dim">90% of the rows are no longer than the value under 90%.</p>{% endif %}
"""
_MACROS = """{% macro places(list, count) %}{% if list %}<details><summary>at {{ list[0].replace(folder, "") }}
{%- if count > 1 %} and {{ "{:,}".format(count - 1) }} more{% endif %}</summary><ul>
{% for place in list[:1000] %}<li>{{ place.replace(folder, "") }}</li>
{% endfor %}{% if count > list[:1000] | length %}<li>... (--bad FILE names all)</li>
{% endif %}</ul></details>{% endif %}{% endmacro %}
{% macro chart(bars) %}<svg viewBox="0 0 640 150" role="img" aria-label="{{ bars.label }}">
{% for bar in bars.bars %}<rect x="{{ bar.x }}" y="{{ bar.y }}" width="{{ bar.width }}" height="{{ bar.height }}">
<title>{{ bar.title }}</title></rect>
{% endfor %}<line class="axis" x1="0" y1="120" x2="640" y2="120"></line>
{% for tick in bars.ticks %}<text x="{{ tick.x }}" y="134" text-anchor="{{ tick.anchor }}">{{ tick.text }}</text>
{% endfor %}{% if bars.limit %}<line class="limit" x1="{{ bars.limit }}" y1="8" x2="{{ bars.limit }}" y2="120"></line>
<text x="{{ bars.limit - 4 }}" y="16" text-anchor="end">data.max_length</text>{% endif %}
</svg>{% endmacro %}"""


def html_page(report: DataReport) -> str:
    """The report as a page; every string in it is escaped."""
    worst = report.findings[0].level if report.findings else "note"
    return render(
        "Data check",
        _STYLE,
        _MACROS,
        _BODY,
        report=report,
        length_names=LENGTH_NAMES,
        worst=worst if report.rows else "error",
        bars=_bars(report),
        folder=common_folder(report),
    )


def _bars(report: DataReport) -> dict[str, Any]:
    """The histogram of lengths as rectangles in an SVG of 640 x 120."""
    width, counts = report.histogram.width, report.histogram.counts
    step, most = 640 / max(1, len(counts)), max([1, *counts])
    bars, ticks = [], []
    for index, count in enumerate(counts):
        height = 0 if not count else max(1.0, 110 * count / most)
        start, last = index * width, index == len(counts) - 1
        span = f"{start:,} or more" if last else f"{start:,} to {start + width - 1:,}"
        title = f"{span} {report.unit}: {count:,} rows"
        bars.append({"x": index * step + 1, "y": 120 - height, "width": step - 2, "height": height, "title": title})
        if index % 5 == 0:
            ticks.append({"x": index * step, "anchor": "start" if index == 0 else "middle", "text": f"{start:,}"})
    ticks.append({"x": 640, "anchor": "end", "text": f"{len(counts) * width:,} {report.unit} or more"})
    limit = None if report.max_length is None else report.max_length / width * step
    return {
        "bars": bars,
        "ticks": ticks,
        "limit": limit if limit is not None and limit < 640 else None,
        "label": f"Rows by length in {report.unit}",
    }
