"""A command of `alignment rate`, and the parser that they share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from alignment import terminal

PORT = 8765


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {terminal.one_line(message)}; see {self.prog} --help\n")


@dataclass(frozen=True)
class Command:
    """A subcommand: what it takes beside --db and --json, and what it does with it.

    `run` returns the object for --json; `show`, given also how the program was called, prints it for people. `example`
    is what follows the program's name.
    """

    about: str
    example: str
    run: Callable[[argparse.Namespace], Any]
    show: Callable[[Any, str], None]
    arguments: Sequence[tuple[Sequence[str], dict[str, Any]]] = field(default=())


REGISTRY = (["--registry"], {"metavar": "DIR", "help": "registry folder (default: $ALIGNMENT_REGISTRY or ./registry)"})
URL = (["--url"], {"default": f"http://127.0.0.1:{PORT}", "metavar": "BASE", "help": "address of the page"})
NEW_LABELER: tuple[list[str], dict[str, Any]] = (
    ["--new-labeler"],
    {"action": "store_true", "help": "the name is somebody new's, though it is near a known one"},
)
