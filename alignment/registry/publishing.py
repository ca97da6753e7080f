"""Publishing a version: its files are staged, then the staging folder is renamed to the next free number."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST, ENOENT, ENOTEMPTY
from pathlib import Path

from alignment.files import sync_folder, sync_tree, write_file
from alignment.registry import provenance
from alignment.registry.card import model_card
from alignment.registry.errors import RegistryError
from alignment.registry.files import MANIFEST, check_model_folder, copy_tree, make_folder, one_line_errors, work_name
from alignment.registry.layout import STAGING, create_layout
from alignment.registry.lineage import Tracer, simulated_ratings
from alignment.registry.manifest import Manifest
from alignment.registry.references import MAX_NUMBER
from alignment.registry.trash import REMOVED, noted, parents_of, restore_used, version_folder
from alignment.registry.version import Version, open_version

CARD = "README.md"


def publish_folder(
    root: Path,
    source: Path,
    draft: Manifest,
    numbers: Callable[[], list[int]],
    tracer: Tracer,
    already_searched: set[int] | None,
) -> Version:
    """Store a model folder as the next version of the draft's name.

    Args:
        root: the registry's folder.
        draft: the manifest, without its number and files.
        numbers: lists the version numbers that the name has now.
        tracer: finds the versions behind it, for the card.
        already_searched: numbers known to be other publishes; None: no version can have the draft's new publish_id.

    Raises:
        RegistryError: a file may not be stored, or a folder cannot be written.
    """
    with one_line_errors(f"{draft.name} cannot be published to {root}"):
        check_model_folder(source, adapter=draft.base is not None)
        with _staging_folder(root) as staging:
            if already_searched is None:
                already_searched = set(numbers())
            files = copy_tree(source, staging, draft.remote_code)
            sync_tree(staging)
            hashes = {
                "tokenizer_hash": provenance.tokenizer_hash(files),
                "chat_template_hash": provenance.chat_template_hash(staging),
            }
            draft = draft.model_copy(update={"files": files, **hashes})
            return _claim_number(root, staging, draft, numbers, tracer, already_searched)


def find_publish(root: Path, name: str, publish_id: str, numbers: Iterable[int]) -> Version | None:
    """The version with this publish_id among these numbers, if any."""
    for number in sorted(numbers):
        try:
            version = open_version(version_folder(root, (name, number)), name, number)
        except RegistryError:
            continue  # a damaged version must not stop the next publish
        if version.manifest.publish_id == publish_id:
            return version
    return None


def _claim_number(
    root: Path,
    staging: Path,
    draft: Manifest,
    numbers: Callable[[], list[int]],
    tracer: Tracer,
    already_searched: set[int],
) -> Version:
    """Rename the staging folder to the next free number, or find that this very publish is done already."""
    name = draft.name
    home = root / "models" / name
    make_folder(home)
    needs_card = CARD not in draft.files
    parents = [edge.node for edge in tracer.edges(draft)] if needs_card else []
    simulated = simulated_ratings(iter(parents)) or any(data.simulated for data in draft.data)
    taken = 0
    while True:
        existing = {taken, *numbers()} - {0}
        removed = noted(root, name, REMOVED)
        if published := find_publish(root, name, draft.publish_id, existing - already_searched):
            return published
        already_searched |= existing
        number = max([*existing, *removed], default=0) + 1
        if number > MAX_NUMBER:
            raise RegistryError(
                f"{name} cannot be published: {version_folder(root, (name, number - 1))} has the highest number, so "
                "nothing can follow it; nobody made so many versions: move that folder elsewhere, then try again"
            )
        manifest = draft.model_copy(update={"version": number})
        if needs_card:
            card = write_file(staging / CARD, model_card(manifest, simulated, parents).encode())
            manifest = manifest.model_copy(update={"files": {**draft.files, CARD: card}})
        write_file(staging / MANIFEST, manifest.to_bytes())
        sync_folder(staging)
        folder = version_folder(root, (name, number))
        try:
            os.rename(staging, folder)
        except OSError as error:
            if error.errno not in (EEXIST, ENOTEMPTY, ENOENT):
                raise
            taken = number  # another job has it, or this rename succeeded; an NFS listing may not show it yet
            continue
        if number in noted(root, name, REMOVED):  # another job took the number and removed it meanwhile
            os.rename(folder, staging)
            continue
        sync_folder(home)
        restore_used(root, parents_of(manifest))
        return open_version(folder, name, number)


@contextmanager
def _staging_folder(root: Path) -> Iterator[Path]:
    """A new staging folder on the registry's filesystem, removed at the end unless it was renamed away."""
    create_layout(root)
    staging = root / STAGING / work_name()
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
