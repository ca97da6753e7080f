"""Charts of panels: data for the page's script, and a static picture for print and for pages without scripts.

A series of any length is reduced to at most `POINTS` buckets with mean, minimum and maximum, so that a spike of one
step in 100,000 stays visible.
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
"""Maximum number of points in a static picture."""
MAX_HISTOGRAMS = 40
COLOURS = 8
"""Number of colours in report.css; further series reuse them."""
WIDTH, HEIGHT = 400, 246
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 10, 204
_MANTISSA = 4


@dataclass
class Line:
    """One series of a chart.

    Args:
        name: name in the legend.
        colour: index of its colour.
        dash: index of its dash pattern, for several metrics of a run if colours mark runs.
        low, high: ends of a band around y; empty without one.
        band: description of the band.
        bad: steps whose value is not finite.
        steps: steps of a scatter's points.
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
        """The JSON for the script, without empty fields and with limited precision."""
        fields: dict[str, Any] = {"name": self.name, "colour": self.colour, "x": _short(self.x), "y": _short(self.y)}
        for name in ("low", "high"):
            if values := getattr(self, name):
                fields[name] = _short(values)
        return fields | {name: value for name in ("dash", "band", "bad", "steps") if (value := getattr(self, name))}


@dataclass
class Chart:
    """The content of one figure."""

    kind: str
    title: str
    about: str
    unit: str
    x_name: str
    share: bool = False
    """Whether the values are fractions, shown in percent."""
    log: bool = False
    lines: list[Line] = field(default_factory=list)
    marks: tuple[Mark, ...] = ()
    meanings: list[tuple[str, str]] = field(default_factory=list)
    """The meaning of each name in the legend."""
    frames: list[dict[str, Any]] = field(default_factory=list)
    """For a histogram: its steps, each with edges and counts of every line."""

    def as_json(self) -> dict[str, Any]:
        fields = {"kind": self.kind, "unit": self.unit, "x": self.x_name, "share": self.share, "log": self.log}
        fields |= {"lines": [line.as_json() for line in self.lines], "frames": self.frames}
        return fields | {"marks": [mark.model_dump() for mark in self.marks]}

    @property
    def label(self) -> str:
        """A text alternative for screen readers."""
        parts = [
            f"{line.name} from {number(line.y[0], self.share)} to {number(line.y[-1], self.share)}"
            for line in self.lines
            if line.y
        ]
        return f"{self.title}: {'; '.join(parts)}"


# --- numbers ---------------------------------------------------------------------------------------------------------


def number(value: float | None, share: bool = False) -> str:
    """A value with few characters."""
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
    """Values with six digits, which suffice for a screen and save two thirds of the bytes."""
    return [int(value) if value == int(value) else float(f"{value:.6g}") for value in values]


def unit_of(metrics: Iterable[Metric | None]) -> tuple[str, bool]:
    """The unit at the axis, and whether values are fractions."""
    units = dict.fromkeys(metric.unit for metric in metrics if metric)
    return " or ".join(unit for unit in units if unit and unit != "share"), list(units) == ["share"]


# --- series ----------------------------------------------------------------------------------------------------------


def thin(series: Series, most: int = POINTS) -> Line:
    """Reduce a series to at most `most` buckets of equal size; name and colour are set later."""
    import numpy as np

    values = series.as_array
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
    line.band = "minimum and maximum"
    return line


