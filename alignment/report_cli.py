"""`alignment runs report` and `alignment runs dashboard`: what reviewers look at, as a file or in W&B."""

from pathlib import Path
from typing import Annotated

import typer

from alignment.models_cli import JsonOption, RegistryOption, print_json
from alignment.runs_cli import RUNS, RunsOption, dashboard, runs
from alignment.terminal import clean
from alignment.tracking import dashboards, overview


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
    """One HTML file of a run, or of several compared.  Example: alignment runs report demo-ppo my-ppo"""
    from alignment.tracking.report import write_report  # Jinja is needed here alone

    paths = [overview.find_run(name, folder) for name in names]
    if out is None and len(paths) > 1:
        out = Path("report.html")
    path, outcome = write_report(paths, out, registry, panels)
    if as_json:
        print_json({"report": str(path), "verdict": outcome})
    else:
        typer.echo(clean(f"wrote {path}; verdict: {outcome}"))


@dashboard.command("push")
def push_dashboard(
    name: Annotated[str, typer.Argument(help="sft, reward, ppo, labels or compare; or a YAML file like theirs.")],
    project: Annotated[str, typer.Option("--project", help="The W&B project, as tracking.project.")] = "alignment",
    entity: Annotated[str | None, typer.Option("--entity", help="Whose it is [default: the key's owner].")] = None,
    as_json: JsonOption = False,
) -> None:
    """A dashboard as a view of a W&B workspace; --json prints it.  Example: alignment runs dashboard push ppo"""
    from alignment.tracking import workspace

    chosen = dashboards.load(name)
    if as_json:
        print_json(workspace.view(chosen, project, entity or ""))
    else:
        typer.echo(clean(f"made the view '{chosen.title}': {workspace.push(chosen, project, entity)}"))
