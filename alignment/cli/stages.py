"""`alignment sft|reward|ppo`, which run what `python -m sft|reward|ppo` does."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import typer

from alignment.runs.starting import hold_signals

stages = typer.Typer()
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For commands whose own command line reads all arguments, --help too."""


@stages.command("sft", context_settings=PASSED_ON, add_help_option=False)
def sft(context: typer.Context) -> None:
    """Fine-tuning on demonstrations, as python -m sft.  Example: alignment sft configs/sft/demo.yaml"""
    _run("sft", context.args)


@stages.command("reward", context_settings=PASSED_ON, add_help_option=False)
def reward(context: typer.Context) -> None:
    """A reward model, as python -m reward.  Example: alignment reward configs/reward/demo.yaml"""
    _run("reward", context.args)


@stages.command("ppo", context_settings=PASSED_ON, add_help_option=False)
def ppo(context: typer.Context) -> None:
    """PPO, as python -m ppo.  Example: alignment ppo configs/ppo/demo.yaml"""
    _run("ppo", context.args)


def _run(stage: str, arguments: list[str]) -> None:
    hold_signals()
    from alignment.training.stage import exit_process

    exit_process(own_module(stage, "__main__").main(arguments))


def own_module(stage: str, name: str) -> Any:
    """A module of a stage of this suite: a `reward.py` of the current folder would be found first."""
    root = str(Path(__file__).resolve().parents[2])
    found = importlib.util.find_spec(stage)
    if found is None or found.origin is None or not Path(found.origin).resolve().is_relative_to(root):
        sys.path.insert(0, root)
        importlib.invalidate_caches()
    return importlib.import_module(f"{stage}.{name}")
