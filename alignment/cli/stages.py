"""`alignment sft|reward|ppo`, which run what `python -m sft|reward|ppo` does, and `alignment recipes`."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.common import JsonOption, print_json
from alignment.config import shipped
from alignment.errors import UserError
from alignment.terminal import clean
from alignment.training.stage import leave

stages = typer.Typer()
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For commands whose own command line reads all arguments, --help too."""


@stages.command("sft", context_settings=PASSED_ON, add_help_option=False)
def sft(context: typer.Context) -> None:
    """Fine-tuning on demonstrations, as python -m sft.  Example: alignment sft configs/sft/demo.yaml"""
    leave(_own("sft").main(context.args))


@stages.command("reward", context_settings=PASSED_ON, add_help_option=False)
def reward(context: typer.Context) -> None:
    """A reward model, as python -m reward.  Example: alignment reward configs/reward/demo.yaml"""
    leave(_own("reward").main(context.args))


@stages.command("ppo", context_settings=PASSED_ON, add_help_option=False)
def ppo(context: typer.Context) -> None:
    """PPO, as python -m ppo.  Example: alignment ppo configs/ppo/demo.yaml"""
    leave(_own("ppo").main(context.args))


def _own(stage: str) -> Any:
    """The stage's command line, of this suite: a `reward.py` of the current folder would be found first."""
    root = str(Path(__file__).resolve().parents[2])
    found = importlib.util.find_spec(stage)
    if found is None or found.origin is None or not Path(found.origin).resolve().is_relative_to(root):
        sys.path.insert(0, root)
        importlib.invalidate_caches()
    return importlib.import_module(f"{stage}.__main__")


@stages.command("recipes")
def recipes(
    copy: Annotated[Path | None, typer.Option("--copy", metavar="FOLDER", help="Write them all there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The shipped recipes and launch files; --copy writes them.  Example: alignment recipes --copy configs"""
    if copy is not None:
        if copy.exists():
            raise UserError(f"{copy} is there already; name a new folder")
        for kind in shipped.KINDS:
            shutil.copytree(shipped.configs() / kind, copy / kind, ignore=shutil.ignore_patterns("__pycache__"))
    found = shipped.recipes()
    if as_json:
        print_json({"recipes": [{"file": name, "about": about} for name, about in found]})
        return
    for name, about in found:
        typer.echo(clean(f"{name:32} {about[:84]}"))
    if copy is not None:
        typer.echo(clean(f"wrote {len(found)} files to {copy}"))
