"""`alignment runs`: what is running, what came of it, and what a reviewer says of it."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from alignment.cli.common import JsonOption, RegistryOption, plain_table, print_json
from alignment.cli.completion import complete_run
from alignment.distributed.ticker import ticking
from alignment.errors import UserError, require_extra
from alignment.reports import overview
from alignment.reports.compare import Figure, compare, figure, in_order
from alignment.reports.judges import judge_of
from alignment.reports.review import evaluations_of_run, read_reviews, review, still_pointed_to
from alignment.reports.verdicts import headline, not_measured, short_summary, worst
from alignment.reports.watch import OUTCOME_STYLES, PIPE_WIDTH, STATE_STYLES, watch
from alignment.runs import lease
from alignment.runs import metrics as declared
from alignment.runs.brief import read_brief
from alignment.runs.checkpoint import committed
from alignment.runs.record import RunRecord, find_runs
from alignment.runs.resume import value_at
from alignment.terminal import clean, one_line, screen
from alignment.tracking.wandb_names import PROJECT

runs = typer.Typer(no_args_is_help=True)
dashboard = typer.Typer(no_args_is_help=True, help="The panels of the reports, as views of a W&B workspace.")
runs.add_typer(dashboard, name="dashboard")

RunsOption = Annotated[Path, typer.Option("--runs", help="The folder of the runs.")]
RunArgument = Annotated[str, typer.Argument(help="A run's name, or its folder.", autocompletion=complete_run)]
RUNS = Path("runs")
HIGHLIGHTS = (
    "model.name", "model.policy", "model.reward", "model.held_out_reward", "model.mode", "model.method", "data.train",
    "data.eval", "data.eval_share", "training.max_steps", "training.num_train_epochs", "training.learning_rate",
    "training.per_device_train_batch_size", "rollout.batch_size", "ppo.kl_coef", "ppo.kl_target", "training.seed",
    "registry.name", "tracking.wandb",
)  # fmt: skip
LIST_FIGURES = 3
WIN_RATE = "eval/win_rate"


@runs.command("list")
def list_runs(folder: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Every run, the newest first.  Example: alignment runs list"""
    found = [(path, *_read(path)) for path in find_runs(folder)]
    if as_json:
        rows = [_summary(record) if record else {"path": str(path), "error": said} for path, record, said in found]
        print_json({"runs": rows})
        return
    if not found:
        typer.echo(
            f"No runs in {clean(str(folder))}. Training a stage makes one; --runs names another folder.", err=True
        )
        return
    table = plain_table("run", "stage", "state", "step", "verdict", "figures", "last line")
    for path, record, said in found:
        if record is None:
            table.add_row(Text(one_line(path.name), style="bold"), "", Text(one_line(said), style="red"))
            continue
        row = _summary(record)
        total = f" of {row['total_steps']}" if row["total_steps"] else ""
        figures = [f"{name} {overview.number(value)}{_by(row, name)}" for name, value in row["figures"].items()]
        table.add_row(
            Text(one_line(path.name), style="bold"),
            record.stage,
            Text(row["state"], style=STATE_STYLES[row["state"]]),
            f"{row['step']}{total}",
            Text(row["verdict_in_short"], style=OUTCOME_STYLES[row["verdict"]]),
            Text(one_line(", ".join(figures))),
            f"{overview.span(row['age_seconds'])} ago",
        )
    screen().print(table)


