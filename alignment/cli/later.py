"""Groups of commands that are imported when one of them is used: `alignment --help` needs one line of each."""

from __future__ import annotations

import importlib
from collections.abc import MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup


class _Later(TyperGroup):
    place = name_there = ""

    @property
    def commands(self) -> MutableMapping[str, Any]:
        return self._there().commands

    @commands.setter
    def commands(self, none_yet: MutableMapping[str, Any]) -> None:
        """TyperGroup sets the commands that it is made with: none."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._there().make_context(info_name, args, parent, **extra)

    def _there(self) -> TyperGroup:
        if "loaded" not in self.__dict__:
            module = importlib.import_module(f"alignment.cli.{self.place}")
            self.loaded = typer.main.get_group(getattr(module, self.name_there))
            self.loaded.help = self.help
        return self.loaded


def later(name: str, help: str, module: str | None = None) -> typer.Typer:
    """The group `name` of `alignment.cli.MODULE` (by default the module of its name), not imported yet."""
    fields = {"place": module or name, "name_there": name}
    return typer.Typer(cls=type("_Later", (_Later,), fields), help=help)
