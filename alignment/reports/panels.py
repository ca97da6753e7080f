"""Views of a dashboard's panels for the report's template: charts, tiles, bars, tables, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.redaction import redact
from alignment.registry import Registry, RegistryError
from alignment.registry.page import graph
from alignment.reports import samples as report_samples
from alignment.reports.bars import ShareScale, bar, slice_rows
from alignment.reports.charts import chart_of, intervals, number, still, unit_of
from alignment.reports.dashboards import BarsPanel, FilePanel, ScalarPanel
from alignment.reports.judges import UNKNOWN, judge_of
from alignment.reports.overview import verdicts_now
from alignment.reports.pictures import histogram_chart, reliability_chart
from alignment.reports.review import evaluations_of_run, read_reviews, still_pointed_to
from alignment.reports.verdicts import NO_FINDING, SIGNS, Outcome, Verdict, headline, worst
from alignment.runs.metrics import find
from alignment.runs.record import RunRecord, read_rows
from alignment.runs.resume import changed_keys

View = dict[str, Any]
WIN_RATE = "eval/win_rate"


@dataclass
class Report:
    """The runs of a report, and the data of its panels for the script.

    Args:
        runs: label and record of one run, or of several that are compared.
        registry: the registry of their models; None: the one in their configs.
    """

    stage: str
    runs: list[tuple[str, RunRecord]]
    registry: Path | None = None
    charts: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, Any] | None = None

    @property
    def record(self) -> RunRecord:
        """The run, or the first of several."""
        return self.runs[0][1]

    @property
    def compared(self) -> bool:
        return len(self.runs) > 1

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """A reward model's evaluation.json, if there is one."""
        try:
            evaluation = json.loads((self.record.path / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return evaluation if isinstance(evaluation, dict) and evaluation.get("accuracy") else None


def view_of(panel: Any, stage: str, report: Report) -> View | None:
    """The view for the template; None if the runs have no data for it."""
    heading = {"title": panel.title, "about": panel.about}
    if isinstance(panel, ScalarPanel):
        view = _tile(panel, stage, report)
    elif isinstance(panel, BarsPanel):
        view = None if report.compared else _bars(panel, stage, report)
    elif isinstance(panel, FilePanel):
        view = _FILES[panel.kind](report)
    else:
        view = _chart(panel, stage, report)
    return None if view is None else heading | view


def _chart(panel: Any, stage: str, report: Report) -> View | None:
    chart = chart_of(panel, stage, report.runs)
    if chart is None:
        return None
    if getattr(panel, "together", False) and not any(
        all(name in record.metrics for name in panel.metrics) for _, record in report.runs
    ):
        return None
    report.charts.append(chart.as_json())
    judge = "" if report.compared or WIN_RATE not in panel.metrics_shown else _judged_by(report.record)
    return {
        "kind": "chart",
        "about": f"{panel.about} {judge}".strip(),
        "number": len(report.charts) - 1,
        "chart": chart,
        "picture": still(chart),
        "unit": "%" if chart.share else chart.unit,
        "legend": chart.lines if len(chart.lines) > 1 or report.compared or panel.kind == "histogram" else [],
        "frames": [frame["step"] for frame in chart.frames],
    }


def _tile(panel: ScalarPanel, stage: str, report: Report) -> View | None:
    """A tile with each run's last value, its interval, and the first value."""
    metric = find(stage, panel.metric)
    unit, share = unit_of([metric])
    cells = [_cell(panel, record, share) for _, record in report.runs]
    for cell, (_, record) in zip(cells, report.runs, strict=True):
        if cell and panel.metric == WIN_RATE:
            cell["judge"] = (
                f"Judged by {judge.short_text}." if (judge := judge_of(record.config)) else _judged_by(record)
            )
    if not any(cells):
        return None
    meaning = metric.meaning if metric else ""
    return {"kind": "scalar", "name": panel.metric, "unit": unit, "meaning": meaning, "cells": cells}


def _judged_by(record: RunRecord) -> str:
    judge = judge_of(record.config)
    return f"Judged by {judge.text if judge else UNKNOWN}."


def _cell(panel: ScalarPanel, record: RunRecord, share: bool) -> View | None:
    series = record.metrics.get(panel.metric)
    first, last = (series.first, series.last) if series else (None, None)
    if series is None or first is None or (figure := record.figure(panel.metric)) is None:
        return None
    step, value = figure
    cell: View = {"value": number(value, share), "from": number(first, share) if series.num_finite > 1 else None}
    cell["rises"] = series.num_finite > 1 and value > first
    cell["of_step"] = step if step == record.published_step and value != last else None
    cell["last"] = number(last, share)
    ends = [record.metrics[name].last for name in (panel.low, panel.high) if name and name in record.metrics]
    ci = dict(intervals(record)).get(panel.metric, {}).get("ci", ends)
    if len(ci) == 2 and None not in ci:
        cell["range"] = f"{number(ci[0], share)} to {number(ci[1], share)}"
    return cell


def _bars(panel: BarsPanel, stage: str, report: Report) -> View | None:
    estimates = dict(intervals(report.record))
    rows, used = [], []
    names = [name for shown in panel.metrics for name in report.record.metrics
             if name == shown or name.startswith(f"{shown}/")]  # fmt: skip
    for name in names:  # a reward model's heads have one each
        series, metric = report.record.metrics.get(name), find(stage, name)
        if series is None or series.last is None or metric is None:
            continue
        estimate = estimates.get(name, {"value": series.last, "ci": (series.last, series.last), "n": 1})
        row = bar(name.partition("/")[2].replace("_", " ").replace("/", ", "), estimate)
        row["about"] = f"{metric.meaning}; n = {estimate['n']:,}" if name in estimates else metric.meaning
        if metric.unit != "share":
            row["value"] = number(estimate["value"])
            row["range"] = " to ".join(number(end) for end in estimate["ci"]) if row["enough"] else ""
        elif name not in estimates:
            row["range"] = ""
        rows.append(row)
        used.append(name)
    if not rows:
        return None
    scale = ShareScale.holding(rows, [(mark.at, mark.text) for mark in panel.marks])
    scale.place(rows)
    return {"kind": "bar", "rows": rows, "scale": scale.drawn()}


# --- panels without metrics ------------------------------------------------------------------------------------------


def _verdicts(report: Report) -> View:
    verdicts_by_run = [verdicts_now(record) for _, record in report.runs]
    shown = [
        {
            "called": label,
            "state": state_of(worst(run_verdicts)),
            "headline": headline(run_verdicts),
            "rows": _signed(run_verdicts),
            "reviews": read_reviews(record.path),
            "pointed_to": still_pointed_to(record, report.registry),
            "evaluations": evaluations_of_run(record, report.registry),
        }
        for (label, record), run_verdicts in zip(report.runs, verdicts_by_run, strict=True)
    ]
    names = dict.fromkeys(verdict.title for run_verdicts in verdicts_by_run for verdict in run_verdicts)
    by_name = [{verdict.title: verdict for verdict in run_verdicts} for run_verdicts in verdicts_by_run]
    table = [
        (name, [_signed([run_verdicts[name]])[0] if name in run_verdicts else None for run_verdicts in by_name])
        for name in names
    ]
    return {"kind": "verdicts", "runs": shown, "table": table}


def _signed(run_verdicts: Sequence[Verdict]) -> list[View]:
    return [
        {
            "name": verdict.title,
            "key": verdict.name,
            "outcome": verdict.outcome,
            "state": state_of(verdict.outcome),
            "sign": SIGNS[verdict.outcome],
            "reason": verdict.reason,
            "said": "" if verdict.reason == NO_FINDING else verdict.reason,
            "about": verdict.about,
            "step": verdict.step,
        }
        for verdict in run_verdicts
    ]


def state_of(outcome: Outcome) -> str:
    """The style of an outcome on a page."""
    return outcome.replace(" ", "-")


def _config(report: Report) -> View | None:
    """The full config of one run, or the differences between several."""
    configs = [redact(record.config) for _, record in report.runs]
    if not report.compared:
        flat = [leaf for section, values in configs[0].items() for leaf in _flat(section, values)]
        return {"kind": "config", "rows": [(key, [_as_text(value)]) for key, value in flat]}
    keys = list(dict.fromkeys(key for other in configs[1:] for key in changed_keys(configs[0], other)))
    keys = [key for key in keys if key not in ("name", "registry.name")]
    return {"kind": "config", "rows": [(key, [_as_text(_at(config, key)) for config in configs]) for key in keys]}


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [pair for name, each in value.items() for pair in _flat(f"{key}.{name}", each)]
    return [(key, value)]


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(report: Report) -> View | None:
    """Data sets with their rows, and the rows set aside."""
    record, rows = report.record, []
    for event in record.of_kind("data")[-1:]:
        for use, entries in event.items():
            if not isinstance(entries, list):
                continue
            for entry in entries:
                if isinstance(entry, dict) and "name" in entry:
                    if ratings := entry.get("ratings"):
                        about = f"{ratings:,} ratings of {entry.get('items') or 0:,} items"
                    else:
                        about = f"{entry.get('rows') or entry.get('items') or 0:,} rows"
                    rows.append((str(entry["name"]), use, about, str(entry.get("split", ""))))
    notes = [str(note) for event in record.of_kind("data")[-1:] for note in event.get("notes") or ()]
    bad = _lines(record.path / "bad_rows.jsonl")
    check = [event for event in record.of_kind("data_check")[-1:] if event.get("verdict")]
    if not rows:
        return None
    return {"kind": "data", "rows": rows, "bad": bad[:20], "num_bad": len(bad), "notes": notes, "check": check}


def _lines(path: Path) -> list[tuple[str, str]]:
    return [(str(row.get("where", "")), str(row.get("reason", ""))) for row in read_rows(path)]


def _samples(report: Report) -> View | None:
    if report.compared:
        rows = report_samples.side_by_side([record for _, record in report.runs])
        return (
            {"kind": "compared_samples", "rows": rows, "runs": [called for called, _ in report.runs]} if rows else None
        )
    samples = report_samples.samples_of(report.record)
    if samples is None:
        return None
    report.samples = samples
    items = []
    for item in samples["items"]:
        last = item["at"][item["shown"]]
        left, right = report_samples.left_and_right(last["parts"])
        items.append({**item, "last": last, "sides": [(last["left"], left), (last["right"], right)]})
    return {"kind": "samples", **samples, "items": items}


def _lineage(report: Report) -> View | None:
    record = report.record
    if record.published is None or report.compared:
        return None
    folder = report.registry or (record.config.get("registry") or {}).get("path")
    try:
        node = Registry(folder).lineage(record.published)
    except (RegistryError, UserError, OSError) as error:
        return {"kind": "lineage", "graph": None, "problem": f"{error}; name the registry with --registry"}
    return {"kind": "lineage", "graph": graph(node), "problem": None}


def _slices(report: Report) -> View | None:
    evaluation = report.evaluation
    if report.compared or evaluation is None:
        return None
    groups = slice_rows(evaluation)
    scale = ShareScale.around([row for _, _, rows in groups for row in rows])
    for _, _, rows in groups:
        scale.place(rows)
    return {"kind": "bars", "groups": groups, "scale": scale.drawn()} if groups else None


def _picture(draw: Callable[[Mapping[str, Any]], Any], needs: Callable[[Mapping[str, Any]], Any]) -> Any:
    def view(report: Report) -> View | None:
        evaluation = report.evaluation
        if report.compared or evaluation is None or not needs(evaluation):
            return None
        return {"kind": "picture", "picture": draw(evaluation)}

    return view


def _shortcuts(report: Report) -> View | None:
    evaluation = report.evaluation
    if report.compared or evaluation is None:
        return None
    length, rows = evaluation["length"], []
    if ahead := length.get("ahead"):
        ends = " to ".join(f"{100 * end:+.1f}" for end in ahead["ci"])
        rule = f"'{length['rule']} is better'"
        rows.append(
            (f"Ahead of {rule}", f"{100 * ahead['value']:+.1f} points", f"95%: {ends}; that rule ignores the text")
        )
    if correlation := length.get("correlation"):
        ends = " to ".join(f"{end:.2f}" for end in correlation["ci"])
        rows.append(
            ("Correlation with length", f"{correlation['value']:+.2f}", f"Spearman, of differences; 95%: {ends}")
        )
    eos = evaluation["without_eos"]
    if eos.get("flips"):
        rows.append(("Without EOS", number(eos["flips"]["value"], True), "of the pairs are ordered the other way"))
    return {"kind": "facts", "rows": rows} if rows else None


def _labelers(report: Report) -> View | None:
    """A row for each labeler of each ratings file of the run."""
    rows = []
    for event in [] if report.compared else report.record.of_kind("labels"):
        for name, quality in (event.get("labelers") or {}).items():
            position = (quality.get("position") or {}).get("value")
            counts = [number(quality.get(key)) for key in ("rated", "skips", "seconds")]
            rows.append((name, [*counts, number(position, share=True), number(quality.get("weight"))]))
    head = ["labeler", "rated", "skipped", "seconds", "chose the first shown", "weight of a vote"]
    return {"kind": "table", "head": head, "rows": rows} if rows else None


_FILES: dict[str, Callable[[Report], View | None]] = {
    "verdicts": _verdicts,
    "config": _config,
    "data": _data,
    "samples": _samples,
    "lineage": _lineage,
    "slices": _slices,
    "reliability": _picture(reliability_chart, lambda found: found.get("reliability")),
    "scores": _picture(histogram_chart, lambda found: found["scores"]["n"]),
    "shortcuts": _shortcuts,
    "labelers": _labelers,
}
