"""What `alignment rate` says of a reward model: whose ratings made it so, and what more ratings would bring."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from alignment import terminal
from alignment.errors import UserError

GROWTH: list[tuple[list[str], dict[str, Any]]] = [
    (["--model"], {"metavar": "REF", "help": "a reward model: what would more ratings do to its last layer?"}),
    (["--more"], {"type": int, "metavar": "N", "help": "how many more (default 200)"}),
    (["--slice"], {"metavar": "KEY", "help": "also by this column of the prompts"}),
]
"""Options of the commands that show a forecast."""


def check_growth(args: argparse.Namespace) -> None:
    """Refuse options of a forecast that nothing would read, before any work."""
    if args.model is None and (args.slice or args.more is not None or args.registry):
        raise UserError("--slice, --more and --registry go with --model REF, on which a forecast is made")
    if args.more is not None and args.more < 1:
        raise UserError(f"--more {args.more}: expected the number of further ratings, 1 or more")


def growth_of(args: argparse.Namespace) -> dict[str, Any]:
    """The forecast as the report's `growth`; {} without --model."""
    if args.model is None:
        return {}
    from alignment.training.stage import quiet_libraries

    quiet_libraries()  # before the libraries are imported
    from alignment.labeling.refit.commands import MORE, growth

    return {"growth": growth(args.db, args.model, args.registry, args.more or MORE, args.slice)}


def show_growth(result: dict[str, Any]) -> None:
    """The forecast of a report, if it has one."""
    if "growth" in result:
        from alignment.labeling.refit.text import show_growth

        show_growth(result["growth"], terminal.screen())


def run_influence(args: argparse.Namespace) -> Any:
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    from alignment.labeling.refit.commands import influence

    return influence(args.db, args.model, args.registry, args.answers)


def show_influence(result: dict[str, Any], called: str) -> None:
    from alignment.labeling.refit.text import show_influence

    show_influence(result, terminal.screen())


def change_of(args: argparse.Namespace) -> dict[str, Any]:
    """What forgetting a labeler would change in a model, said on stderr before it is done; the result's `change`."""
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    from alignment.labeling.refit.commands import forgetting
    from alignment.labeling.refit.text import forgetting_sentence

    found = forgetting(args.db, args.name, args.model, args.registry)
    print(forgetting_sentence(found), file=sys.stderr)
    return {"change": found["change"]}
