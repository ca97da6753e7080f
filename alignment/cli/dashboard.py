"""`alignment runs dashboard`: the panels of the reports as views of a W&B workspace."""

from typing import Annotated

import typer

from alignment.cli.common import JsonOption, print_json
from alignment.terminal import clean
from alignment.tracking.wandb_names import PROJECT

dashboard = typer.Typer(no_args_is_help=True, help="The panels of the reports, as views of a W&B workspace.")


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
    from alignment.reports import dashboards
    from alignment.tracking import workspace

    chosen = dashboards.load(name)
    if as_json:
        print_json(workspace.view(chosen, project, entity or ""))
    else:
        typer.echo(clean(f"made the view '{chosen.title}': {workspace.push(chosen, project, entity)}"))
