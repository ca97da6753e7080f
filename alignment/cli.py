"""The `alignment` command. Groups: `models` (models_cli.py, registry_cli.py), `data` (data_cli.py) and `runs`
(runs_cli.py, report_cli.py)."""

from typing import Any

import typer
from typer.core import TyperGroup

from alignment.data_cli import data
from alignment.errors import UserError
from alignment.registry_cli import models
from alignment.report_cli import runs
from alignment.stage import quiet_libraries
from alignment.terminal import one_line


class _Commands(TyperGroup):
    """Commands whose user mistakes end as one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {one_line(str(error))}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Models, their origin, data and runs.",
)
app.add_typer(models, name="models")
app.add_typer(data, name="data")
app.add_typer(runs, name="runs")


@app.callback()
def _alignment() -> None:
    """Supervised fine-tuning, reward models from human ratings, and PPO; the models meet in a registry."""
    quiet_libraries()  # before a command imports them


def main() -> None:
    """The console command `alignment`."""
    app(prog_name="alignment")


if __name__ == "__main__":
    main()
