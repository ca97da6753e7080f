"""Options and output that the groups of commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from alignment.cli.completion import complete_reference
from alignment.registry import Registry, RegistryError, Version
from alignment.registry.reviews import rejection
from alignment.terminal import console

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="The registry's folder [default: $ALIGNMENT_REGISTRY or ./registry].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
RefArgument = Annotated[
    str, typer.Argument(help="NAME, NAME@v3, NAME@ALIAS or NAME@sha256:PREFIX.", autocompletion=complete_reference)
]


def plain_table(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD if console().is_terminal else None, pad_edge=False)


def identity(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "ref": version.ref,
        "digest": version.digest,
        "stage": manifest.stage,
        "role": manifest.role,
        "created_at": manifest.created_at.isoformat(),
        "bytes": size_of(version),
        "path": str(version.path),
    }


def aliases_of(registry: Registry, version: Version) -> list[str]:
    return [alias for alias, number in registry.aliases(version.name).items() if number == version.number]


def rejections(registry: Registry, name: str) -> dict[str, str]:
    """The aliases of a model that point to a rejected version, each with the review."""
    found = {}
    for alias, number in registry.aliases(name).items():
        try:
            said = rejection(registry, registry.resolve(f"{name}@v{number}"))
        except RegistryError:
            continue  # `resolve` and `doctor` name it
        if said:
            found[alias] = said
    return found


def size_of(version: Version) -> int:
    return sum(record.size for record in version.manifest.files.values())


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
