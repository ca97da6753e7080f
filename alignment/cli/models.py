"""`alignment models`: what is in the registry and where it came from. `registry_cli` has the commands that change it.

torch is imported inside the commands that need it, so that the command line starts at once.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from alignment import html as pages
from alignment.cli.common import (
    JsonOption,
    RefArgument,
    RegistryOption,
    aliases_of,
    identity,
    plain_table,
    print_json,
    rejections,
    size_of,
)
from alignment.errors import UserError
from alignment.registry import LineageNode, Manifest, Registry, RegistryError, Version, render_lineage
from alignment.registry.evaluations import evaluations_of, largest_first, newest_evaluations
from alignment.registry.graph import mermaid
from alignment.registry.lineage import describe_data, flat_metrics, walk
from alignment.registry.page import lineage_page
from alignment.registry.ratings import RatingSource, ratings_behind, reached_by
from alignment.registry.reviews import rejection, reviews_of
from alignment.registry.words import judge_in
from alignment.terminal import clean, one_line, screen

models = typer.Typer(no_args_is_help=True)
EVALUATIONS_SHOWN = 6
"""By `models show` without --all."""


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
def show_model(
    ref: RefArgument,
    every: Annotated[
        bool, typer.Option("--all", help=f"Every evaluation, not the {EVALUATIONS_SHOWN} largest.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """One version: what it is, what it was made from, and how.  Example: alignment models show help-desk-ppo@v1"""
    opened = Registry(registry)
    version = opened.resolve(ref)
    if as_json:
        manifest = version.manifest.model_dump(mode="json", by_alias=True)
        said = [review.model_dump(mode="json") for review in reviews_of(opened, version)]
        state = {"aliases": aliases_of(opened, version), "rejected": rejection(opened, version), "reviews": said}
        judged = [each.model_dump(mode="json") for each in evaluations_of(opened, version)]
        print_json({**identity(version), **state, "evaluations": judged, "manifest": manifest})
    else:
        screen().print(_version_table(opened, version, every))


@models.command("graph")
def graph_model(
    ref: RefArgument,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Text that Markdown viewers draw.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with a picture to this file.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """The lineage of a version, down to the data.  Example: alignment models graph help-desk-ppo --html lineage.html"""
    node = Registry(registry).lineage(ref)
    if as_mermaid + as_json + (html is not None) > 1:
        raise UserError("--mermaid, --html and --json: one at a time")
    if as_mermaid:
        typer.echo(mermaid(node), nl=False)
    elif html is not None:
        pages.write(html, lineage_page(node), "--html")
        typer.echo(f"wrote {clean(str(html))}", err=True)
    elif as_json:
        print_json(_graph(node))
    else:
        screen().print(render_lineage(node))


@models.command("ratings")
def ratings_of(
    ref: Annotated[str | None, typer.Argument(help="A model; or none with --labeler.")] = None,
    labeler: Annotated[str | None, typer.Option("--labeler", help="A name, or a hash as the first form shows.")] = None,
    db: Annotated[Path | None, typer.Option("--db", help="The ratings database that knows the name.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """The ratings behind a model, or with --labeler the models that a labeler's ratings reached.

    Example: alignment models ratings help-desk-ppo
    """
    opened = Registry(registry)
    if (ref is None) == (labeler is None):
        raise UserError("models ratings: give a model, or --labeler with a name or hash")
    if ref is not None:
        found = ratings_behind(opened.lineage(ref))
        if as_json:
            print_json({"model": opened.resolve(ref).ref, "sources": [asdict(source) for source in found]})
        else:
            _print_ratings(opened.resolve(ref).ref, found)
        return
    assert labeler is not None
    wanted = _labeler_hash(labeler, db)
    reached, unreadable = reached_by(opened, wanted)
    for problem in unreadable:
        typer.echo(clean(f"cannot be read, so nobody knows: {one_line(problem)}"), err=True)
    if as_json:
        print_json({"labeler": wanted, "models": [asdict(each) for each in reached], "unreadable": unreadable})
    elif not reached:
        typer.echo(f"Ratings of labeler {wanted} have reached no model in {clean(str(opened.path))}.", err=True)
    else:
        table = plain_table("model", "stage", "ratings", "how")
        for each in reached:
            how = "directly" if each.ratings else f"through {', '.join(each.through)}"
            count = each.ratings or max(each.through.values())
            table.add_row(Text(each.ref, style="bold"), each.stage, f"{count:,}", how)
        screen().print(table)


@models.command("diff")
def diff_models(
    ref: RefArgument,
    other: Annotated[str, typer.Argument(help="Another one.")],
    weights: Annotated[bool, typer.Option(help="Read the weights and compare them too.")] = True,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between two versions.  Example: alignment models diff help-desk-ppo@v1 help-desk-ppo@v2"""
    from alignment.cli.diff import print_diff
    from alignment.models.diff import diff

    found = diff(ref, other, Registry(registry), weights)
    if as_json:
        print_json(found)
    else:
        print_diff(found)


