"""`alignment models`: what is in the registry and where it came from. `registry_cli` has the commands that change it.

torch is imported inside the commands that need it, so that the command line starts at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from alignment.completion import complete_reference
from alignment.registry import LineageNode, Registry, RegistryError, Version, render_lineage
from alignment.registry.lineage import describe_data, flat_metrics, walk
from alignment.terminal import clean, console, one_line, screen

models = typer.Typer(no_args_is_help=True, help="The model registry: what is in it and how it was made.")

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="The registry's folder [default: $ALIGNMENT_REGISTRY or ./registry].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
RefArgument = Annotated[
    str, typer.Argument(help="NAME, NAME@v3, NAME@ALIAS or NAME@sha256:PREFIX.", autocompletion=complete_reference)
]


@models.command("list")
def list_models(registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Every model by name, with its newest version.  Example: alignment models list"""
    opened = Registry(registry)
    if as_json:
        found = [{"name": name, **_summary(opened, name)} for name in opened.names()]
        print_json({"registry": str(opened.path), "models": found})
    elif not opened.names():
        typer.echo(f"No models in {clean(str(opened.path))}. Training a stage publishes one.", err=True)
    else:
        screen().print(_models_table(opened))


@models.command("show")
def show_model(ref: RefArgument, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """One version: what it is, what it was made from, and how.  Example: alignment models show help-desk-ppo@v1"""
    opened = Registry(registry)
    version = opened.resolve(ref)
    if as_json:
        manifest = version.manifest.model_dump(mode="json", by_alias=True)
        print_json({**identity(version), "aliases": aliases_of(opened, version), "manifest": manifest})
    else:
        screen().print(_version_table(opened, version))


@models.command("graph")
def graph_model(ref: RefArgument, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """The lineage of a version, down to the data.  Example: alignment models graph help-desk-ppo"""
    node = Registry(registry).lineage(ref)
    if as_json:
        print_json(_graph(node))
    else:
        screen().print(render_lineage(node))


def plain_table(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD if console().is_terminal else None, pad_edge=False)


def _summary(registry: Registry, name: str) -> dict[str, Any]:
    """A model's versions and aliases for --json; a damaged one has an `error` and does not hide the others."""
    versions = []
    for number in registry.numbers(name):
        ref = f"{name}@v{number}"
        try:
            versions.append(identity(registry.resolve(ref)))
        except RegistryError as error:
            versions.append({"ref": ref, "error": str(error)})
    try:
        return {"versions": versions, "aliases": registry.aliases(name)}
    except RegistryError as error:
        return {"versions": versions, "aliases": {}, "error": str(error)}


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


def _models_table(registry: Registry) -> Table:
    table = plain_table("model", "stage", "role", "size", "published (UTC)", "aliases")
    for name in registry.names():
        try:
            newest, pointers = registry.resolve(name), registry.aliases(name)
        except RegistryError as error:
            table.add_row(Text(name), Text(one_line(str(error)), style="red"))
            continue
        manifest = newest.manifest
        table.add_row(
            Text(newest.ref, style="bold"),
            manifest.stage,
            manifest.role,
            decimal(size_of(newest)),
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
            ", ".join(f"{alias}=v{number}" for alias, number in pointers.items()),
        )
    return table


def _version_table(registry: Registry, version: Version) -> Table:
    manifest = version.manifest
    rows: list[tuple[str, str]] = [
        ("model", f"{version.ref} ({manifest.role}, stage {manifest.stage})"),
        ("digest", version.digest),
        ("folder", str(version.path)),
        ("aliases", ", ".join(aliases_of(registry, version))),
        ("published", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("run", manifest.run_id or ""),
        *((parent.role, f"{parent.ref} {parent.digest or ''}") for parent in manifest.parents),
        *([("base", f"{manifest.base.ref} {manifest.base.digest or ''}")] if manifest.base else []),
        *(("data", describe_data(data)) for data in manifest.data),
        *flat_metrics(manifest.metrics or {}),
        ("seed", "" if manifest.seed is None else str(manifest.seed)),
        ("processes", str(manifest.world_size)),
        ("commit", f"{manifest.code.commit}{' (changed)' if manifest.code.dirty else ''}" if manifest.code else ""),
        ("packages", " ".join(f"{name} {number}" for name, number in manifest.packages.items())),
        ("tokenizer", manifest.tokenizer_hash or "none"),
        ("template", manifest.chat_template_hash or "none"),
        *((path, decimal(record.size)) for path, record in manifest.files.items()),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows:
        if value:
            table.add_row(Text(one_line(key), style="dim"), Text(one_line(value)))
    return table


def aliases_of(registry: Registry, version: Version) -> list[str]:
    return [alias for alias, number in registry.aliases(version.name).items() if number == version.number]


def size_of(version: Version) -> int:
    return sum(record.size for record in version.manifest.files.values())


def _graph(root: LineageNode) -> dict[str, Any]:
    """A lineage as nodes and edges, each model once."""
    nodes = {}
    edges = []
    for node in walk(iter([root])):
        known = identity(node.version) if node.version else {"ref": node.ref}
        metrics = node.version.manifest.metrics if node.version else None
        data = [item.model_dump(mode="json") for item in node.data]
        if node.problem or node.ref not in nodes:
            nodes[node.ref] = {**known, "problem": node.problem, "data": data, "metrics": metrics}
        edges += [{"child": node.ref, "as": edge.relation, "parent": edge.node.ref} for edge in node.parents]
    return {"root": root.ref, "nodes": list(nodes.values()), "edges": edges}


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
