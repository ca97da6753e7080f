"""Panels as charts: what a script draws them from, and a still picture of each for paper and where no script runs.

A series of any length becomes at most `POINTS` buckets, each with its mean and its least and greatest value: a spike
of one step in 100,000 is still seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.reports.dashboards import HistogramPanel, LinePanel, Mark, ScatterPanel, family
from alignment.reports.pictures import Picture, nice_ticks
from alignment.runs.metrics import Metric, find
from alignment.runs.record import RunRecord, Series

POINTS = 600
STILL_POINTS = 240
"""Of a picture that nobody zooms."""
MAX_HISTOGRAMS = 40
COLOURS = 8
"""How many there are in report.css; further series take them again."""
WIDTH, HEIGHT = 400, 246
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 10, 204
_MANTISSA = 4


@dataclass
class Line:
    """One series as it is drawn.

    Args:
        name: in the legend.
        colour: number of its colour.
        dash: number of its dash, for a second metric of a run where runs have the colours.
        low, high: ends of a band around y; empty without one.
        band: what the band is.
        bad: steps whose value was not finite.
        steps: of a scatter's points.
    """

    name: str
    colour: int
    x: list[float]
    y: list[float]
    dash: int = 0
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    band: str = ""
    bad: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the script: without what is empty, and with as many digits as can be seen."""
        found: dict[str, Any] = {"name": self.name, "colour": self.colour, "x": _short(self.x), "y": _short(self.y)}
        for name in ("low", "high"):
            if values := getattr(self, name):
                found[name] = _short(values)
        return found | {name: value for name in ("dash", "band", "bad", "steps") if (value := getattr(self, name))}


@dataclass
class Chart:
    """What is drawn in one figure."""

    kind: str
    title: str
    about: str
    unit: str
    x_name: str
    share: bool = False
    """The values are shares, shown in percent."""
    log: bool = False
    lines: list[Line] = field(default_factory=list)
    marks: tuple[Mark, ...] = ()
    meanings: list[tuple[str, str]] = field(default_factory=list)
    """What each name in the legend means."""
    frames: list[dict[str, Any]] = field(default_factory=list)
    """Of a histogram: its steps, each with edges and counts of every line."""

    def as_json(self) -> dict[str, Any]:
        found = {"kind": self.kind, "unit": self.unit, "x": self.x_name, "share": self.share, "log": self.log}
        found |= {"lines": [line.as_json() for line in self.lines], "frames": self.frames}
        return found | {"marks": [mark.model_dump() for mark in self.marks]}

    @property
    def label(self) -> str:
        """What it shows, for those who cannot see it."""
        said = [
            f"{line.name} from {number(line.y[0], self.share)} to {number(line.y[-1], self.share)}"
            for line in self.lines
            if line.y
        ]
        return f"{self.title}: {'; '.join(said)}"


# --- numbers ---------------------------------------------------------------------------------------------------------


def number(value: float | None, share: bool = False) -> str:
    """A value in as few characters as tell it."""
    if value is None:
        return "-"
    if share:
        return f"{100 * value:.3g}%" if abs(value) < 10 else f"{100 * value:,.0f}%"
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.{_MANTISSA}g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def _short(values: Iterable[float]) -> list[float]:
    """Six digits are more than a screen shows, and a third of the bytes."""
    return [int(value) if value == int(value) else float(f"{value:.6g}") for value in values]


def unit_of(metrics: Iterable[Metric | None]) -> tuple[str, bool]:
    """What stands at the axis, and whether values are shares."""
    units = dict.fromkeys(metric.unit for metric in metrics if metric)
    return " or ".join(unit for unit in units if unit and unit != "share"), list(units) == ["share"]


# --- series ----------------------------------------------------------------------------------------------------------


def thin(series: Series, most: int = POINTS) -> Line:
    """A series in at most `most` buckets of as many steps; without a name and a colour as yet."""
    import numpy as np

    values = np.array([math.nan if value is None else value for value in series.values], dtype=np.float64)
    steps = np.array(series.steps, dtype=np.float64)
    good = np.isfinite(values)
    line = Line("", 0, [], [], bad=[int(step) for step in steps[~good][:POINTS]])
    steps, values = steps[good], values[good]
    if len(values) <= most:
        line.x, line.y = steps.tolist(), values.tolist()
        return line
    starts = np.unique(np.linspace(0, len(values), most, endpoint=False).astype(int))
    sizes = np.diff([*starts, len(values)])
    line.x = (np.add.reduceat(steps, starts) / sizes).tolist()
    line.y = (np.add.reduceat(values, starts) / sizes).tolist()
    line.low, line.high = np.minimum.reduceat(values, starts).tolist(), np.maximum.reduceat(values, starts).tolist()
    line.band = "least and greatest"
    return line


