"""`alignment runs`: what became of training runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alignment.models_cli import JsonOption, RegistryOption, print_json
from alignment.terminal import one_line

runs = typer.Typer(no_args_is_help=True, help="Training runs: their journals and what became of them.")


@runs.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Run folder, for example runs/demo-sft.")],
    online: Annotated[bool, typer.Option("--online", help="To the server that you are logged in to.")] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's journal to one clean W&B run.  Example: alignment runs replay runs/demo-sft"""
    from alignment.tracking.replay import replay as to_wandb

    found = to_wandb(run, "online" if online else "offline", registry)
    if as_json:
        print_json(asdict(found))
        return
    what = f"{found.steps} steps, {found.tables} tables of samples, {found.histograms} histograms"
    typer.echo(one_line(f"{found.where}: {what}, {len(found.models)} models"))
    if found.missing:
        typer.echo(one_line(f"not in the registry any more: {', '.join(found.missing)}"), err=True)
    if not online:
        typer.echo(one_line(f"upload it with: wandb sync {found.where}"))
