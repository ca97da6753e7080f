"""The report as one HTML page that loads nothing and runs nothing."""

from __future__ import annotations

from typing import Any

from alignment.inspection.report import LENGTH_NAMES, Report, common_folder
from alignment.terminal import one_line

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data check</title>
<style>
:root { color-scheme: light dark; --error: #c62828; --warning: #b26a00; --note: #1565c0; --good: #2e7d32;
  --line: #8884; --soft: #8881; --dim: #666; }
@media (prefers-color-scheme: dark) {
  :root { --error: #ff8a80; --warning: #ffb74d; --note: #82b1ff; --good: #81c784; --dim: #aaa; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: 0; } .source { color: var(--dim); overflow-wrap: anywhere; margin-bottom: 1.2rem; }
.scroll { overflow-x: auto; } .facts th { width: 7.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } thead th { color: var(--dim); font-weight: 400; }
td { overflow-wrap: anywhere; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.finding { border-left: .3rem solid; border-radius: .2rem; background: var(--soft); padding: .6rem .9rem;
  margin: .6rem 0; }
.finding b { text-transform: capitalize; margin-right: .4rem; }
.error { border-color: var(--error); } .warning { border-color: var(--warning); } .note { border-color: var(--note); }
.error > p > b, h1.error { color: var(--error); } .warning > p > b, h1.warning { color: var(--warning); }
.note > p > b { color: var(--note); } h1.note { color: var(--good); }
.advice::before { content: "\\2192\\00a0"; } .advice { color: var(--dim); }
.dim { color: var(--dim); font-size: .9rem; margin-top: .4rem; }
details { font-size: .9rem; margin-top: .2rem; } summary { cursor: pointer; color: var(--dim); }
ul { margin: .3rem 0; padding-left: 1.2rem; max-height: 20rem; overflow-y: auto; } li { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } rect { fill: var(--note); opacity: .75; }
svg text { fill: var(--dim); font-size: 11px; } .limit { stroke: var(--error); stroke-dasharray: 4 3; }
.axis { stroke: var(--line); }
</style>
</head>
<body>
<h1 class="{{ worst }}">{{ report.verdict }}</h1>
<p class="source">{{ report.sources | join(", ") }}</p>
<table class="facts">
{% for name, value in report.facts() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>What was found</h2>
{% for finding in report.findings %}<div class="finding {{ finding.level }}">
<p><b>{{ finding.level }}</b> {{ finding.text }}</p>
{% if finding.advice %}<p class="advice">{{ finding.advice }}</p>{% endif %}
{{ places(finding.places, finding.count) }}</div>
{% else %}<p>Nothing to complain of.</p>
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
</body>
</html>
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


def html_page(report: Report) -> str:
    """The report as a page; every text in it is escaped."""
    from jinja2 import Environment

    def safe(value: Any) -> Any:  # a plain text only: what a macro returns is markup already
        return one_line(value) if type(value) is str else value

    environment = Environment(autoescape=True, trim_blocks=True, finalize=safe)
    worst = report.findings[0].level if report.findings else "note"
    return environment.from_string(_MACROS + _PAGE).render(
        report=report,
        length_names=LENGTH_NAMES,
        worst=worst if report.rows else "error",
        bars=_bars(report),
        folder=common_folder(report),
    )


def _bars(report: Report) -> dict[str, Any]:
    """The histogram of lengths as rectangles in a picture of 640 x 120."""
    width, counts = report.histogram.width, report.histogram.counts
    step, most = 640 / max(1, len(counts)), max([1, *counts])
    bars, ticks = [], []
    for number, count in enumerate(counts):
        height = 0 if not count else max(1.0, 110 * count / most)
        start, last = number * width, number == len(counts) - 1
        span = f"{start:,} or more" if last else f"{start:,} to {start + width - 1:,}"
        title = f"{span} {report.unit}: {count:,} rows"
        bars.append({"x": number * step + 1, "y": 120 - height, "width": step - 2, "height": height, "title": title})
        if number % 5 == 0:
            ticks.append({"x": number * step, "anchor": "start" if number == 0 else "middle", "text": f"{start:,}"})
    ticks.append({"x": 640, "anchor": "end", "text": f"{len(counts) * width:,} {report.unit} or more"})
    limit = None if report.max_length is None else report.max_length / width * step
    return {
        "bars": bars,
        "ticks": ticks,
        "limit": limit if limit is not None and limit < 640 else None,
        "label": f"Rows by length in {report.unit}",
    }
