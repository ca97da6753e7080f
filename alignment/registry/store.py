"""The registry: one folder on a shared POSIX filesystem, used by many jobs at once, without a server and without locks.

    REGISTRY.json                                   marks the folder and its layout
    models/NAME/v000001/{manifest.json, ...}        a version: immutable, its number never reused
    models/NAME/aliases/ALIAS/00000001.json         the target of an alias; the highest number counts
    .staging/HOST-PID-UUID/                         a publish in progress, or the leftover of a killed job
    .trash/                                         removed versions, see `trash`

A publish prepares the folder in .staging and renames it to the next number (`publishing`). Renaming onto a folder that
is not empty fails, so two jobs never get the same number, and a killed job leaves only its staging folder. On NFS a
rename whose reply was lost is repeated and then "fails" although it succeeded; such a version is found by its
publish_id. An NFS client's listing may be up to a minute old, so a job pins what it resolved, with its digest, when it
starts.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from alignment.registry import aliases, provenance
from alignment.registry.aliases import ANY, AliasEntry, Anything
from alignment.registry.errors import RegistryError
from alignment.registry.files import entries, make_folder, one_line_errors
from alignment.registry.hashes import verify_mode
from alignment.registry.keys import trusted_keys
from alignment.registry.layout import STAGING, check_layout, registry_folder
from alignment.registry.lineage import LineageNode, Tracer
from alignment.registry.manifest import Manifest, Parent, Role, Stage, draft_manifest
from alignment.registry.publishing import find_publish, publish_folder
from alignment.registry.references import (
    NAME,
    VERSION,
    Reference,
    check_alias,
    check_name,
    enumerated,
    nearest,
    parse_reference,
)
from alignment.registry.reviews import rejection
from alignment.registry.signatures import require_signature
from alignment.registry.trash import restore_used, user_at_host, version_folder
from alignment.registry.version import Version, find_digest, open_version

_VERSION_FOLDER = re.compile(VERSION)


class Registry:
    """The models under one folder. Opening one creates nothing; the first publish does."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        pins: Mapping[str, str] | None = None,
        keys: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a registry.

        Args:
            path: defaults to ALIGNMENT_REGISTRY, then to ./registry.
            pins: fixed meanings of references: `sft@prod` -> `sft@sha256:...`.
            keys: public keys, of which one must have signed each version that is loaded or promoted; defaults to
                ALIGNMENT_KEYS, without which no signature is needed.

        Raises:
            RegistryError: the path is not a folder, or is a registry of another layout.
        """
        self.path = registry_folder(path)
        self._models = self.path / "models"
        self._staging = self.path / STAGING
        self._pins = dict(pins or {})
        self._keys = keys or os.environ.get("ALIGNMENT_KEYS")
        self.own: set[str] = set()
        """References that this job published a moment ago: it loads them again before anybody can sign them."""
        self.resolved: dict[str, str] = {}
        """The meaning of each reference that was resolved, in the form of `pins`."""
        check_layout(self.path)

    # Lookup

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        return [name for name in entries(self._models) if NAME.fullmatch(name) and self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """The version numbers of a name, ascending; empty for an unknown name."""
        matches = map(_VERSION_FOLDER.fullmatch, entries(self._models / name))
        return sorted(int(match[1]) for match in matches if match)

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first.

        Raises:
            RegistryError: the name is unknown or a manifest damaged.
        """
        return [open_version(self._folder(name, number), name, number) for number in self._numbers_or_raise(name)]

    def is_reference(self, text: str) -> bool:
        """Whether the text has the form of a reference and its name is in this registry (its version may not be)."""
        try:
            return bool(self.numbers(parse_reference(text).name))
        except RegistryError:
            return False

    def resolve(self, ref: str, role: Role | Sequence[Role] | None = None) -> Version:
        """The version that a reference means now: NAME, NAME@latest, NAME@v3, NAME@ALIAS, NAME@sha256:<8+ hex digits>.

        Args:
            role: the role, or roles, that the model may have; None: any.

        Raises:
            RegistryError: no version has that name, number, alias or digest (the message lists the existing ones), or
                it has another role.
        """
        version = self._resolve(parse_reference(self._pins.get(ref, ref)))
        actual = version.manifest.role
        roles = (role,) if isinstance(role, str) else role
        if roles is not None and actual not in roles:
            fitting = [name for name in self.names() if self._newest_role(name) in roles]
            asked = " or a ".join(map(_role_name, roles))
            hint = (
                f"name one of {enumerated(fitting)}" if fitting else f"this registry has none; publish a {asked} first"
            )
            raise RegistryError(f"{version.ref} is a {_role_name(actual)}; a {asked} was asked for: {hint}")
        self.resolved[ref] = f"{version.name}@{version.digest}"
        return version

    def _resolve(self, wanted: Reference) -> Version:
        numbers = self._numbers_or_raise(wanted.name)
        number = numbers[-1]
        if wanted.alias:
            return self._resolve_alias(wanted.name, wanted.alias)
        if wanted.digest:
            number = find_digest(wanted, partial(self._folder, wanted.name), numbers)
        elif wanted.number:
            number = wanted.number
        if number not in numbers:
            raise RegistryError(f"{wanted.name} has no version v{number}; {self._choices(wanted.name)}")
        return open_version(self._folder(wanted.name, number), wanted.name, number)

    def locate(self, ref: str) -> tuple[str, int]:
        """As `resolve`, but only the name and number: NAME@v3 is found even if it is damaged."""
        wanted = parse_reference(ref)
        if wanted.number in self._numbers_or_raise(wanted.name):
            return wanted.name, wanted.number
        version = self.resolve(ref)
        return version.name, version.number

    def load(self, ref: str, role: Role | Sequence[Role] | None = None, verify: str | None = None) -> Version:
        """Resolve a reference and verify the version.

        Args:
            role: as in `resolve`.
            verify: cached, full or fast (see `verify_mode`); None: the environment's ALIGNMENT_VERIFY.

        Raises:
            RegistryError: the version is not found, damaged, has another role, or lacks a signature that is required.
        """
        mode = verify_mode(verify)
        version = self.resolve(ref, role)
        version.verify(hash_files=mode != "fast", cold=mode == "full")
        if self._keys and version.ref not in self.own:
            require_signature(self.path, version, trusted_keys(Path(self._keys), self.path))
        return version

    def lineage(self, ref: str) -> LineageNode:
        """A version with all its ancestors; one that cannot be found is a node with that problem.

        Raises:
            RegistryError: `ref` itself cannot be resolved.
        """
        return Tracer(self.resolve, partial(rejection, self)).root(self.resolve(ref))

    # Aliases

    def aliases(self, name: str) -> dict[str, int]:
        """Each alias of a name and the version number that it points to.

        Raises:
            RegistryError: the name is unknown or an alias damaged.
        """
        self._numbers_or_raise(name)
        folder = self._models / name / "aliases"
        newest = ((alias, aliases.read_alias(folder / alias)[1]) for alias in aliases.alias_names(folder))
        return {alias: entry.version for alias, entry in newest if entry and not entry.demoted}

    def alias_history(self, name: str, alias: str) -> list[AliasEntry]:
        """Every move of an alias, oldest first; the last one counts.

        Raises:
            RegistryError: the name or the alias is unknown, or an entry damaged.
        """
        self._numbers_or_raise(name)
        if moves := aliases.read_history(self._alias_folder(name, alias)):
            return moves
        raise self._no_alias(name, alias, None)

    def set_alias(
        self,
        name: str,
        alias: str,
        version_number: int,
        expect: int | Anything | None = ANY,
        *,
        reviewed_by: str | None = None,
        required: Sequence[str] = (),
        rollback: bool = False,
    ) -> None:
        """Point an alias at a version.

        The history keeps who moved it, and the other arguments.

        Args:
            expect: the number that the alias must point to now; None: the alias must be new.

        Raises:
            RegistryError: the alias is not a legal name, the version is unknown, or the alias points elsewhere.
        """
        check_alias(alias)
        version = self.resolve(f"{name}@v{version_number}")
        entry = AliasEntry(
            version=version.number,
            digest=version.digest,
            at=datetime.now(UTC),
            by=user_at_host(),
            reviewed_by=reviewed_by,
            required=tuple(required),
            rollback=rollback,
        )
        self._move(name, alias, entry, expect)
        with one_line_errors(f"alias {name}@{alias} was set in {self.path}, and its version cannot be restored"):
            restore_used(self.path, [(name, version.number)])

    def unset_alias(self, name: str, alias: str, why: str = "") -> int:
        """Take an alias away: it points nowhere, and its history keeps that. Returns the number that it pointed to.

        Raises:
            RegistryError: it is not set, or somebody moved it meanwhile.
        """
        self._numbers_or_raise(name)
        now = aliases.read_alias(self._alias_folder(name, alias))[1]
        if now is None or now.demoted:
            raise self._no_alias(name, alias, now)
        entry = AliasEntry(
            version=now.version, digest=now.digest, at=datetime.now(UTC), by=user_at_host(), demoted=True, why=why
        )
        self._move(name, alias, entry, now.version)
        return now.version

    def _move(self, name: str, alias: str, entry: AliasEntry, expect: int | Anything | None) -> None:
        with one_line_errors(f"alias {name}@{alias} cannot be set in {self.path}"):
            make_folder(self._staging)
            aliases.move_alias(self._alias_folder(name, alias), self._staging, entry, expect)

    # Publishing

    def published(self, name: str, publish_id: str) -> Version | None:
        """The version of `name` that was published under this id, if any was."""
        return find_publish(self.path, name, publish_id, self.numbers(name))

    def publish(
        self,
        name: str,
        source_dir: str | os.PathLike[str],
        *,
        stage: Stage,
        role: Role,
        parents: Sequence[Parent] = (),
        data: Sequence[Mapping[str, Any]] = (),
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        seed: int | None = None,
        world_size: int = 1,
        run_id: str | None = None,
        publish_id: str | None = None,
        base: Parent | None = None,
        wandb_url: str | None = None,
        origin: Mapping[str, Any] | None = None,
        remote_code: bool = False,
    ) -> Version:
        """Store a Hugging Face folder as the next version of `name`. Call it on rank 0 only.

        Args:
            source_dir: config.json (or, with `base`, adapter_config.json), *.safetensors, tokenizer files; it is
                copied, with sub-folders. Without a README.md the version gets a model card.
            parents: the models it was made with. Those in this registry are pinned to a number and a digest.
            data: fingerprints; see DataFingerprint for the keys.
            publish_id: the job's id for this publish. If a version of `name` has it already, that version is
                returned and nothing is stored, so a requeued job publishes once.
            base: for an adapter, the model that it adapts.
            origin: the source of an imported model; see manifest.Origin for the keys.
            remote_code: also store the folder's Python files.

        Raises:
            RegistryError: a wrong argument, a file that may not be stored, or a folder that cannot be written.
        """
        check_name(name)
        already_searched = set(self.numbers(name)) if publish_id is not None else None
        if publish_id is not None and (published := find_publish(self.path, name, publish_id, already_searched or ())):
            return published
        draft = self._draft(
            name,
            parents,
            base,
            publish_id,
            stage=stage,
            role=role,
            data=list(data),
            config=config,
            metrics=metrics,
            seed=seed,
            world_size=world_size,
            run_id=run_id,
            wandb_url=wandb_url,
            origin=origin,
            remote_code=remote_code,
        )
        numbers = partial(self.numbers, name)
        tracer = Tracer(self.resolve, partial(rejection, self))
        return publish_folder(self.path, Path(source_dir), draft, numbers, tracer, already_searched)

    def _draft(
        self, name: str, parents: Sequence[Parent], base: Parent | None, publish_id: str | None, **fields: Any
    ) -> Manifest:
        return draft_manifest(
            name=name,
            parents=[self._with_digest(parent) for parent in parents],
            base=self._with_digest(base) if base else None,
            publish_id=publish_id or uuid.uuid4().hex,
            code=provenance.code_state(),
            packages=provenance.package_versions(),
            **fields,
        )

    # Helpers

    def _folder(self, name: str, number: int) -> Path:
        return version_folder(self.path, (name, number))

    def _alias_folder(self, name: str, alias: str) -> Path:
        return self._models / name / "aliases" / alias

    def _numbers_or_raise(self, name: str) -> list[int]:
        """The numbers of a name that must exist."""
        if NAME.fullmatch(name) and (numbers := self.numbers(name)):
            return numbers
        raise RegistryError(f"no model {name!r} in the registry {self.path}; {nearest(name, self.names())}")

    def _choices(self, name: str) -> str:
        versions = enumerated([f"v{number}" for number in self.numbers(name)])
        folder = self._models / name / "aliases"
        alias_names = [alias for alias in aliases.alias_names(folder) if not aliases.is_demoted(folder / alias)]
        return f"it has {versions}" + (
            f" and the aliases {enumerated(alias_names)}" if alias_names else " and no aliases"
        )

    def _resolve_alias(self, name: str, alias: str) -> Version:
        entry = aliases.read_alias(self._alias_folder(name, alias))[1]
        if entry is None or entry.demoted:
            raise self._no_alias(name, alias, entry)
        version = self.resolve(f"{name}@v{entry.version}")
        if version.digest != entry.digest:
            raise RegistryError(
                f"{version.ref} in {version.path} is damaged: alias {alias!r} recorded {entry.digest}, "
                f"found {version.digest}; publish it again"
            )
        return version

    def _no_alias(self, name: str, alias: str, entry: AliasEntry | None) -> RegistryError:
        what = aliases.taken_away(f"{name}@{alias}", entry) if entry else f"{name} has no alias {alias!r}"
        return RegistryError(f"{what}; {self._choices(name)}")

    def _with_digest(self, parent: Parent) -> Parent:
        """A parent by number and digest; one that is not here stays as given, so that a finished run does not fail."""
        if not self.is_reference(parent.ref):
            return parent
        name = parse_reference(parent.ref).name
        try:
            version = self.resolve(f"{name}@{parent.digest}" if parent.digest else parent.ref)
        except RegistryError:
            return parent
        return Parent(parent.role, version.ref, version.digest)

    def _newest_role(self, name: str) -> str | None:
        try:
            return self.resolve(name).manifest.role
        except RegistryError:
            return None


def _role_name(role: str) -> str:
    return {"reward": "reward model", "value": "critic"}.get(role, role)