def line_chart(panel: LinePanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """Metrics of one run, or of several, over the steps; None where there is nothing to draw.

    Args:
        runs: what each is called, and itself.
    """
    chart = Chart("line", panel.title, panel.about, "", "step", log=panel.log, marks=panel.marks)
    used = []
    for place, (called, record) in enumerate(runs):
        names = [name for pattern in panel.metrics for name in family(pattern, record.metrics)]
        for order, name in enumerate(names):
            line = thin(record.metrics[name])
            if not line.x and not line.bad:
                continue
            line.name, line.colour, line.dash = _look(called, name, place, order, names, len(runs))
            if order == 0 and panel.low and panel.high and {panel.low, panel.high} <= record.metrics.keys():
                line.low, line.high = (_at(record.metrics[end], line.x) for end in (panel.low, panel.high))
                line.band = "95% interval"
            chart.lines.append(line)
            used.append(name)
    return _told(chart, stage, used)


def scatter_chart(panel: ScatterPanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """Metrics over another, a point for each step that has both."""
    metric = find(stage, panel.x)
    unit = f", {metric.unit}" if metric and metric.unit else ""
    x_name = f"square root of KL{unit}" if panel.sqrt_x and panel.x.endswith("kl") else f"{panel.x}{unit}"
    chart = Chart("scatter", panel.title, panel.about, "", x_name)
    used = []
    for place, (called, record) in enumerate(runs):
        over = record.metrics.get(panel.x, Series())
        at = {step: x for step, x in zip(over.steps, over.values, strict=True) if x is not None}
        for order, name in enumerate(family(panel.y[0], record.metrics) if len(panel.y) == 1 else panel.y):
            series = record.metrics.get(name, Series())
            pairs = zip(series.steps, series.values, strict=True)
            points = [(at[step], y, step) for step, y in pairs if y is not None and step in at]
            points = points[:: -max(1, len(points) // POINTS)][::-1]  # the last one is among them
            if len(points) < 2:
                continue
            xs = [math.copysign(math.sqrt(abs(x)), x) if panel.sqrt_x else x for x, _, _ in points]
            label, colour, dash = _look(called, name, place, order, panel.y, len(runs))
            line = Line(label, colour, xs, [y for _, y, _ in points], dash, steps=[step for _, _, step in points])
            chart.lines.append(line)
            used.append(name)
    return _told(chart, stage, used)


def histogram_chart(panel: HistogramPanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """Journalled histograms by step: of one name the first step behind the chosen one, two names over each other."""
    chart = Chart("histogram", panel.title, panel.about, "", "")
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for place, (called, record) in enumerate(runs):
        for order, name in enumerate(panel.names):
            events = [event for event in record.of_kind("histogram") if event.get("name") == name]
            if not events:
                continue
            label, colour, dash = _look(called, name, place, order, panel.names, len(runs))
            chart.lines.append(Line(label, colour, [], [], dash))
            for event in events:
                shape = {"edges": _short(event["edges"]), "counts": event["counts"]}
                found.setdefault(event["step"], {})[len(chart.lines) - 1] = shape
    steps = sorted(found)
    for step in steps[:: max(1, -(-len(steps) // MAX_HISTOGRAMS))] if steps else []:
        chart.frames.append({"step": step, "lines": found[step]})
    if steps and chart.frames[-1]["step"] != steps[-1]:
        chart.frames[-1] = {"step": steps[-1], "lines": found[steps[-1]]}
    metrics = [find(stage, name, histogram=True) for name in panel.names]
    chart.x_name = unit_of(metrics)[0] or panel.names[0]
    chart.meanings = [(name, metric.meaning) for name, metric in zip(panel.names, metrics, strict=True) if metric]
    return chart if chart.lines else None


def _look(called: str, name: str, place: int, order: int, names: Sequence[str], runs: int) -> tuple[str, int, int]:
    """Name, colour and dash of a series: metrics have the colours in a run's own report, runs where there are more."""
    if runs == 1:
        return name, order % COLOURS, 0
    return (called if len(names) == 1 else f"{called} {name}"), place % COLOURS, order % 3


def _at(series: Series, x: Sequence[float]) -> list[float]:
    """The values at steps, or the nearest before them; a missing one at the start is the first."""
    import numpy as np

    known = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    places = np.searchsorted([step for step, _ in known], x, side="right") - 1
    return [known[max(0, place)][1] for place in places.tolist()] if known else []


def _told(chart: Chart, stage: str, names: Sequence[str]) -> Chart | None:
    metrics = list(dict.fromkeys(metric for name in names if (metric := find(stage, name))))
    chart.unit, chart.share = unit_of(metrics)
    chart.meanings = [(metric.name, metric.meaning) for metric in metrics]
    return chart if chart.lines else None


# --- still pictures --------------------------------------------------------------------------------------------------


def still(chart: Chart) -> Picture:
    """The chart as it stands where no script runs."""
    picture = Picture(chart.title, chart.label, width=WIDTH, height=HEIGHT)
    if chart.kind == "histogram":
        _draw_histogram(picture, chart)
        return picture
    xs = [x for line in chart.lines for x in line.x]
    ys = [y for line in chart.lines for y in (*line.y, *line.low, *line.high)]
    if not xs or (chart.log and max(ys) <= 0):
        return picture
    log = chart.log
    if log:
        floor = min(y for y in ys if y > 0)
        ys = [max(y, floor) for y in ys]
    else:
        ys = [*ys, *(mark.at for mark in chart.marks)]
    x, x_ticks = _axis(min(xs), max(xs), _LEFT, _RIGHT, share=False)
    y, y_ticks = _axis(min(ys), max(ys), _BOTTOM, _TOP, chart.share, log)
    picture.axes(x_ticks, y_ticks, chart.x_name, "", box=(_LEFT, _RIGHT, _TOP, _BOTTOM))
    for mark in chart.marks if not log else ():
        picture.add("line", kind="mark", x1=_LEFT, x2=_RIGHT, y1=y(mark.at), y2=y(mark.at))
        picture.add("text", mark.text, x=_RIGHT, y=y(mark.at) - 4, text_anchor="end")
    for line in chart.lines:
        few = range(0, len(line.x), max(1, -(-len(line.x) // STILL_POINTS)))
        kind = f"c{line.colour} d{line.dash}"
        if line.low:
            ends = [f"{x(line.x[i]):.1f},{y(line.high[i]):.1f}" for i in few]
            ends += [f"{x(line.x[i]):.1f},{y(line.low[i]):.1f}" for i in reversed(few)]
            picture.add("polygon", kind=f"band {kind}", points=" ".join(ends))
        picture.add(
            "polyline", kind=f"line {kind}", points=" ".join(f"{x(line.x[i]):.1f},{y(line.y[i]):.1f}" for i in few)
        )
        for i in few if chart.kind == "scatter" or len(line.x) <= 12 else ():
            picture.add("circle", kind=f"dot {kind}", cx=x(line.x[i]), cy=y(line.y[i]), r=2.5)
    return picture


def _axis(low: float, high: float, start: float, end: float, share: bool, log: bool = False) -> Any:
    """Where a value stands, and the ticks."""
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.1 if share else 0.5 * max(1e-3, abs(high))
        low, high = low - room, high + room
    elif not log and start > end:  # the vertical one: room above and below
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def place(value: float) -> float:
        scaled = math.log10(max(value, 10**low)) if log else value
        return start + (scaled - low) / (high - low) * (end - start)

    if log:
        powers = range(math.floor(low), math.floor(high) + 1)
        factors = (1, 2, 5) if high - low < 2 else (1,)
        marked = [factor * 10.0**power for power in powers for factor in factors]
        inside = [at for at in marked if low <= math.log10(at) <= high]
        shown = inside if len(inside) > 1 else [10**low, 10**high]
        return place, [(place(at), number(at, share)) for at in shown]
    scale = 100 if share else 1
    return place, [(place(at / scale), text + "%" * share) for at, text in nice_ticks(low * scale, high * scale, 5)]


def _draw_histogram(picture: Picture, chart: Chart) -> None:
    last = chart.frames[-1]["lines"]
    shapes = [*last.items()]
    if len(chart.lines) == 1 and len(chart.frames) > 1:
        shapes.insert(0, (-1, chart.frames[0]["lines"][0]))
    tops = [max(_density(shape)) for _, shape in shapes]
    x, x_ticks = _axis(
        min(s["edges"][0] for _, s in shapes), max(s["edges"][-1] for _, s in shapes), _LEFT, _RIGHT, share=False
    )
    picture.axes(x_ticks, [], chart.x_name, "", box=(_LEFT, _RIGHT, _TOP, _BOTTOM))
    for place, shape in shapes:
        corners = [f"{x(shape['edges'][0]):.1f},{_BOTTOM}"]
        for left, right, density in zip(shape["edges"], shape["edges"][1:], _density(shape), strict=False):
            top = _BOTTOM - density / max(tops) * (_BOTTOM - _TOP - 6)
            corners += [f"{x(left):.1f},{top:.1f}", f"{x(right):.1f},{top:.1f}"]
        corners.append(f"{x(shape['edges'][-1]):.1f},{_BOTTOM}")
        kind = "bins before" if place < 0 else f"bins c{chart.lines[place].colour}"
        picture.add("polygon", kind=kind, points=" ".join(corners))


def _density(shape: Mapping[str, Any]) -> list[float]:
    """Height of each bin so that areas, not heights, compare between histograms of other widths."""
    total = sum(shape["counts"]) or 1
    widths = [max(right - left, 1e-12) for left, right in zip(shape["edges"], shape["edges"][1:], strict=False)]
    return [count / total / width for count, width in zip(shape["counts"], widths, strict=True)]


def chart_of(panel: Any, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """The chart of a panel that is one; None where nothing of it was journalled."""
    if isinstance(panel, LinePanel):
        return line_chart(panel, stage, runs)
    if isinstance(panel, ScatterPanel):
        return scatter_chart(panel, stage, runs)
    return histogram_chart(panel, stage, runs) if isinstance(panel, HistogramPanel) else None


def intervals(record: RunRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Metrics whose value stands in an event with its interval: {"value", "ci", "n"}."""
    published, labels = record.of_kind("published")[-1:], record.of_kind("labels")[:1]  # whose metrics are journalled
    for events, prefix in ((published, "eval/"), (labels, "labels/")):
        for event in events:
            for name, value in event.items():
                if isinstance(value, dict) and {"value", "ci", "n"} <= value.keys() and None not in value["ci"]:
                    yield prefix + name, value
