"""The report of a run, or of several compared, as one HTML file that needs no server and no network.

`report_panels.py` turns the panels of a dashboard into what the template `page/report.html` shows; the script
`page/report.js` draws charts from numbers in the page. Without it still pictures stand in their place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment import html
from alignment.errors import UserError
from alignment.registry.page import GRAPH, GRAPH_STYLE
from alignment.reports import bars, dashboards, pictures
from alignment.reports.dashboards import Dashboard
from alignment.reports.overview import published_as, span, verdicts_now
from alignment.reports.panels import Report, view_of
from alignment.reports.verdicts import Outcome, headline, worst
from alignment.runs.journal import finite
from alignment.runs.record import RunRecord
from alignment.terminal import clean, one_line

FILE = "report.html"
PAGE = Path(__file__).parent / "page"
MAX_RUNS = 8
"""Colours that can be told apart."""


def write_report(
    paths: Sequence[Path], out: Path | None = None, registry: Path | None = None, dashboard: str | None = None
) -> tuple[Path, Outcome]:
    """Write the report of a run, or one that compares several of a stage; returns its path and the worst outcome.

    Args:
        out: the file; None is `RUN/report.html` of the first.
        registry: where the models are that the lineage shows; None: where the run's config says.
        dashboard: name or YAML file of another dashboard than the stage's own.

    Raises:
        UserError: no run, runs of several stages, or a file that cannot be written.
    """
    records = [RunRecord.read(path) for path in paths]
    outcome = worst([verdict for record in records for verdict in verdicts_now(record)])
    text = report_page(records, registry, dashboard)
    path = out or paths[0] / FILE
    html.write(path, text, "--out")
    return path, outcome


def write_at_the_end(run_dir: Path) -> None:
    """A stage's last act, on its main process: whatever goes wrong with the report, the run is done."""
    try:
        path, _ = write_report([run_dir])
    except Exception as error:  # noqa: BLE001 - a finished training must not fail for a page about it
        reason = f"{type(error).__name__}: {error}"
        print(one_line(f"warning: no report was written ({reason}); alignment runs report {run_dir}"), file=sys.stderr)
        return
    print(one_line(f"report: {path} ({headline(verdicts_now(RunRecord.read(run_dir)))})"))


def report_page(records: Sequence[RunRecord], registry: Path | None = None, dashboard: str | None = None) -> str:
    """The page as a text; everything that anybody else wrote is cleaned and escaped in it."""
    stages = sorted({record.stage for record in records})
    if len(stages) > 1:
        raise UserError(
            f"a report compares runs of one stage, and these are of {' and '.join(stages)}; make one of each stage"
        )
    if len(records) > MAX_RUNS:
        raise UserError(f"a report compares up to {MAX_RUNS} runs, and these are {len(records)}; choose among them")
    report = Report(stages[0], list(zip(_called(records), records, strict=True)), registry)
    own = ("compare",) if report.compared else dashboards.OF_STAGE[report.stage]
    chosen = own if dashboard is None else (dashboard,)
    sections = _sections(dashboards.load(chosen[0]), report)
    for name in chosen[1:]:  # before where it all comes from
        sections[-1:-1] = _sections(dashboards.load(name), report)
    if not sections:
        raise UserError(f"the dashboard {chosen[0]} shows nothing of a run of the stage {report.stage}; leave it out")
    data = {"charts": report.charts, "samples": report.samples, "findings": _findings(report)}
    title = " and ".join(called for called, _ in report.runs)
    return html.render(
        f"{title}: {report.stage} report",
        bars.STYLE + pictures.STYLE + GRAPH_STYLE + (PAGE / "report.css").read_text(encoding="utf-8"),
        bars.MACRO + pictures.MACRO + GRAPH,
        (PAGE / "report.html").read_text(encoding="utf-8"),
        script=(PAGE / "report.js").read_text(encoding="utf-8"),
        data=_cleaned(finite(data)),
        heading=title,
        stage={"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}[report.stage],
        facts=[] if report.compared else _facts(report.record),
        runs=[called for called, _ in report.runs],
        compared=report.compared,
        sections=sections,
        has_charts=bool(report.charts),
        evaluation="evaluation.html" if (report.record.path / "evaluation.html").exists() else None,
    )


def _sections(dashboard: Dashboard, report: Report) -> list[dict[str, Any]]:
    """What there is to show of a dashboard: tiles, then charts, then what takes the whole width."""
    shown = []
    for section in dashboard.sections:
        stage = dashboard.stage_of(section) or report.stage
        if stage != report.stage:
            continue
        views = [view for panel in section.panels if (view := view_of(panel, stage, report)) is not None]
        if views:
            parts = {name: [view for view in views if view["kind"] in kinds] for name, kinds in _PARTS.items()}
            shown.append({"title": section.title, "about": section.about, **parts})
    return shown


_PARTS = {
    "verdicts": ("verdicts",),
    "tiles": ("scalar",),
    "figures": ("chart", "picture", "facts", "bar"),
    "bars": ("bars",),
    "rest": ("samples", "compared_samples", "lineage", "data", "config", "table"),
}


def _called(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; their folders where two have the same."""
    names = [one_line(record.name) for record in records]
    return [name if names.count(name) == 1 else str(record.path) for name, record in zip(names, records, strict=True)]


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """What the run is, in short."""
    facts = [("published", published_as(record))]
    started = [attempt.started_at for attempt in record.run.attempts]
    if started:
        facts.append(("started", f"{started[0]:%Y-%m-%d %H:%M} UTC"))
    times = [time for time in record.times.values() if time]
    if len(times) > 1:
        facts.append(("took", span(max(times) - min(times))))
    facts.append(("steps", f"{record.last_step:,}"))
    if len(started) > 1:
        facts.append(("attempts", str(len(started))))
    for event in record.of_kind("backend")[-1:]:
        zero = f", ZeRO-{event['zero_stage']}" if event.get("zero_stage") else ""
        facts.append(("processes", f"{event.get('world_size', 1)}{zero}"))
    return facts


def _findings(report: Report) -> list[dict[str, Any]]:
    """Where in a run something was found, for the charts; of several runs there would be too many lines."""
    if report.compared:
        return []
    found = [verdict for verdict in verdicts_now(report.record) if verdict.step and verdict.outcome in ("fail", "warn")]
    return [{"step": verdict.step, "outcome": verdict.outcome, "name": verdict.title} for verdict in found]


def _cleaned(value: Any) -> Any:
    """Every text in plain data, cleaned; keys too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item) for item in value]
    return value
