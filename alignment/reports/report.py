"""Write the report of one run, or a comparison of several, as one self-contained HTML file.

The panels of each stage are listed in configs/dashboards/*.yaml. `panels.py` turns them into views for the template
`page/report.html`. The script `page/report.js` draws charts from numbers in the page; without scripts, the page shows
static pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment import html
from alignment.errors import UserError
from alignment.registry import Registry, Version
from alignment.registry.page import GRAPH, GRAPH_STYLE
from alignment.reports import bars, dashboards, pictures
from alignment.reports.dashboards import Dashboard
from alignment.reports.overview import published_as, span, verdicts_now
from alignment.reports.panels import Report, view_of
from alignment.reports.verdicts import Outcome, headline, worst
from alignment.runs import lease
from alignment.runs.journal import finite
from alignment.runs.record import RunRecord
from alignment.runs.run import Run
from alignment.terminal import clean, one_line

FILE = "report.html"
PAGE = Path(__file__).parent / "page"
MAX_RUNS = 8
"""Maximum number of runs with distinguishable colours."""


def write_report(
    paths: Sequence[Path], out: Path | None = None, registry: Path | None = None, dashboard: str | None = None
) -> tuple[Path, Outcome]:
    """Write the report of a run, or a comparison of runs of one stage; returns its path and the worst outcome.

    Args:
        out: the file; None: `RUN/report.html` of the first run.
        registry: the registry for the lineage; None: the one in the run's config.
        dashboard: name or YAML file of a dashboard; None: the stage's own.

    Raises:
        UserError: there is no run, the runs are of several stages, or the file cannot be written.
    """
    records = [RunRecord.read(path) for path in paths]
    outcome = worst([verdict for record in records for verdict in verdicts_now(record)])
    text = report_page(records, registry, dashboard)
    path = out or paths[0] / FILE
    html.write(path, text, "--out")
    return path, outcome


def write_final_report(run_dir: Path) -> None:
    """Write the report at the end of a stage, on the main process; a failure is only a warning."""
    try:
        path, _ = write_report([run_dir])
    except Exception as error:  # noqa: BLE001 - a failed report must not fail a finished run
        reason = f"{type(error).__name__}: {error}"
        print(one_line(f"warning: no report was written ({reason}); alignment runs report {run_dir}"), file=sys.stderr)
        return
    print(one_line(f"report: {path} ({headline(verdicts_now(RunRecord.read(run_dir)))})"))


def redo_report(run_dir: Path, registry: Path | None = None) -> None:
    """Write the report of a run again where it has one, but not while another process owns the folder."""
    try:
        if (run_dir / FILE).is_file():
            with lease.hold(run_dir, f"then alignment runs report {run_dir} writes its report again"):
                write_report([run_dir], registry=registry)
    except UserError as error:
        print(one_line(f"note: {run_dir / FILE} is as it was before: {error}"), file=sys.stderr)


def redo_report_of(registry: Registry, version: Version) -> None:
    """Write the report of the run that published a version again, where its folder is within reach."""
    config = version.manifest.config or {}
    tracking, name = config.get("tracking"), config.get("name")
    runs = tracking.get("runs") if isinstance(tracking, dict) else None
    if isinstance(runs, str) and isinstance(name, str):
        run_dir = Path(runs) / name
        with suppress(UserError, OSError, ValueError):  # the manifest may name anything
            run = Run.read(run_dir)
            if run is not None and run.publish_id(version.name) == version.manifest.publish_id:
                redo_report(run_dir, registry.path)


def report_page(records: Sequence[RunRecord], registry: Path | None = None, dashboard: str | None = None) -> str:
    """The page as a string; untrusted text is cleaned and escaped."""
    stages = sorted({record.stage for record in records})
    if len(stages) > 1:
        raise UserError(
            f"a report compares runs of one stage, but these are of {' and '.join(stages)}; write one for each stage"
        )
    if len(records) > MAX_RUNS:
        raise UserError(f"a report compares up to {MAX_RUNS} runs, found {len(records)}; name fewer")
    report = Report(stages[0], list(zip(_labels(records), records, strict=True)), registry)
    defaults = ("compare",) if report.compared else dashboards.OF_STAGE[report.stage]
    chosen = defaults if dashboard is None else (dashboard,)
    sections = _sections(dashboards.load(chosen[0]), report)
    for name in chosen[1:]:  # before the last section, which is the provenance
        sections[-1:-1] = _sections(dashboards.load(name), report)
    if not sections:
        raise UserError(f"the dashboard {chosen[0]} has no data for a run of the stage {report.stage}; use another one")
    data = {"charts": report.charts, "samples": report.samples, "findings": _findings(report)}
    title = " and ".join(label for label, _ in report.runs)
    return html.render(
        f"{title}: {report.stage} report",
        bars.STYLE + pictures.STYLE + GRAPH_STYLE + (PAGE / "report.css").read_text(encoding="utf-8"),
        bars.MACRO + pictures.MACRO + GRAPH + (PAGE / "prompt.html").read_text(encoding="utf-8"),
        (PAGE / "report.html").read_text(encoding="utf-8"),
        script=(PAGE / "report.js").read_text(encoding="utf-8"),
        data=_cleaned(finite(data)),
        heading=title,
        stage={"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}[report.stage],
        facts=[] if report.compared else _facts(report.record),
        runs=[label for label, _ in report.runs],
        compared=report.compared,
        sections=sections,
        has_charts=bool(report.charts),
        evaluation="evaluation.html" if (report.record.path / "evaluation.html").exists() else None,
    )


def _sections(dashboard: Dashboard, report: Report) -> list[dict[str, Any]]:
    """The non-empty sections of a dashboard: tiles, charts, then full-width panels."""
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


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names, or their folders if two have the same name."""
    names = [one_line(record.name) for record in records]
    return [name if names.count(name) == 1 else str(record.path) for name, record in zip(names, records, strict=True)]


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """Key facts about the run."""
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
    """The steps of findings for the charts; empty for several runs, which would have too many lines."""
    if report.compared:
        return []
    problems = [
        verdict for verdict in verdicts_now(report.record) if verdict.step and verdict.outcome in ("fail", "warn")
    ]
    return [{"step": verdict.step, "outcome": verdict.outcome, "name": verdict.title} for verdict in problems]


def _cleaned(value: Any) -> Any:
    """Plain data with every string cleaned, including keys."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item) for item in value]
    return value