def line_chart(panel: LinePanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """A chart of one or several runs' metrics over the steps; None if there is nothing to draw.

    Args:
        runs: label and record of each run.
    """
    chart = Chart("line", panel.title, panel.about, "", "step", log=panel.log, marks=panel.marks)
    used = []
    for run_index, (label, record) in enumerate(runs):
        names = [name for pattern in panel.metrics for name in family(pattern, record.metrics)]
        for index, name in enumerate(names):
            line = thin(record.metrics[name])
            if not line.x and not line.bad:
                continue
            line.name, line.colour, line.dash = _look(label, name, run_index, index, names, len(runs))
            if index == 0 and panel.low and panel.high and {panel.low, panel.high} <= record.metrics.keys():
                line.low, line.high = (_at(record.metrics[end], line.x) for end in (panel.low, panel.high))
                line.band = "95% interval"
            chart.lines.append(line)
            used.append(name)
    return _with_meanings(chart, stage, used)


def scatter_chart(panel: ScatterPanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """A chart of metrics over another metric, with a point for each step that has both."""
    metric = find(stage, panel.x)
    unit = f", {metric.unit}" if metric and metric.unit else ""
    x_name = f"square root of KL{unit}" if panel.sqrt_x and panel.x.endswith("kl") else f"{panel.x}{unit}"
    chart = Chart("scatter", panel.title, panel.about, "", x_name)
    used = []
    for run_index, (run_label, record) in enumerate(runs):
        over = record.metrics.get(panel.x, Series())
        at = dict(over.finite())
        for index, name in enumerate(family(panel.y[0], record.metrics) if len(panel.y) == 1 else panel.y):
            series = record.metrics.get(name, Series())
            points = [(at[step], y, step) for step, y in series.finite() if step in at]
            points = points[:: -max(1, len(points) // POINTS)][
                ::-1
            ]  # thinned from the end, so that the last point is kept
            if len(points) < 2:
                continue
            xs = [math.copysign(math.sqrt(abs(x)), x) if panel.sqrt_x else x for x, _, _ in points]
            label, colour, dash = _look(run_label, name, run_index, index, panel.y, len(runs))
            line = Line(label, colour, xs, [y for _, y, _ in points], dash, steps=[step for _, _, step in points])
            chart.lines.append(line)
            used.append(name)
        if panel.best_of_n and chart.lines:
            chart.lines += _best_of_n(panel, record, run_label if len(runs) > 1 else "", len(chart.lines))
    return _with_meanings(chart, stage, used)


def _best_of_n(panel: ScatterPanel, record: RunRecord, label: str, colour: int) -> list[Line]:
    """What the best of n answers of the start scores, over the upper bound of its KL; a point's step is its n."""
    lines = []
    events = record.of_kind("best_of_n")
    for index, name in enumerate(panel.y):
        key = name.rpartition("/")[2]
        rows = [row for row in events[-1]["rows"] if key in row] if events else []
        if rows:
            xs = [math.sqrt(row["kl_bound"]) if panel.sqrt_x else row["kl_bound"] for row in rows]
            words = f"{label} best of n, {key} (its KL at most; step is n)".strip()
            shade = (colour + index) % COLOURS
            lines.append(Line(words, shade, xs, [row[key] for row in rows], 1, steps=[row["n"] for row in rows]))
    return lines


def histogram_chart(panel: HistogramPanel, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """A chart of journaled histograms by step: one name with its first step behind it, or two names overlaid."""
    chart = Chart("histogram", panel.title, panel.about, "", "")
    frames: dict[int, dict[int, dict[str, Any]]] = {}
    for run_index, (run_label, record) in enumerate(runs):
        for index, name in enumerate(panel.names):
            events = [event for event in record.of_kind("histogram") if event.get("name") == name]
            if not events:
                continue
            label, colour, dash = _look(run_label, name, run_index, index, panel.names, len(runs))
            chart.lines.append(Line(label, colour, [], [], dash))
            for event in events:
                shape = {"edges": _short(event["edges"]), "counts": event["counts"]}
                frames.setdefault(event["step"], {})[len(chart.lines) - 1] = shape
    steps = sorted(frames)
    for step in steps[:: max(1, -(-len(steps) // MAX_HISTOGRAMS))] if steps else []:
        chart.frames.append({"step": step, "lines": frames[step]})
    if steps and chart.frames[-1]["step"] != steps[-1]:
        chart.frames[-1] = {"step": steps[-1], "lines": frames[steps[-1]]}
    metrics = [find(stage, name, histogram=True) for name in panel.names]
    chart.x_name = unit_of(metrics)[0] or panel.names[0]
    chart.meanings = [(name, metric.meaning) for name, metric in zip(panel.names, metrics, strict=True) if metric]
    return chart if chart.lines else None


def _look(
    run_label: str, name: str, run_index: int, index: int, names: Sequence[str], num_runs: int
) -> tuple[str, int, int]:
    """Name, colour and dash of a series: colours mark metrics in a report of one run, and runs in a comparison."""
    if num_runs == 1:
        return name, index % COLOURS, 0
    return (run_label if len(names) == 1 else f"{run_label} {name}"), run_index % COLOURS, index % 3


def _at(series: Series, x: Sequence[float]) -> list[float]:
    """The values at steps, or the last ones before; steps before the first value get the first value."""
    import numpy as np

    known = list(series.finite())
    positions = np.searchsorted([step for step, _ in known], x, side="right") - 1
    return [known[max(0, position)][1] for position in positions.tolist()] if known else []


def _with_meanings(chart: Chart, stage: str, names: Sequence[str]) -> Chart | None:
    metrics = list(dict.fromkeys(metric for name in names if (metric := find(stage, name))))
    chart.unit, chart.share = unit_of(metrics)
    chart.meanings = [(metric.name, metric.meaning) for metric in metrics]
    return chart if chart.lines else None


# --- static pictures -------------------------------------------------------------------------------------------------


def still(chart: Chart) -> Picture:
    """The static picture of a chart."""
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
        indices = range(0, len(line.x), max(1, -(-len(line.x) // STILL_POINTS)))
        kind = f"c{line.colour} d{line.dash}"
        if line.low:
            ends = [f"{x(line.x[i]):.1f},{y(line.high[i]):.1f}" for i in indices]
            ends += [f"{x(line.x[i]):.1f},{y(line.low[i]):.1f}" for i in reversed(indices)]
            picture.add("polygon", kind=f"band {kind}", points=" ".join(ends))
        picture.add(
            "polyline", kind=f"line {kind}", points=" ".join(f"{x(line.x[i]):.1f},{y(line.y[i]):.1f}" for i in indices)
        )
        for i in indices if chart.kind == "scatter" or len(line.x) <= 12 else ():
            picture.add("circle", kind=f"dot {kind}", cx=x(line.x[i]), cy=y(line.y[i]), r=2.5)
    return picture


def _axis(low: float, high: float, start: float, end: float, share: bool, log: bool = False) -> Any:
    """A function from values to coordinates, and the ticks."""
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.1 if share else 0.5 * max(1e-3, abs(high))
        low, high = low - room, high + room
    elif not log and start > end:  # add a margin to the vertical axis
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
    for index, shape in shapes:
        corners = [f"{x(shape['edges'][0]):.1f},{_BOTTOM}"]
        for left, right, density in zip(shape["edges"], shape["edges"][1:], _density(shape), strict=False):
            top = _BOTTOM - density / max(tops) * (_BOTTOM - _TOP - 6)
            corners += [f"{x(left):.1f},{top:.1f}", f"{x(right):.1f},{top:.1f}"]
        corners.append(f"{x(shape['edges'][-1]):.1f},{_BOTTOM}")
        kind = "bins before" if index < 0 else f"bins c{chart.lines[index].colour}"
        picture.add("polygon", kind=kind, points=" ".join(corners))


def _density(shape: Mapping[str, Any]) -> list[float]:
    """Density of each bin, so that histograms with different bin widths are comparable."""
    total = sum(shape["counts"]) or 1
    widths = [max(right - left, 1e-12) for left, right in zip(shape["edges"], shape["edges"][1:], strict=False)]
    return [count / total / width for count, width in zip(shape["counts"], widths, strict=True)]


def chart_of(panel: Any, stage: str, runs: Sequence[tuple[str, RunRecord]]) -> Chart | None:
    """The chart of a panel; None if it is not a chart, or has no journaled data."""
    if isinstance(panel, LinePanel):
        return line_chart(panel, stage, runs)
    if isinstance(panel, ScatterPanel):
        return scatter_chart(panel, stage, runs)
    return histogram_chart(panel, stage, runs) if isinstance(panel, HistogramPanel) else None


def intervals(record: RunRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the metrics that an event holds with their interval: {"value", "ci", "n"}."""
    published, labels = (
        record.of_kind("published")[-1:],
        record.of_kind("labels")[:1],
    )  # their metrics are journaled too
    for events, prefix in ((published, "eval/"), (labels, "labels/")):
        for event in events:
            for name, value in event.items():
                if isinstance(value, dict) and {"value", "ci", "n"} <= value.keys() and None not in value["ci"]:
                    yield prefix + name, value
