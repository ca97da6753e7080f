"""Where a model is: a registry reference, a folder or a hub name, found and verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError

from alignment.config.loading import validate
from alignment.config.sections import ModelConfig
from alignment.errors import ModelError, UserError
from alignment.models import adapters
from alignment.models.importing import foreign
from alignment.registry import Manifest, Parent, Registry, RegistryError
from alignment.registry.manifest import Role

ENSEMBLE = "ensemble.json"
"""Describes the members of an ensemble (`alignment.models.ensembles`)."""
MAX_ADAPTERS = 16
"""How many adapters may be on each other: loading one merges them all."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, and its pinned registry reference if it has one."""

    path: str
    ref: str | None = None
    digest: str | None = None
    base: ModelSource | None = None
    """What the adapter in `path` goes on; None: the files are a whole model's."""
    trained: ModelConfig | None = field(default=None, compare=False)  # a dict of it would make a source unhashable
    """With `base`: the `model` section that the adapter was trained by."""

    @property
    def label(self) -> str:
        return self.ref or self.path

    @property
    def config_path(self) -> str:
        """Where the architecture's `config.json` is: an adapter has none of its own, nor has an ensemble."""
        if self.base:
            return self.base.config_path
        return str(Path(self.path) / "member-0") if (Path(self.path) / ENSEMBLE).is_file() else self.path

    def parent(self, relation: str) -> Parent:
        """This model as an entry of another version's lineage."""
        return Parent(relation, self.label, self.digest)

    def as_base(self) -> Parent:
        """This model as the base of an adapter: a local folder by its full path and a digest of its weights."""
        if self.ref is None and Path(self.path).is_dir():
            return Parent("base", str(Path(self.path).resolve()), adapters.folder_digest(self.path))
        return self.parent("base")


def find_model(name: str, registry: Registry, role: Role | Sequence[Role], above: tuple[str, ...] = ()) -> ModelSource:
    """Resolve a registry reference (verified, role checked), a local folder, or a hub name, in that order.

    An adapter brings its base with it, found in the same way and compared with the one that it was trained on.

    Args:
        above: the adapters whose base this is, for bases that are adapters too.

    Raises:
        RegistryError: a reference that does not resolve, has another role, or whose files do not match.
        ModelError: a folder without a model; an adapter whose base has changed.
    """
    if registry.is_reference(name):
        version = registry.load(name, role=role)
        source = ModelSource(str(version.path), version.ref, version.digest)
        return _with_base(source, version.manifest, registry, above) if version.manifest.base else source
    path = os.path.expanduser(name)  # as a string: a Path would rename ./model
    local = Path(path)
    if local.is_dir():
        whole = any((local / file).is_file() for file in ("config.json", ENSEMBLE))
        if problem := foreign.quantization(local) if whole else foreign.about_folder(local):
            raise ModelError(f"{name}: {problem}")
        return ModelSource(path)
    if local.is_file():
        raise ModelError(f"{name}: {foreign.about_file(local)}")
    if foreign.is_path(name):
        raise ModelError(
            f"{name}: no such folder; give a registry reference, a folder with config.json and safetensors weights, or "
            "a hub name (owner/name)"
        )
    if "@" in name or "/" not in name:
        _resolve(name, registry)
    return ModelSource(name)


def _resolve(name: str, registry: Registry) -> None:
    """Raise with the nearest names; a hub name has a slash and no @."""
    try:
        registry.resolve(name)
    except RegistryError as error:
        if "@" in name:
            raise
        raise RegistryError(
            f"{error}; nor is it a folder here, and a hub name has an owner, as in openai-community/gpt2"
        ) from error


def _with_base(source: ModelSource, manifest: Manifest, registry: Registry, above: tuple[str, ...]) -> ModelSource:
    """A published adapter with the very base that its manifest names, and how it was trained."""
    recorded = manifest.base
    assert recorded is not None
    if source.label in above:  # a base without a digest, as a hub's, lets a forged manifest close a ring
        raise ModelError(
            f"{source.label} is an adapter on itself: one of the manifests of {', '.join(above)} is forged"
        )
    if len(above) >= MAX_ADAPTERS:
        raise ModelError(
            f"{above[0]}: more than {MAX_ADAPTERS} adapters on each other; export it merged and import that"
        )
    pinned = recorded.ref
    if registry.is_reference(pinned) and recorded.digest:
        pinned = f"{pinned.partition('@')[0]}@{recorded.digest}"
    try:
        base = find_model(pinned, registry, role="policy", above=(*above, source.label))
    except UserError as error:
        raise ModelError(f"{source.label} is an adapter on {recorded.ref}, which cannot be found: {error}") from error
    if base.as_base().digest != recorded.digest:
        raise ModelError(f"{source.label} is an adapter on {recorded.ref}, whose weights have changed since")
    model = (manifest.config or {}).get("model")
    known: dict[str, Any] = model if isinstance(model, dict) else {}
    keys = ("method", "adapter", "quantization", "merge", "dtype")
    trained = validate(ModelConfig, {"name": recorded.ref} | {k: known[k] for k in keys if k in known}, source.label)
    return replace(source, base=base, trained=trained)


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    """Turn transformers' long errors about a missing or foreign model into one line."""
    try:
        yield
    except UserError:  # says it in one line already
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path}: brings Python code of its own; read it, and set model.trust_remote_code=true to run it"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be loaded as a model ({reason}); give a registry reference, a folder with config.json and "
            "safetensors weights, or a hub name that this machine can reach"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' table of missing and unexpected keys: a policy has no score head, and a classifier no output
    layer, by design."""
    logger: Any = transformers.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity_error()
    try:
        yield
    finally:
        logger.set_verbosity(level)
