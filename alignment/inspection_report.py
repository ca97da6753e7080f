"""What `alignment data check` found, for people (a terminal, a page) and for programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.text import Text

from alignment.terminal import one_line

Level = Literal["error", "warning", "note"]

_SHOWN_PLACES = 3
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Lengths:
    """The spread of a length: p10 is what a tenth of the rows do not reach."""

    min: int
    p10: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float


@dataclass(frozen=True)
class SetAside:
    """One reason why rows cannot be used, and where."""

    reason: str
    count: int
    places: list[str]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know: `error` spoils training, `warning` may, `note` is for information."""

    level: Level
    kind: str
    count: int
    text: str
    places: list[str]


@dataclass(frozen=True)
class Report:
    """What is in data files. Texts of the rows are not in it, and personal data is counted, not shown."""

    sources: list[str]
    rows: int
    kept: int
    held_out: int
    shapes: dict[str, int]
    set_aside: list[SetAside]
    unit: str
    max_length: int | None
    lengths: dict[str, Lengths]
    trained_share: float | None
    personal_data: dict[str, int]
    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for the head of a page."""
        shapes = ", ".join(f"{name}: {count}" for name, count in self.shapes.items())
        trained = "" if self.trained_share is None else f"{self.trained_share:.1%} of the {self.unit}"
        facts = [
            ("rows", f"{self.rows:,} read, {self.kept:,} usable, {self.rows - self.kept:,} set aside"),
            ("split", f"{self.kept - self.held_out:,} to train on, {self.held_out:,} held out"),
            ("shapes", shapes),
            ("trained on", trained),
            ("max_length", "" if self.max_length is None else f"{self.max_length} tokens"),
        ]
        return [(name, value) for name, value in facts if value]


def text_lines(report: Report) -> Iterator[Text]:
    """The report as lines for a terminal, everything untrusted made safe to print."""
    folders = {os.path.join(os.path.dirname(source), "") for source in report.sources}
    folder = folders.pop() if len(folders) == 1 else ""  # said once, not before each place
    yield Text(one_line(", ".join(report.sources)), style="bold")
    for name, value in report.facts():
        yield Text.assemble((f"  {name:<12}", "dim"), one_line(value))
    if report.lengths:
        columns = list(asdict(next(iter(report.lengths.values()))))
        yield Text()
        yield Text(f"  {report.unit + ' in a':<14}" + "".join(f"{column:>8}" for column in columns), style="dim")
        for name, lengths in report.lengths.items():
            yield Text(f"  {name:<14}" + "".join(f"{value:>8}" for value in asdict(lengths).values()))
    if report.set_aside:
        yield Text()
        yield Text("  set aside", style="dim")
        for item in report.set_aside:
            yield Text.assemble(
                (f"  {item.count:>7}  ", "red"), one_line(item.reason), (_at(item.places, folder), "dim")
            )
    yield Text()
    for finding in report.findings:
        label = (f"  {finding.level:<8} ", _STYLES[finding.level])
        yield Text.assemble(label, one_line(finding.text), (_at(finding.places, folder), "dim"))
    if not report.findings:
        yield Text("  nothing to complain of", style="green")


def _at(places: list[str], folder: str) -> str:
    shown = "; ".join(one_line(place.replace(folder, "")) for place in places[:_SHOWN_PLACES])
    return f"  [{shown}{'; ...' if len(places) > _SHOWN_PLACES else ''}]" if shown else ""


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data check</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td { overflow-wrap: anywhere; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.error, .warning, .note { border-left: .4rem solid; padding: .2rem .8rem; margin: .5rem 0; }
.error { border-color: #c33; } .warning { border-color: #c90; } .note { border-color: #39c; }
details { font-size: .9rem; } li { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ report.sources | join(", ") }}</h1>
<table>
{% for name, value in report.facts() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Findings</h2>
{% for finding in report.findings %}<div class="{{ finding.level }}"><strong>{{ finding.level }}</strong>
{{ finding.text }}{{ places(finding.places) }}</div>
{% else %}<p>Nothing to complain of.</p>
{% endfor %}
{% if report.lengths %}<h2>Lengths in {{ report.unit }}</h2>
<table><tr><th></th>
{% for column in columns %}<th scope="col" class="number">{{ column }}</th>{% endfor %}</tr>
{% for name, lengths in report.lengths.items() %}<tr><th scope="row">{{ name }}</th>
{% for column in columns %}<td class="number">{{ lengths[column] }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% if report.set_aside %}<h2>Set aside</h2>
<table><tr><th scope="col" class="number">rows</th><th scope="col">reason</th></tr>
{% for item in report.set_aside %}<tr><td class="number">{{ item.count }}</td>
<td>{{ item.reason }}{{ places(item.places) }}</td></tr>
{% endfor %}</table>{% endif %}
</body>
</html>
"""
_PLACES = """{% macro places(list) %}{% if list %}<details><summary>where</summary><ul>
{% for place in list[:1000] %}<li>{{ place }}</li>
{% endfor %}</ul></details>{% endif %}{% endmacro %}"""


def html_page(report: Report) -> str:
    """The report as one HTML page that loads nothing and runs nothing; every text in it is escaped."""
    from jinja2 import Environment

    def safe(value: Any) -> Any:  # a plain text only: what a macro returns is markup already
        return one_line(value) if type(value) is str else value

    environment = Environment(autoescape=True, trim_blocks=True, finalize=safe)
    columns = list(Lengths.__dataclass_fields__)
    return environment.from_string(_PLACES + _PAGE).render(report=report, columns=columns)
