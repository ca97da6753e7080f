"""`alignment recipes`: the shipped recipes and launch files, listed, shown and copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import JsonOption, print_json
from alignment.config import shipped
from alignment.errors import UserError
from alignment.files import new_file
from alignment.terminal import clean

recipes = typer.Typer()
NameArgument = Annotated[str, typer.Argument(help="As `alignment recipes list` has it: sft/demo.yaml or sft/demo.")]
CONFIGS = Path("configs")


@recipes.callback(invoke_without_command=True)
def _recipes(
    context: typer.Context,
    copy: Annotated[Path | None, typer.Option("--copy", metavar="FOLDER", help="Write them all there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The shipped recipes and launch files; without a command, they are listed.  Example: alignment recipes"""
    if context.invoked_subcommand is not None:
        if copy is not None:
            raise UserError("--copy writes them all; leave out the command after it")
        return
    if copy is not None:
        if copy.exists():
            raise UserError(f"{copy} is there already; name a new folder")
        for kind in shipped.KINDS:
            shutil.copytree(shipped.configs() / kind, copy / kind, ignore=shutil.ignore_patterns("__pycache__"))
    list_recipes(as_json)
    if copy is not None and not as_json:
        typer.echo(clean(f"wrote {len(shipped.recipes())} files to {copy}"))


@recipes.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """Each with what it is for.  Example: alignment recipes list"""
    found = shipped.recipes()
    if as_json:
        print_json({"recipes": [{"file": name, "about": about} for name, about in found]})
        return
    for name, about in found:
        typer.echo(clean(f"{name:32} {about[:84]}"))


@recipes.command("show")
def show_recipe(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print one.  Example: alignment recipes show ppo/demo"""
    file = shipped.recipe(name)
    text = file.read_text(encoding="utf-8")
    if as_json:
        print_json({"file": shipped.name_of(file), "text": text})
    else:
        typer.echo(text, nl=False)


@recipes.command("copy")
def copy_recipe(
    name: NameArgument,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="[default: configs]", show_default=False)] = CONFIGS,
    as_json: JsonOption = False,
) -> None:
    """Write one to DIR/NAME, to be changed.  Example: alignment recipes copy sft/demo"""
    file = shipped.recipe(name)
    target = folder / shipped.name_of(file)
    if target.exists():
        raise UserError(f"{target} is there already; remove it, or name another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as part:
            shutil.copyfile(file, part)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}; name another folder") from None
    if as_json:
        print_json({"file": str(target)})
    else:
        typer.echo(clean(f"wrote {target}"))
