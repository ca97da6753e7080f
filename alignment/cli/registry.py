"""The commands of `alignment models` that write something: into the registry, or a folder outside of it."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from alignment.cli.common import JsonOption, RefArgument, RegistryOption, plain_table, print_json, rejections
from alignment.cli.completion import complete_name
from alignment.cli.verification import models
from alignment.errors import UserError
from alignment.registry import ANY, Registry, RegistryError
from alignment.registry.aliases import Anything
from alignment.registry.promotion import caveats, promote, roll_back
from alignment.registry.retention import collect, protect, remove
from alignment.registry.reviews import rejection
from alignment.registry.trash import PROTECTED, Key, drop_note, restore_version, version_ref
from alignment.terminal import clean, one_line, screen

NameArgument = Annotated[str, typer.Argument(help="A model's name.", autocompletion=complete_name)]
AliasArgument = Annotated[str, typer.Argument(help="An alias, such as prod.")]
_AGE = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@models.command("export")
def export_model(
    ref: RefArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    adapter: Annotated[bool, typer.Option("--adapter/--merged", help="An adapter alone, or with its base.")] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """A version as a plain transformers (or PEFT) folder.  Example: alignment models export help-desk-sft exported"""
    from alignment.models.export import TOLERANCE, export

    report = export(ref, folder, Registry(registry), adapter_only=adapter)
    if as_json:
        print_json(report)
        return
    line = f"{report['model']} in {report['folder']}: {report['written']}"
    if "logits_difference" in report:
        line += f"; logits differ from the adapter's by {report['logits_difference']:.1e} (allowed: {TOLERANCE:.0e})"
    typer.echo(clean(line))
    if "rejected" in report:
        typer.echo(clean(f"note: {report['model']} was {one_line(report['rejected'])}"), err=True)


@models.command("promote")
def promote_model(
    ref: RefArgument,
    alias: AliasArgument,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", help="METRIC>=NUMBER; METRIC.low is its interval's lower end; compare.win_rate.low>0.5, say."
        ),
    ] = None,
    require_review: Annotated[
        bool, typer.Option("--require-review", help="Only if `alignment runs review` approved it last.")
    ] = False,
    reviewed_by: Annotated[
        str | None, typer.Option("--reviewed-by", help="Who looked at it [default: who reviewed its run].")
    ] = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help="Where the alias must point now: v3, or none for a new one.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="Only if one of these public keys signed it; or ALIGNMENT_KEYS."),
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version.  Example: alignment models promote desk-ppo@v3 prod --require 'eval_kl<=8'"""
    opened = Registry(registry, keys=keys)
    version = promote(
        opened, ref, alias, require=require or (), require_review=require_review, reviewed_by=reviewed_by,
        expect=_expected(expect),
    )  # fmt: skip
    told = caveats(opened, version, require or ())
    _redo_reports(opened, version.name, alias)
    _say_move(as_json, f"{version.name}@{alias} is v{version.number}", version.name, alias, version.number, told)


@models.command("rollback")
def rollback_model(
    name: NameArgument, alias: AliasArgument, registry: RegistryOption = None, as_json: JsonOption = False
) -> None:
    """Point an alias at the version before.  Example: alignment models rollback desk-ppo prod"""
    opened = Registry(registry)
    left, version = roll_back(opened, name, alias)
    _redo_reports(opened, name, alias)
    _say_move(as_json, f"{name}@{alias} is v{version.number} again, it was v{left}", name, alias, version.number)


