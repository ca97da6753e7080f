"""`alignment runs report`: what reviewers look at, as one file."""

from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import JsonOption, RegistryOption, print_json
from alignment.cli.runs import RUNS, RunsOption, runs
from alignment.distributed.ticker import ticking
from alignment.reports import overview
from alignment.reports.verdicts import short_summary
from alignment.runs.record import RunRecord
from alignment.terminal import clean


@runs.command("report")
def report_runs(
    names: Annotated[list[str], typer.Argument(help="A run's name or folder; several are compared.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option("--out", help="The file [default: RUN/report.html].")] = None,
    panels: Annotated[
        str | None, typer.Option("--dashboard", help="A YAML file like those in configs/dashboards.")
    ] = None,
    folder: RunsOption = RUNS,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """One HTML file of a run, or of several compared.  Example: alignment runs report demo-ppo"""
    from alignment.reports.report import write_report  # Jinja is needed here alone

    paths = [overview.find_run(name, folder) for name in names]
    if out is None and len(paths) > 1:
        out = Path("report.html")
    with ticking("alignment runs report"):
        path, outcome = write_report(paths, out, registry, panels)
    said = [short_summary(overview.verdicts_now(RunRecord.read(each))) for each in paths]
    if as_json:
        print_json({"report": str(path), "verdict": outcome, "verdicts": said})
    else:
        typer.echo(clean(f"wrote {path}; verdict: {'; '.join(said)}"))