@runs.command("show")
def show_run(run: RunArgument, folder: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """One run: its settings, figures, findings and reviews.  Example: alignment runs show demo-ppo"""
    record = RunRecord.read(overview.find_run(run, folder))
    if as_json:
        print_json(_everything(record))
        return
    out = screen()
    row = _summary(record)
    facts = [
        ("run", f"{record.name} ({record.stage})"),
        ("folder", str(record.path)),
        ("state", f"{row['state']}, step {row['step']}" + (f" of {row['total_steps']}" if row["total_steps"] else "")),
        ("last line", f"{overview.span(row['age_seconds'])} ago"),
        *((key, str(value)) for key, value in _highlights(record).items()),
        *(("attempt", f"{each.started_at:%Y-%m-%d %H:%M:%S} UTC, {_from(each)}") for each in record.run.attempts),
        ("published", overview.published_as(record)),
        ("checkpoints", ", ".join(path.name for path in reversed(committed(record.path))) or "none"),
        *(("review", said.text) for said in read_reviews(record.path)),
        *((each.label, each.text) for each in evaluations_of_run(record)),
    ]
    _print_pairs(out, facts)
    out.print()
    found_verdicts = overview.verdicts_now(record)
    out.print(Text(headline(found_verdicts), style=f"bold {OUTCOME_STYLES[worst(found_verdicts)]}"))
    table = plain_table("verdict", "check", "reason")
    for verdict in found_verdicts:
        outcome = Text(verdict.outcome, style=OUTCOME_STYLES[verdict.outcome])
        table.add_row(outcome, Text(one_line(verdict.title)), Text(one_line(verdict.reason)))
    out.print(table)
    table = plain_table("figure", "last", "best", "unit", "meaning")
    for name in in_order(record):
        metric, found = declared.find(record.stage, name), figure(record, name)
        unit, meaning = (metric.unit, metric.meaning) if metric else ("", "")
        best = "" if found.best is None else f"{overview.number(found.best)} at {found.best_step}"
        meaning += f", judged by {row['judged_by_in_short']}" if name == WIN_RATE and row["judged_by"] else ""
        table.add_row(Text(one_line(name)), _last(found), best, unit, Text(one_line(meaning)))
    out.print(table)


@runs.command("compare")
def compare_runs(
    named: Annotated[list[str], typer.Argument(metavar="RUN RUN...", autocompletion=complete_run)],
    folder: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Runs of a stage side by side.  Example: alignment runs compare demo-ppo demo-ppo-2"""
    found = compare([RunRecord.read(overview.find_run(name, folder)) for name in named])
    if as_json:
        print_json(asdict(found))
        return
    out, names = screen(), [Text(one_line(name), style="bold") for name in found.names]
    table = _wide_table("setting", names)
    for key, values in found.config.items():
        table.add_row(Text(one_line(key)), *(Text(one_line(str(value))) for value in values))
    out.print(table if found.config else "The same settings.")
    table = _wide_table("verdict", names)
    for name, outcomes in found.verdicts.items():
        cells = [Text(outcome or "", style=OUTCOME_STYLES.get(outcome or "", "")) for outcome in outcomes]
        table.add_row(Text(one_line(found.titles[name])), *cells)
    out.print(table if found.verdicts else "All of them passed every check.")
    table = _wide_table("figure", [*names, Text("unit")])
    for row in found.figures:
        table.add_row(Text(one_line(row.name)), *(_last_and_best(each) for each in row.figures), row.unit)
        if row.name == WIN_RATE:
            table.add_row(Text("  judged by", style="dim"), *(Text(one_line(each or "")) for each in found.judges), "")
    out.print(table)


@runs.command("watch")
def watch_run(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Print it as it is now, and leave.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 1.0,
    folder: RunsOption = RUNS,
) -> None:
    """A run in the terminal as it goes on; Ctrl-C leaves it.  Example: alignment runs watch demo-ppo"""
    output = screen()
    if not output.is_terminal:
        output.width = PIPE_WIDTH
    watch(overview.find_run(run, folder), output, once, interval)


@runs.command("review")
def review_run(
    run: RunArgument,
    approve: Annotated[bool, typer.Option("--approve", help="It may go out.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="It may not: `models promote` refuses its model.")] = False,
    note: Annotated[str, typer.Option("--note", help="What you saw.")] = "",
    reviewer: Annotated[str | None, typer.Option("--reviewer", help="Who says so [default: your login].")] = None,
    folder: RunsOption = RUNS,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what you think of a run's model.  Example: alignment runs review demo-ppo --approve --note 'Reads well'"""
    if approve == reject:
        raise UserError("runs review: say --approve or --reject")
    record = RunRecord.read(overview.find_run(run, folder))
    said = review(record, "approve" if approve else "reject", note, reviewer, registry)
    pointing = still_pointed_to(record, registry)
    from alignment.reports.report import redo_report  # Jinja is needed here alone

    redo_report(record.path, registry)
    if as_json:
        print_json({**said.model_dump(mode="json"), "still_pointed_to": pointing})
        return
    typer.echo(clean(f"{said.model or said.run} {said.text}"))
    if said.model is None:
        typer.echo("The run has published no model yet, so this is of the run alone: review its model too.", err=True)
    elif approve and said.verdict == "fail":
        typer.echo("Its own verdict is fail: alignment runs show says why.", err=True)
    if approve and said.caveat:
        typer.echo(clean(f"Note: {said.caveat}."), err=True)
    for each in pointing:
        arguments = each.replace("@", " ")
        advice = f"alignment models demote {arguments} takes it away, alignment models rollback {arguments} goes back"
        typer.echo(f"{each} points to it all the same: {advice}.", err=True)


@runs.command("replay")
def replay_run(
    run: RunArgument,
    online: Annotated[bool, typer.Option("--online", help="To the server that you are logged in to.")] = False,
    folder: RunsOption = RUNS,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's journal to one clean W&B run.  Example: alignment runs replay demo-sft"""
    from alignment.tracking.replay import replay  # W&B is needed here alone

    run_dir = overview.find_run(run, folder)
    with lease.hold(run_dir, "replay it once that has ended"):
        found = replay(run_dir, "online" if online else "offline", registry)
    if as_json:
        print_json(asdict(found))
        return
    what = f"{found.steps} steps, {found.tables} tables of samples, {found.histograms} histograms"
    typer.echo(clean(f"{found.where}: {what}, {len(found.models)} models"))
    if found.missing:
        typer.echo(clean(f"not in the registry any more: {', '.join(found.missing)}"), err=True)
    if not online:
        typer.echo(clean(f"upload it with: wandb sync {found.where}"))


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
    other = lease.owned_folder(out) if out else None
    held = lease.hold(other, "write the report elsewhere (--out FILE)") if other else nullcontext()
    with ticking("alignment runs report"), held:
        path, outcome = write_report(paths, out, registry, panels)
    said = [short_summary(overview.verdicts_now(RunRecord.read(each))) for each in paths]
    if as_json:
        print_json({"report": str(path), "verdict": outcome, "verdicts": said})
    else:
        typer.echo(clean(f"wrote {path}; verdict: {'; '.join(said)}"))


@dashboard.callback()
def _dashboard() -> None:
    """Keeps `push` a word of its own: typer would leave out the name of an only command."""


@dashboard.command("push")
def push_dashboard(
    name: Annotated[str, typer.Argument(help="sft, reward, ppo, labels or compare; or a YAML file like theirs.")],
    project: Annotated[str, typer.Option("--project", envvar="WANDB_PROJECT", help="The W&B project.")] = PROJECT,
    entity: Annotated[str | None, typer.Option("--entity", help="Whose it is [default: the key's owner].")] = None,
    as_json: JsonOption = False,
) -> None:
    """A dashboard as a view of a W&B workspace; --json prints it.  Example: alignment runs dashboard push ppo"""
    require_extra("dashboards", "wandb_workspaces", purpose="a view of a W&B workspace")
    from alignment.reports import dashboards
    from alignment.tracking import workspace

    chosen = dashboards.load(name)
    if as_json:
        print_json(workspace.view(chosen, project, entity or ""))
    else:
        typer.echo(clean(f"made the view '{chosen.title}': {workspace.push(chosen, project, entity)}"))


def _read(path: Path) -> tuple[RunRecord | None, str]:
    """A run in brief; or None and why it cannot be read: one damaged run does not hide the others."""
    try:
        return read_brief(path), ""
    except UserError as error:
        return None, str(error)


def _summary(record: RunRecord) -> dict[str, Any]:
    """A run in a line."""
    found = overview.verdicts_now(record)
    judge = judge_of(record.config)
    shown = ((name, record.figure(name)) for name, _ in overview.main_series(record)[:LIST_FIGURES])
    figures = {name: found[1] for name, found in shown if found is not None}
    return {
        "name": record.name,
        "path": str(record.path),
        "stage": record.stage,
        "state": overview.state_of(record),
        "step": record.last_step,
        "total_steps": overview.total_steps(record),
        "verdict": worst(found),
        "verdict_in_short": short_summary(found),
        "not_measured": [verdict.name for verdict in not_measured(found)],
        "judged_by": judge.text if judge else None,
        "judged_by_in_short": judge.short if judge else None,
        "figures": figures,
        "age_seconds": round(overview.age(record), 1),
    }


def _everything(record: RunRecord) -> dict[str, Any]:
    """What `runs show` tells a program."""
    figures = []
    for name in in_order(record):
        metric = declared.find(record.stage, name)
        said = {"unit": metric.unit, "meaning": metric.meaning} if metric else {"unit": "", "meaning": ""}
        figures.append({"name": name, **said, **asdict(figure(record, name))})
    return {
        **_summary(record),
        "config": record.config,
        "attempts": [each.model_dump(mode="json") for each in record.run.attempts],
        "models": record.run.models,
        "verdicts": [asdict(verdict) for verdict in overview.verdicts_now(record)],
        "figures": figures,
        "findings": record.of_kind("finding", "cleared"),
        "published": record.published,
        "exit": record.exit,
        "checkpoints": [path.name for path in reversed(committed(record.path))],
        "reviews": [said.model_dump(mode="json") for said in read_reviews(record.path)],
        "evaluations": [each.model_dump(mode="json") for each in evaluations_of_run(record)],
    }


def _by(row: dict[str, Any], name: str) -> str:
    """Who judged, after a win rate."""
    return f" (by {row['judged_by_in_short']})" if name == WIN_RATE and row["judged_by_in_short"] else ""


def _highlights(record: RunRecord) -> dict[str, Any]:
    values = ((key, value_at(record.config, key)) for key in HIGHLIGHTS)
    return {key: value for key, value in values if value is not None}


def _from(attempt: Any) -> str:
    return f"from {attempt.resumed_from}" if attempt.resumed_from else "from the beginning"


def _last(found: Figure) -> str:
    if found.last is None:
        return overview.number(None)
    return overview.number(found.last) + (f" [{found.ci[0]:.3g}, {found.ci[1]:.3g}]" if found.ci else "")


def _last_and_best(found: Figure) -> str:
    if found.last is None:
        return ""
    best = (
        "" if found.best is None or found.best_step == found.step else f" (best {found.best:.4g} at {found.best_step})"
    )
    return _last(found) + best


def _wide_table(first: str, names: Iterable[Text]) -> Any:
    table = plain_table(first)
    for name in names:
        table.add_column(name)
    return table


def _print_pairs(out: Any, pairs: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in pairs:
        table.add_row(Text(one_line(key), style="dim"), Text(one_line(value)))
    out.print(table)