@models.command("demote")
def demote_model(
    name: NameArgument,
    alias: AliasArgument,
    why: Annotated[str, typer.Option("--why", help="For those who ask later.")] = "",
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an alias away, so that it points to no version.  Example: alignment models demote desk-ppo prod"""
    opened = Registry(registry)
    left = opened.unset_alias(name, alias, clean(why).strip())
    _redo_reports(opened, name, alias)
    if as_json:
        print_json({"name": name, "alias": alias, "version": None, "left": left})
    else:
        typer.echo(f"{name}@{alias} is taken away from v{left} and points nowhere; promote or rollback sets it again")


@models.command("aliases")
def show_aliases(
    name: NameArgument,
    alias: Annotated[str | None, typer.Argument(help="One alias, with every move of it.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where a model's aliases point, or one alias's history.  Example: alignment models aliases desk-ppo prod"""
    opened = Registry(registry)
    if alias is None:
        pointers = opened.aliases(name)
        if as_json:
            print_json({"name": name, "aliases": pointers, "rejected": rejections(opened, name)})
            return
        rejected = rejections(opened, name)
        for word, number in pointers.items():
            said = f"  REJECTED: {one_line(rejected[word])}" if word in rejected else ""
            typer.echo(clean(f"{word} v{number}{said}"))
        return
    moves = opened.alias_history(name, alias)
    if as_json:
        print_json({"name": name, "alias": alias, "history": [move.model_dump(mode="json") for move in moves]})
        return
    table = plain_table("version", "moved (UTC)", "by", "reviewed by", "required, or why")
    for move in moves:
        target = f"v{move.version}" + (" (rollback)" if move.rollback else " (taken away)" if move.demoted else "")
        rest = (move.by or "", move.reviewed_by or "", ", ".join(filter(None, (*move.required, move.why))))
        table.add_row(target, f"{move.at:%Y-%m-%d %H:%M:%S}", *(Text(one_line(cell)) for cell in rest))
    screen().print(table)


@models.command("gc")
def collect_garbage(
    delete: Annotated[bool, typer.Option("--delete/--dry-run", help="Do it, or only say what would be done.")] = False,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Versions kept that an alias pointed to before.")] = 2,
    grace: Annotated[str, typer.Option("--grace", help="Younger versions stay: 12h, 7d.")] = "7d",
    purge_after: Annotated[str, typer.Option("--purge-after", help="How long the trash is kept: 12h, 7d.")] = "7d",
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove versions that nothing needs, by way of the trash.  Example: alignment models gc --delete"""
    plan = collect(
        Registry(registry), keep=keep, grace=_seconds(grace), purge_after=_seconds(purge_after), delete=delete
    )
    report = {
        "deleted": delete,
        "kept": {version_ref(key): why for key, why in sorted(plan.kept.items())},
        "removed": [version_ref(key) for key in plan.removed],
        "purged": [version_ref(item.key) for item in plan.purged],
        "returned": [version_ref(key) for key in plan.returned],
    }
    if as_json:
        print_json(report)
        return
    for key, why in sorted(plan.kept.items()):
        typer.echo(f"keep    {version_ref(key)}: {why}")
    for word, keys in (
        ("remove", plan.removed),
        ("purge", [item.key for item in plan.purged]),
        ("return", plan.returned),
    ):
        for key in keys:
            typer.echo(f"{word:7} {version_ref(key)}")
    if not delete:
        typer.echo("Nothing was changed; --delete does it.", err=True)


@models.command("delete")
def delete_model(ref: RefArgument, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Move one version that nothing needs to the trash.  Example: alignment models delete desk-ppo@v2"""
    key = remove(Registry(registry), ref)
    _say(
        as_json,
        f"{version_ref(key)} is in the trash; alignment models restore {version_ref(key)} takes it back",
        key,
        "deleted",
    )


@models.command("restore")
def restore_model(ref: RefArgument, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Take a removed version out of the trash.  Example: alignment models restore desk-ppo@v2"""
    match = re.fullmatch(r"(.+)@v([0-9]{1,9})", ref)
    key = (match[1], int(match[2])) if match else None
    if key is None or not restore_version(Registry(registry).path, key):
        raise RegistryError(f"{ref!r} is not in the trash; write NAME@v3, as gc and delete do")
    _say(as_json, f"{version_ref(key)} is back", key, "restored")


@models.command("protect")
def protect_model(
    ref: RefArgument,
    why: Annotated[str, typer.Option("--why", help="For those who ask later.")] = "",
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a version from being removed.  Example: alignment models protect desk-ppo@v2 --why 'in the paper'"""
    key = protect(Registry(registry), ref, why)
    _say(as_json, f"{version_ref(key)} is protected", key, "protected")


@models.command("unprotect")
def unprotect_model(ref: RefArgument, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Let a protected version be removed again.  Example: alignment models unprotect desk-ppo@v2"""
    opened = Registry(registry)
    key = opened.locate(ref)
    if not drop_note(opened.path, key, PROTECTED):
        raise RegistryError(f"{version_ref(key)} is not protected; nothing to do")
    _say(as_json, f"{version_ref(key)} is not protected any more", key, "unprotected")


def _say(as_json: bool, line: str, key: Key, done: str) -> None:
    if as_json:
        print_json({"ref": version_ref(key), "done": done})
    else:
        typer.echo(line)


def _say_move(
    as_json: bool, line: str, name: str, alias: str, number: int, caveats: Sequence[str] | None = None
) -> None:
    if as_json:
        moved = {"name": name, "alias": alias, "version": number}
        print_json(moved if caveats is None else moved | {"caveats": caveats})
        return
    typer.echo(line)
    for caveat in caveats or ():
        typer.echo(clean(f"note: {caveat}"), err=True)


def _redo_reports(registry: Registry, name: str, alias: str) -> None:
    """After a move of an alias: the report of a rejected version's run says whether the alias still points to it."""
    from alignment.reports.report import redo_report_of  # Jinja is needed here alone

    for number in {move.version for move in registry.alias_history(name, alias)[-2:]}:
        with suppress(RegistryError):  # such as a version that was removed
            version = registry.resolve(f"{name}@v{number}")
            if rejection(registry, version):
                redo_report_of(registry, version)


def _expected(text: str | None) -> int | Anything | None:
    if text is None:
        return ANY
    if text == "none":
        return None
    if match := re.fullmatch(r"v([0-9]{1,9})", text):
        return int(match[1])
    raise UserError(f"--expect is {text!r:.40}, expected a version such as v3, or none for a new alias")


def _seconds(age: str) -> float:
    if age == "0":
        return 0
    if match := _AGE.fullmatch(age):
        return int(match[1]) * _SECONDS[match[2]]
    raise UserError(f"{age!r:.40} is no age; write a number and s, m, h or d, such as 12h or 7d")
