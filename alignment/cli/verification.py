"""The commands of `alignment models` that check what is stored: files, recorded digests, signatures, the registry."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.common import JsonOption, RefArgument, RegistryOption, print_json
from alignment.cli.completion import complete_reference
from alignment.cli.models import models
from alignment.errors import UserError
from alignment.registry import Registry, RegistryError
from alignment.registry.doctor import examine, fix_findings
from alignment.registry.hashes import verify_mode
from alignment.registry.keys import TrustedKey, make_keys, private_key, trusted_keys
from alignment.registry.signatures import EXIT_CODES, GRAVITY, SignatureCheck, check_signatures, sign
from alignment.registry.trash import Key, version_folder, version_ref
from alignment.registry.witnesses import Witness, contradictions, witnesses
from alignment.runs.published import run_witnesses
from alignment.terminal import clean, one_line

ModeOption = Annotated[
    str, typer.Option("--mode", help="full (read every file), cached (once per node) or fast (sizes only).")
]


@models.command("verify")
def verify_models(
    ref: Annotated[str | None, typer.Argument(help="A version.", autocompletion=complete_reference)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version of every model.")] = False,
    mode: ModeOption = "full",
    keys: Annotated[
        Path | None, typer.Option("--keys", help="Public keys (a file or folder): one must have signed each version.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Run folders, whose digests are compared too.")] = Path("runs"),
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check files, recorded digests and signatures.  Example: alignment models verify --all --keys keys/

    Exit code 1: damaged or rewritten; with --keys also 3: not signed, 4: by another key, 5: forged, 6: signature of
    another version, 7: changed since it was signed.
    """
    if (ref is None) != every:
        raise UserError("name one version, or all of them with --all: alignment models verify desk-ppo@v3")
    opened = Registry(registry)
    trusted = trusted_keys(keys, opened.path) if keys else None
    said = [*witnesses(opened), *run_witnesses(runs)]
    checked: list[dict[str, Any]] = []
    code = 0
    for key in _every(opened) if ref is None else [opened.locate(ref)]:
        problems = _problems(opened, key, verify_mode(mode), said)
        if every and not version_folder(opened.path, key).exists():
            continue  # removed since it was listed
        signed = _signed(opened, key, trusted) if trusted and not problems else None
        outcome = signed.outcome if signed else None
        checked.append({"ref": version_ref(key), "problems": problems, "signature": outcome})
        code = min(code, 1 if problems else EXIT_CODES[outcome] if outcome else 0, key=GRAVITY.index)
        if not as_json:
            found = f"DAMAGED: {'; '.join(problems)}" if problems else "ok"
            if signed:
                found = f"ok, {signed.text}" if outcome == "signed" else f"NOT SIGNED: {signed.text}"
            typer.echo(one_line(f"{version_ref(key)} {found}"))
    damaged = sum(bool(version["problems"]) for version in checked)
    unsigned = sum(version["signature"] not in (None, "signed") for version in checked)
    if as_json:
        counts = {"checked": len(checked), "damaged": damaged, "not_signed": unsigned if trusted else None}
        print_json({"mode": mode, **counts, "versions": checked})
    else:
        typer.echo(f"{len(checked)} checked, {damaged} damaged{f', {unsigned} not signed' * bool(trusted)}", err=True)
    raise typer.Exit(code)


@models.command("sign")
def sign_model(
    ref: RefArgument,
    key: Annotated[Path, typer.Option("--key", help="Your private key, a PEM file that only you may read.")],
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a version, after reading all its files.  Example: alignment models sign desk-ppo@v3 --key ~/release.key"""
    opened, private = Registry(registry), private_key(key.expanduser())
    version = opened.resolve(ref)
    version.verify(cold=True)
    if problems := contradictions(version, witnesses(opened)):
        raise RegistryError(f"{version.ref} is not signed: {problems[0]}")
    used = sign(opened.path, version, private)
    if as_json:
        print_json({"ref": version.ref, "digest": version.digest, "key": used})
    else:
        typer.echo(f"{version.ref} ({version.digest[:19]}) is signed with the key {used[:23]}")


@models.command("keygen")
def make_key_pair(
    name: Annotated[Path, typer.Argument(help="NAME.key and NAME.pub are made.")], as_json: JsonOption = False
) -> None:
    """Make a pair of keys for signing models.  Example: alignment models keygen ~/keys/release"""
    private, public = make_keys(name.expanduser())
    if as_json:
        print_json({"private": str(private), "public": str(public)})
    else:
        typer.echo(clean(f"{private}: keep it to yourself, outside the registry"))
        typer.echo(clean(f"{public}: give it to those who verify"))


@models.command("doctor")
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Make the fixes that lose nothing.")] = False,
    mode: ModeOption = "cached",
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leftovers, gaps, damage, aliases to nowhere: each with its fix.  Example: alignment models doctor --fix

    Exit code 1 if something remains to be done.
    """
    opened, chosen = Registry(registry), verify_mode(mode)
    findings = list(examine(opened, hash_files=chosen != "fast", cold=chosen == "full"))
    mended = fix_findings(findings) if fix else []
    if as_json:
        print_json({"findings": [{**_finding(found), "mended": found in mended} for found in findings]})
    else:
        for found in findings:
            remedy = "mended" if found in mended else f"fix: {found.fix}{' (--fix does it)' if found.repair else ''}"
            typer.echo(one_line(f"{found.kind}: {found.where}: {found.problem}; {remedy}"))
        typer.echo(f"{len(findings)} found, {len(mended)} mended", err=True)
    raise typer.Exit(1 if len(findings) > len(mended) else 0)


def _every(registry: Registry) -> Iterator[Key]:
    for name in registry.names():
        for number in registry.numbers(name):
            yield name, number


def _signed(registry: Registry, key: Key, trusted: Sequence[TrustedKey]) -> SignatureCheck | None:
    try:
        return check_signatures(registry.path, registry.resolve(version_ref(key)), trusted)
    except RegistryError:
        return None  # removed since it was listed


def _problems(registry: Registry, key: Key, mode: str, said: Sequence[Witness]) -> list[str]:
    try:
        version = registry.resolve(version_ref(key))
        shared = [f"{path} has another hard link, through which it can be changed" for path in version.shared_files()]
        problems = version.problems(hash_files=mode != "fast", cold=mode == "full")
        return problems + shared + contradictions(version, said)
    except RegistryError as error:
        return [str(error)]


def _finding(found: Any) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "where": found.where,
        "problem": found.problem,
        "fix": found.fix,
        "safe": found.repair is not None,
    }
