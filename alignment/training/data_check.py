"""The data check of each training run, on the rows that it reads and encodes anyway."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from alignment.config.sections import RunConfig
from alignment.data.check.findings import report_of
from alignment.data.check.inspector import Inspector
from alignment.data.check.page import html_page
from alignment.data.check.report import LEVELS, DataReport, refuse
from alignment.runs.journal import Journal
from alignment.terminal import one_line


def check_before_training(config: RunConfig, inspector: Inspector | None) -> DataReport:
    """The report on a run's rows; main process only. Nothing is written or printed, since a dry run calls this too.

    Args:
        inspector: has seen each row (`Inspector.look`).

    Raises:
        DataError: training on these rows would be pointless.
    """
    assert inspector is not None  # the main process has one
    sources = [part.path for part in config.data.parts]
    report = report_of(inspector, [*sources, *([config.data.eval] if config.data.eval else [])])
    refuse(report, config.data)
    return report


DATA_WATCHED = ("set aside", "data check")


def note_findings(journal: Journal, report: DataReport) -> None:
    """Journal the report as findings of the run: one for the rows set aside, and one for everything else."""
    for finding in report.findings:
        if finding.kind == "set_aside" and finding.level != "note":
            journal.finding(0, "set aside", finding.level, f"{finding.text}; {finding.advice}")
    others = [finding for finding in report.findings if finding.kind != "set_aside" and finding.level != "note"]
    if others:
        worst = min((finding.level for finding in others), key=LEVELS.index)
        journal.finding(0, "data check", worst, "; ".join(finding.text for finding in others))


def write_report(run_dir: Path, report: DataReport) -> None:
    """Print the findings to stderr, and write them to `RUN/data_report.json` and `RUN/data_report.html`."""
    (run_dir / "data_report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    (run_dir / "data_report.html").write_text(html_page(report), encoding="utf-8")
    print(f"data: {report.verdict}; see {run_dir / 'data_report.html'}", file=sys.stderr)
    for finding in report.findings:
        first = f" (the first: {finding.places[0]})" if finding.places else ""
        print(one_line(f"data: {finding.level}: {finding.text}{first}"), file=sys.stderr)
