"""The report of a data check, as JSON and as terminal text; `page.py` renders it as HTML."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from alignment.config.sections import DataConfig
from alignment.data.row_files import DataError
from alignment.terminal import one_line

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_SHOWN_PLACES = 3
_SHOWN_REASONS = 10
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_BINS = 20


@dataclass(frozen=True)
class Lengths:
    """The distribution of a length; p10 is the 10th percentile."""

    min: int
    p10: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float


LENGTH_NAMES = {
    "min": "shortest",
    "p10": "10%",
    "p50": "median",
    "p90": "90%",
    "p99": "99%",
    "max": "longest",
    "mean": "mean",
}
"""Column headings: 90% of the rows are no longer than the value under "90%"."""


@dataclass(frozen=True)
class Histogram:
    """Rows by length: bin i holds `counts[i]` rows of length i * width to (i + 1) * width; the last holds the rest."""

    width: int
    counts: list[int]


@dataclass(frozen=True)
class SetAside:
    """One reason why rows cannot be used, and their places."""

    reason: str
    count: int
    places: list[str]


@dataclass(frozen=True)
class Finding:
    """One problem or note, with advice.

    An `error` makes training pointless or wrong, a `warning` may, and a `note` is for information.
    """

    level: Level
    kind: str
    count: int
    text: str
    advice: str
    places: list[str]


@dataclass(frozen=True)
class DataReport:
    """The result of a data check. It holds no text of the rows; personal data is counted, not shown."""

    sources: list[str]
    stage: str | None
    """Whose reading of the rows this is; None: each row as what it is."""
    readers: dict[str, int]
    """How many of the usable rows each stage learns from, where `stage` is None."""
    rows: int
    bad: int
    kept: int
    held_out: int
    shapes: dict[str, int]
    set_aside: list[SetAside]
    unit: str
    max_length: int | None
    lengths: dict[str, Lengths]
    histogram: Histogram
    trained_share: float | None
    personal_data: dict[str, int]
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """The report in one line."""
        errors, warnings = (sum(finding.level == level for finding in self.findings) for level in LEVELS[:2])
        look = f"{warnings} {'thing' if warnings == 1 else 'things'} to look at"
        use = f"for python -m {self.stage}" if self.stage else "to train on"
        if not self.rows:
            return "There are no rows"
        if errors:
            also = f", {look}" if warnings else ""
            return f"Not ready {use}: {errors} {'problem' if errors == 1 else 'problems'} to fix{also}"
        if warnings:
            return f"Usable {use}; {look} first" if self.stage else f"Can be trained on; {look} first"
        return f"Ready {use}"

    def to_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict} | asdict(self)

    def summary(self) -> dict[str, Any]:
        """The summary for a run's journal."""
        findings = {finding.kind: finding.count for finding in self.findings}
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "bad": self.bad,
            "kept": self.kept,
            "held_out": self.held_out,
            "trained_share": self.trained_share,
            "findings": findings,
        }

    def facts(self) -> list[tuple[str, str]]:
        """Names and values for the top of the report."""
        usable = f"{self.kept:,} usable"
        if self.kept + self.bad != self.rows:
            usable = f"{self.kept:,} usable examples in them"
        shapes = [name if len(self.shapes) == 1 else f"{name}: {count:,}" for name, count in self.shapes.items()]
        trained = "" if self.trained_share is None else f"{self.trained_share:.1%} of the {self.unit}"
        facts = [
            ("rows", f"{self.rows:,} read, {usable}, {self.bad:,} set aside"),
            ("split", f"{self.kept - self.held_out:,} to train on, {self.held_out:,} held out" if self.kept else ""),
            ("format", ", ".join(shapes)),
            ("stages", ", ".join(f"{stage}: {count:,} rows" for stage, count in self.readers.items())),
            ("trained on", f"{trained}: the assistant's" if self.trained_share else ""),
            ("limit", "" if self.max_length is None else f"{self.max_length:,} tokens a row (data.max_length)"),
        ]
        return [(name, value) for name, value in facts if value]


def refuse(report: DataReport, config: DataConfig) -> None:
    """Raise the first error of the report, if it has one.

    Raises:
        DataError: one line with the place, the problem and the fix.
    """
    source = ", ".join(report.sources)
    if not report.rows:
        raise DataError(f"{source}: the data set is empty; expected at least one row")
    for finding in sorted(report.findings, key=lambda each: each.kind != "set_aside"):  # the cause of others
        if finding.level == "error" and finding.kind == "set_aside":
            worst = report.set_aside[0]
            share = f"{finding.count} of {report.bad + report.kept} rows are bad"
            raise DataError(
                f"{worst.places[0]}: {worst.reason} ({share}, data.max_bad_share is {config.max_bad_share:g}); "
                "fix the rows or raise data.max_bad_share"
            )
        if finding.level == "error":
            first = f"; the first: {finding.places[0]}" if finding.places else ""
            raise DataError(f"{source}: {finding.text}{first}; {finding.advice}")