@models.command("import")
def import_command(
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, a hub name (owner/name), or a .gguf file.")],
    name: Annotated[str, typer.Argument(help="The model is published under this name.")],
    role: Annotated[str | None, typer.Option(help="policy or reward [default: what config.json says].")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub model: a commit, tag or branch.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Keep Python files; the manifest says so.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="The base model of an adapter alone [default: what its config names].")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="A chat template for one that has none: chatml, alpaca, plain, or a .jinja file.")
    ] = None,
    eos_token: Annotated[str | None, typer.Option(help="The end token of one that names none.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a model into the registry.  Example: alignment models import Qwen/Qwen2.5-0.5B qwen"""
    from alignment.models.importing.model import import_model

    version, left_out = import_model(
        source,
        name,
        Registry(registry),
        role=role,
        revision=revision,
        trust_remote_code=trust_remote_code,
        base=base,
        template=template,
        eos_token=eos_token,
    )
    if as_json:
        print_json({**identity(version), "left_out": left_out})
        return
    origin = version.manifest.origin
    assert origin is not None
    typer.echo(clean(f"{version.ref} from {one_line(origin.source)} ({version.manifest.role}, {version.digest[:19]})"))
    if left_out:
        typer.echo(clean(f"not copied: {one_line(', '.join(left_out))}"), err=True)


@models.command("mirror")
def mirror_models(
    project: Annotated[str, typer.Option(envvar="WANDB_PROJECT", help="The W&B project.")] = "alignment",
    offline: Annotated[bool, typer.Option("--offline", help="Into ./wandb, for `wandb sync`.")] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell W&B of the versions that it does not know of yet.  Example: alignment models mirror --project help-desk"""
    from alignment.tracking.mirror import mirror_all

    told, failed = mirror_all(Registry(registry), project, "offline" if offline else "online")
    if as_json:
        print_json({"mirrored": told, "failed": failed})
    else:
        typer.echo(f"told W&B of {len(told)} versions" if told or failed else "W&B knows of every version")
        if failed:
            typer.echo(f"not yet: {one_line(', '.join(failed))}; run this again", err=True)
    if failed:
        raise typer.Exit(1)


def _labeler_hash(labeler: str, db: Path | None) -> str:
    if db is not None:
        if not db.is_file():
            raise UserError(f"--db {db}: no such file; name the ratings database")
        from alignment.ratings import RatingsStore  # imported late: --help does without

        with RatingsStore(db) as store:
            return store.people.labeler_hash(labeler)
    if not re.fullmatch(r"[0-9a-f]{16}", labeler):
        raise UserError(
            f"--labeler {labeler}: models hold hashes that only the database can make of a name; add --db RATINGS.db, "
            "or give the hash"
        )
    return labeler


def _print_ratings(ref: str, found: list[RatingSource]) -> None:
    if not found:
        typer.echo(f"No ratings are behind {ref}.", err=True)
    for source in found:
        kind = "simulated ratings" if source.simulated else "ratings"
        where = f"database {source.database}" if source.database else f"sha256 {(source.sha256 or '?')[:12]}"
        items = "" if source.items is None else f" of {source.items:,} items"
        typer.echo(one_line(f"{source.name} ({where}): {source.ratings:,} {kind}{items}"))
        typer.echo(f"  learned from or judged on by {one_line(', '.join(source.models))}")
        if source.labelers is None:
            typer.echo("  nothing is written down of who rated")
            continue
        typer.echo(f"  {len(source.labelers)} labeler{'' if len(source.labelers) == 1 else 's'}, by hash:")
        for who, count in sorted(source.labelers.items(), key=lambda pair: -pair[1]):
            typer.echo(f"    {one_line(who)}  {count:,}")


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
        return {"versions": versions, "aliases": registry.aliases(name), "rejected": rejections(registry, name)}
    except RegistryError as error:
        return {"versions": versions, "aliases": {}, "rejected": {}, "error": str(error)}


def _models_table(registry: Registry) -> Table:
    table = plain_table("model", "stage", "role", "size", "published (UTC)", "aliases")
    for name in registry.names():
        try:
            newest, pointers = registry.resolve(name), registry.aliases(name)
            rejected = rejections(registry, name)
        except RegistryError as error:
            table.add_row(Text(name), Text(one_line(str(error)), style="red"))
            continue
        manifest = newest.manifest
        table.add_row(
            Text(newest.ref, style="bold").append(" (rejected)" if rejection(registry, newest) else "", style="red"),
            manifest.stage,
            manifest.role,
            decimal(size_of(newest)),
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
            ", ".join(
                f"{alias}=v{number}{' (REJECTED)' if alias in rejected else ''}" for alias, number in pointers.items()
            ),
        )
    return table


def _evaluation_rows(registry: Registry, version: Version, every: bool) -> list[tuple[str, str]]:
    """The evaluations on the most prompts first; without `every`, the largest few."""
    found = largest_first(newest_evaluations(registry, version))
    shown = found if every else found[:EVALUATIONS_SHOWN]
    left = len(found) - len(shown)
    return [*((each.label, each.text) for each in shown), *([("", f"{left} more: --all")] if left else [])]


def _version_table(registry: Registry, version: Version, every: bool) -> Table:
    manifest = version.manifest
    rows: list[tuple[str, str]] = [
        ("model", f"{version.ref} ({manifest.role}, stage {manifest.stage})"),
        ("digest", version.digest),
        ("folder", str(version.path)),
        ("REJECTED", rejection(registry, version) or ""),
        ("aliases", ", ".join(aliases_of(registry, version))),
        ("published", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("run", manifest.run_id or ""),
        *(("review", review.text) for review in reviews_of(registry, version)),
        *_evaluation_rows(registry, version, every),
        ("W&B", manifest.wandb_url or ""),
        *_origin_rows(manifest),
        *((parent.role, f"{parent.ref} {parent.digest or ''}") for parent in manifest.parents),
        *([("base", f"{manifest.base.ref} {manifest.base.digest or ''}")] if manifest.base else []),
        *(("data", describe_data(data)) for data in manifest.data),
        *flat_metrics(manifest.metrics or {}),
        *(
            [("win rate", f"judged by {judge_in(manifest.metrics or {})}")]
            if "eval_win_rate" in (manifest.metrics or {})
            else []
        ),
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


def _origin_rows(manifest: Manifest) -> list[tuple[str, str]]:
    origin = manifest.origin
    rows = [("code", "brings Python of its own; runs with model.trust_remote_code")] * manifest.remote_code
    if origin is None:
        return rows
    return [*rows, ("from", f"{origin.source} {origin.revision or ''}"), ("license", origin.license or "not named")]


def _graph(root: LineageNode) -> dict[str, Any]:
    """A lineage as nodes and edges, each model once."""
    nodes = {}
    edges = []
    for node in walk(iter([root])):
        known = identity(node.version) if node.version else {"ref": node.ref}
        metrics = node.version.manifest.metrics if node.version else None
        data = [item.model_dump(mode="json") for item in node.data]
        if node.problem or node.ref not in nodes:
            nodes[node.ref] = {
                **known,
                "problem": node.problem,
                "rejected": node.rejected,
                "data": data,
                "metrics": metrics,
            }
        edges += [{"child": node.ref, "as": edge.relation, "parent": edge.node.ref} for edge in node.parents]
    return {"root": root.ref, "nodes": list(nodes.values()), "edges": edges}
