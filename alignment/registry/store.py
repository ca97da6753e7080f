"""The registry: one folder on a shared POSIX filesystem, used by many jobs at once, without a server and without locks.

    REGISTRY.json                                   marks the folder and its layout
    models/NAME/v000001/{manifest.json, ...}        a version: never changed, its number never used again
    models/NAME/aliases/ALIAS/00000001.json         where an alias points; the highest number counts
    .staging/HOST-PID-UUID/                         what is being published, or was when its job was killed
    .trash/                                         removed versions, see `trash`

A publish prepares the whole folder in .staging and renames it to the next number. Renaming onto a folder that is not
empty fails, so two jobs never get one number, and a killed job leaves nothing but its staging folder. On NFS a rename
whose answer was lost is repeated and then "fails" although it was done: every publish has a publish_id, by which the
next look finds it. An NFS client may list a folder as it was up to a minute ago: a job pins what it resolved, with its
digest, when it starts.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from errno import EEXIST, ENOENT, ENOTEMPTY
from pathlib import Path
from typing import Any

from alignment.files import sync_folder, sync_tree, write_file
from alignment.registry import aliases, provenance
from alignment.registry.aliases import ANY, AliasEntry, Anything
from alignment.registry.card import model_card
from alignment.registry.errors import RegistryError
from alignment.registry.files import (
    MANIFEST,
    check_model_folder,
    copy_tree,
    entries,
    make_folder,
    one_line_errors,
    work_name,
)
from alignment.registry.hashes import verify_mode
from alignment.registry.layout import STAGING, check_layout, create_layout
from alignment.registry.lineage import LineageNode, Tracer, simulated_ratings
from alignment.registry.manifest import Manifest, Parent, Role, Stage, draft_manifest
from alignment.registry.references import NAME, Reference, check_alias, check_name, enumerated, nearest, parse_reference
from alignment.registry.trash import REMOVED, keep_alive, mover, noted, parents_of, version_folder
from alignment.registry.version import Version, open_version, read_manifest

CARD = "README.md"
_VERSION_FOLDER = re.compile(r"v([0-9]{6,})")


class Registry:
    """The models under one folder. Opening one creates nothing; the first publish does."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, pins: Mapping[str, str] | None = None) -> None:
        """`path` defaults to the environment's ALIGNMENT_REGISTRY, then to ./registry. `pins` say what a reference
        means whatever it would mean now: `sft@prod` -> `sft@sha256:...`.

        Raises:
            RegistryError: the path is no folder, or a registry of another layout.
        """
        chosen = path if path is not None else os.environ.get("ALIGNMENT_REGISTRY") or "registry"
        self.path = Path(chosen).expanduser().absolute()
        self._models = self.path / "models"
        self._staging = self.path / STAGING
        self._pins = dict(pins or {})
        self.resolved: dict[str, str] = {}
        """Each reference that was resolved, and what it meant, as `pins` takes it."""
        check_layout(self.path)

    # Finding

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        return [name for name in entries(self._models) if NAME.fullmatch(name) and self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """The version numbers of a name, ascending; empty for an unknown name."""
        found = map(_VERSION_FOLDER.fullmatch, entries(self._models / name))
        return sorted(int(match[1]) for match in found if match)

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first.

        Raises:
            RegistryError: the name is unknown or a manifest damaged.
        """
        return [open_version(self._folder(name, number), name, number) for number in self._known(name)]

    def is_reference(self, text: str) -> bool:
        """Whether the text has the form of a reference and its name is in this registry (its version may not be)."""
        try:
            return bool(self.numbers(parse_reference(text).name))
        except RegistryError:
            return False

    def resolve(self, ref: str) -> Version:
        """The version that a reference means now: NAME, NAME@latest, NAME@v3, NAME@ALIAS, NAME@sha256:<8+ hex digits>.

        Raises:
            RegistryError: nothing has that name, number, alias or digest; the message lists what there is.
        """
        version = self._resolve(parse_reference(self._pins.get(ref, ref)))
        self.resolved[ref] = f"{version.name}@{version.digest}"
        return version

    def _resolve(self, wanted: Reference) -> Version:
        numbers = self._known(wanted.name)
        number = numbers[-1]
        if wanted.alias:
            return self._resolve_alias(wanted.name, wanted.alias)
        if wanted.digest:
            number = self._find_digest(wanted, numbers)
        elif wanted.number:
            number = wanted.number
        if number not in numbers:
            raise RegistryError(f"{wanted.name} has no version v{number}; {self._choices(wanted.name)}")
        return open_version(self._folder(wanted.name, number), wanted.name, number)

    def locate(self, ref: str) -> tuple[str, int]:
        """As `resolve`, the name and number alone: NAME@v3 is found also where it is damaged."""
        wanted = parse_reference(ref)
        if wanted.number in self._known(wanted.name):
            return wanted.name, wanted.number
        version = self.resolve(ref)
        return version.name, version.number

    def load(self, ref: str, role: Role | Sequence[Role] | None = None, verify: str | None = None) -> Version:
        """Resolve a reference and verify the version; with `role`, check that it is a model of that role, or of one of
        several.

        `verify` is cached, full or fast (see `verify_mode`); None asks the environment's ALIGNMENT_VERIFY.

        Raises:
            RegistryError: not found, damaged, or of the other role.
        """
        mode = verify_mode(verify)
        version = self.resolve(ref)
        found = version.manifest.role
        roles = (role,) if isinstance(role, str) else role
        if roles is not None and found not in roles:
            fitting = [name for name in self.names() if self._newest_role(name) in roles]
            asked = " or a ".join(_spoken(each) for each in roles)
            hint = (
                f"name one of {enumerated(fitting)}" if fitting else f"this registry has none; publish a {asked} first"
            )
            raise RegistryError(f"{version.ref} is a {_spoken(found)}; a {asked} was asked for: {hint}")
        version.verify(full=mode != "fast", cold=mode == "full")
        return version

    def lineage(self, ref: str) -> LineageNode:
        """A version with its parents, their parents and so on; what cannot be found is a node that says so.

        Raises:
            RegistryError: `ref` itself cannot be resolved.
        """
        return Tracer(self.resolve).root(self.resolve(ref))

    # Aliases

    def aliases(self, name: str) -> dict[str, int]:
        """Each alias of a name and the version number that it points to.

        Raises:
            RegistryError: the name is unknown or an alias damaged.
        """
        self._known(name)
        folder = self._models / name / "aliases"
        found = ((alias, aliases.read_alias(folder / alias)[1]) for alias in aliases.alias_names(folder))
        return {alias: entry.version for alias, entry in found if entry}

    def alias_history(self, name: str, alias: str) -> list[AliasEntry]:
        """Every move of an alias, oldest first; the last one counts.

        Raises:
            RegistryError: the name or the alias is unknown, or an entry damaged.
        """
        self._known(name)
        if moves := aliases.read_history(self._alias_folder(name, alias)):
            return moves
        raise RegistryError(f"{name} has no alias {alias!r}; {self._choices(name)}")

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
        """Point an alias at a version; `expect` is the number it must point to now, None that it must be new.

        The history keeps who moved it and the rest that is given here.

        Raises:
            RegistryError: the alias is no legal name, the version unknown, or the alias elsewhere than expected.
        """
        check_alias(alias)
        version = self.resolve(f"{name}@v{version_number}")
        entry = AliasEntry(
            version=version.number,
            digest=version.digest,
            at=datetime.now(UTC),
            by=mover(),
            reviewed_by=reviewed_by,
            required=tuple(required),
            rollback=rollback,
        )
        with one_line_errors(f"alias {name}@{alias} cannot be set in {self.path}"):
            make_folder(self._staging)
            aliases.move_alias(self._alias_folder(name, alias), self._staging, entry, expect)
            keep_alive(self.path, [(name, version.number)])

    # Publishing

    def published(self, name: str, publish_id: str) -> Version | None:
        """The version of `name` that was published under this id, if any was."""
        return self._find_publish(name, publish_id, self.numbers(name))

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
            publish_id: a job's own name for this publish. A version of `name` that has it is returned and nothing is
                stored, so a requeued job publishes once.
            base: for an adapter, the model that it adapts.
            origin: of an imported model; see manifest.Origin for the keys.
            remote_code: Python files of the folder are stored too, and the manifest says so.

        Raises:
            RegistryError: a wrong argument, a file that may not be stored, or a folder that cannot be written.
        """
        check_name(name)
        seen = set(self.numbers(name)) if publish_id is not None else set()
        if publish_id is not None and (published := self._find_publish(name, publish_id, seen)):
            return published
        draft = draft_manifest(
            name=name,
            stage=stage,
            role=role,
            parents=[self._pinned(parent) for parent in parents],
            base=self._pinned(base) if base else None,
            data=list(data),
            config=config,
            metrics=metrics,
            seed=seed,
            world_size=world_size,
            run_id=run_id,
            wandb_url=wandb_url,
            origin=origin,
            remote_code=remote_code,
            publish_id=publish_id or uuid.uuid4().hex,
            code=provenance.code_state(),
            packages=provenance.package_versions(),
        )
        source = Path(source_dir)
        with one_line_errors(f"{name} cannot be published to {self.path}"):
            check_model_folder(source, adapter=base is not None)
            with self._staged() as staging:
                if publish_id is None:
                    seen = set(self.numbers(name))  # none of them can have an id that was just made up
                files = copy_tree(source, staging, remote_code)
                sync_tree(staging)
                tokenizer, template = provenance.tokenizer_hash(files), provenance.chat_template_hash(staging)
                found = {"files": files, "tokenizer_hash": tokenizer, "chat_template_hash": template}
                return self._claim(staging, draft.model_copy(update=found), seen)

    def _claim(self, staging: Path, draft: Manifest, searched: set[int]) -> Version:
        """Rename the staging folder to the next free number, or find that this very publish is done already.

        `searched` are versions that are known to be other publishes.
        """
        home = self._models / draft.name
        make_folder(home)
        own_card = CARD not in draft.files
        parents = [edge.node for edge in Tracer(self.resolve).edges(draft)] if own_card else []
        simulated = simulated_ratings(iter(parents))
        simulated = simulated or any(data.simulated for data in draft.data)
        taken = 0
        while True:
            numbers = {taken, *self.numbers(draft.name)} - {0}
            removed = noted(self.path, draft.name, REMOVED)
            if published := self._find_publish(draft.name, draft.publish_id, numbers - searched):
                return published
            searched |= numbers
            number = max([*numbers, *removed], default=0) + 1
            manifest = draft.model_copy(update={"version": number})
            if own_card:
                card = write_file(staging / CARD, model_card(manifest, simulated, parents).encode())
                manifest = manifest.model_copy(update={"files": {**draft.files, CARD: card}})
            write_file(staging / MANIFEST, manifest.to_bytes())
            sync_folder(staging)
            try:
                os.rename(staging, self._folder(draft.name, number))
            except OSError as error:
                if error.errno not in (EEXIST, ENOTEMPTY, ENOENT):
                    raise
                taken = number  # by another job, or by this rename itself; an NFS client's listing may not show it yet
                continue
            if number in noted(self.path, draft.name, REMOVED):  # taken, and removed again, since we looked
                os.rename(self._folder(draft.name, number), staging)
                continue
            sync_folder(home)
            keep_alive(self.path, parents_of(manifest))
            return open_version(self._folder(draft.name, number), draft.name, number)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A new staging folder on the registry's filesystem, removed again unless it was renamed away."""
        create_layout(self.path)
        staging = self._staging / work_name()
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    # Helpers

    def _folder(self, name: str, number: int) -> Path:
        return version_folder(self.path, (name, number))

    def _alias_folder(self, name: str, alias: str) -> Path:
        return self._models / name / "aliases" / alias

    def _known(self, name: str) -> list[int]:
        """The numbers of a name that must exist."""
        if NAME.fullmatch(name) and (numbers := self.numbers(name)):
            return numbers
        raise RegistryError(f"no model {name!r} in the registry {self.path}; {nearest(name, self.names())}")

    def _choices(self, name: str) -> str:
        versions = enumerated([f"v{number}" for number in self.numbers(name)])
        alias_names = list(aliases.alias_names(self._models / name / "aliases"))
        return f"it has {versions}" + (
            f" and the aliases {enumerated(alias_names)}" if alias_names else " and no aliases"
        )

    def _resolve_alias(self, name: str, alias: str) -> Version:
        entry = aliases.read_alias(self._alias_folder(name, alias))[1]
        if entry is None:
            raise RegistryError(f"{name} has no alias {alias!r}; {self._choices(name)}")
        version = self.resolve(f"{name}@v{entry.version}")
        if version.digest != entry.digest:
            raise RegistryError(
                f"{version.ref} in {version.path} is damaged: alias {alias!r} recorded {entry.digest}, "
                f"found {version.digest}; publish it again"
            )
        return version

    def _find_digest(self, wanted: Reference, numbers: Sequence[int]) -> int:
        assert wanted.digest
        digests = {}
        for number in numbers:
            try:
                digests[number] = read_manifest(self._folder(wanted.name, number))[1]
            except RegistryError:
                continue  # a damaged version must not hide the others
        found = [number for number, digest in digests.items() if digest.startswith(wanted.digest)]
        if len(found) == 1:
            return found[0]
        what = f"matches {enumerated([f'v{number}' for number in found])}" if found else "matches no version"
        have = enumerated([f"v{number} {digest[:15]}" for number, digest in digests.items()])
        raise RegistryError(f"{wanted.name}@{wanted.digest} {what}; it has {have}")

    def _find_publish(self, name: str, publish_id: str, numbers: Sequence[int] | set[int]) -> Version | None:
        for number in sorted(numbers):
            try:
                version = open_version(self._folder(name, number), name, number)
            except RegistryError:
                continue  # a damaged version must not stop the next publish
            if version.manifest.publish_id == publish_id:
                return version
        return None

    def _pinned(self, parent: Parent) -> Parent:
        """A parent by number and digest. One that is not here stays as given: a finished run must not fail for it."""
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


def _spoken(role: str) -> str:
    return {"reward": "reward model", "value": "critic"}.get(role, role)