def percent(share: float) -> str:
    """A fraction as a percentage: 0.042 is 4.2%; a tiny fraction is not shown as 0.0%."""
    return "under 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def percentiles(values: NDArray[np.uint64]) -> Lengths:
    """Percentiles of lengths, (N,)."""
    low, median, high, most = (int(np.percentile(values, q)) for q in (10, 50, 90, 99))
    return Lengths(int(values.min()), low, median, high, most, int(values.max()), round(float(values.mean()), 1))


def histogram(values: NDArray[np.uint64]) -> Histogram:
    """Lengths, (N,), in twenty bins; the last one also holds outliers, about the longest 1%."""
    if not len(values):
        return Histogram(1, [])
    width = max(1, int(np.ceil((np.percentile(values, 99) + 1) / _BINS)))
    bins = np.minimum(values // np.uint64(width), _BINS - 1).astype(np.int64)
    return Histogram(width, np.bincount(bins, minlength=_BINS).tolist())


def text_lines(report: DataReport, width: int | None = None) -> Iterator[Text]:
    """Yield the report's lines for a terminal of `width` columns; untrusted text is made safe to print."""
    folder = common_folder(report)
    yield Text(report.verdict, style=_STYLES[_worst(report)] if report.rows else "bold red")
    yield Text(one_line(", ".join(report.sources)), style="bold")
    for name, value in report.facts():
        yield from _hanging(f"  {name:<12}", "dim", one_line(value), "", width)
    if report.lengths:
        yield Text()
        yield from _length_lines(report)
    if report.set_aside:
        yield Text()
        yield Text("  set aside", style="dim")
        for item in report.set_aside[:_SHOWN_REASONS]:
            yield from _hanging(f"  {item.count:>8,}  ", "red", one_line(item.reason), "", width)
            yield from _hanging(" " * 12, "", _at(item.places, item.count, folder), "dim", width)
        if len(report.set_aside) > _SHOWN_REASONS:
            yield Text(f"            and {len(report.set_aside) - _SHOWN_REASONS} other reasons", style="dim")
    for finding in report.findings:
        yield Text()
        yield from _hanging(f"  {finding.level:<8}  ", _STYLES[finding.level], one_line(finding.text), "", width)
        if finding.advice:
            yield from _hanging(" " * 12 + "-> ", "", one_line(finding.advice), "", width)
        if finding.places:
            yield from _hanging(" " * 12, "", _at(finding.places, finding.count, folder), "dim", width)


def _worst(report: DataReport) -> Level:
    return min((finding.level for finding in report.findings), key=LEVELS.index, default="note")


def _length_lines(report: DataReport) -> Iterator[Text]:
    yield Text(f"  {report.unit:<10}" + "".join(f"{name:>9}" for name in LENGTH_NAMES.values()), style="dim")
    for name, lengths in report.lengths.items():
        yield Text(f"  {name:<10}" + "".join(f"{value:>9,}" for value in asdict(lengths).values()))


def _hanging(label: str, label_style: str, text: str, style: str, width: int | None) -> Iterator[Text]:
    """A labelled text with a hanging indent."""
    lines = textwrap.wrap(text, max(20, width - len(label)), break_on_hyphens=False) if width else [text]
    for index, line in enumerate(lines or [""]):
        yield Text.assemble((label, label_style) if index == 0 else " " * len(label), (line, style))


def common_folder(report: DataReport) -> str:
    """The common prefix of the places, shown once at the top: a source folder, or the folder of the source files."""
    places = [place for finding in report.findings for place in finding.places]
    if len(report.sources) == 1 and any(place.startswith(inside := report.sources[0] + os.sep) for place in places):
        return inside
    folders = {os.path.join(os.path.dirname(source), "") for source in report.sources}
    return folders.pop() if len(folders) == 1 else ""


def _at(places: Sequence[str], count: int, folder: str) -> str:
    shown = "; ".join(one_line(place.replace(folder, "")) for place in places[:_SHOWN_PLACES])
    return f"at {shown}{'; ...' if count > len(places[:_SHOWN_PLACES]) else ''}"
