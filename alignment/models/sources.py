"""Model sources: a registry reference, a folder or a hub name, looked up and verified."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from alignment.config.loading import validate
from alignment.config.sections import ModelConfig
from alignment.errors import ModelError, UserError
from alignment.models import saved_adapters
from alignment.models.importing import foreign
from alignment.models.importing.trial import check_stranger
from alignment.models.names import ENSEMBLE, check_path
from alignment.registry import Manifest, Parent, Registry
from alignment.registry.manifest import Role

MAX_ADAPTERS = 16
"""Longest chain of adapters on adapters: loading one merges them all."""


@dataclass(frozen=True)
class ModelSource:
    """The location of a model's files, and its pinned registry reference if it has one."""

    path: str
    ref: str | None = None
    digest: str | None = None
    base: ModelSource | None = None
    """The base of the adapter in `path`; None: the files are a full model."""
    trained: ModelConfig | None = field(default=None, compare=False)  # its dicts would make a source unhashable
    """With `base`: the `model` section that the adapter was trained with."""

    @property
    def label(self) -> str:
        return self.ref or self.path

    @property
    def config_path(self) -> str:
        """The path with the architecture's `config.json`: an adapter or an ensemble has none of its own."""
        if self.base:
            return self.base.config_path
        return str(Path(self.path) / "member-0") if (Path(self.path) / ENSEMBLE).is_file() else self.path

    def parent(self, relation: str) -> Parent:
        """This model as a parent in another version's lineage."""
        return Parent(relation, self.label, self.digest)

    def as_base(self) -> Parent:
        """This model as the base of an adapter: a local folder by its full path and a digest of its weights."""
        if self.ref is None and Path(self.path).is_dir():
            return Parent("base", str(Path(self.path).resolve()), saved_adapters.folder_digest(self.path))
        return self.parent("base")


def find_model(name: str, registry: Registry, role: Role | Sequence[Role], above: tuple[str, ...] = ()) -> ModelSource:
    """Resolve a registry reference (verified, role checked), a local folder, or a hub name, in that order.

    An adapter's base is looked up in the same way and compared with the one that it was trained on.

    Args:
        above: the adapters above this one, if it is the base of another.

    Raises:
        RegistryError: a reference does not resolve, has another role, or its files do not match.
        ModelError: a folder has no model, or an adapter's base has changed.
    """
    if registry.is_reference(name):
        version = registry.load(name, role=role)
        source = ModelSource(str(version.path), version.ref, version.digest)
        return _with_base(source, version.manifest, registry, above) if version.manifest.base else source
    check_path(name, registry)
    path = os.path.expanduser(name)  # a string, since a Path would drop the ./ of ./model
    if Path(path).is_dir():
        check_stranger(Path(path), name)
    return ModelSource(path)


def _with_base(source: ModelSource, manifest: Manifest, registry: Registry, above: tuple[str, ...]) -> ModelSource:
    """A published adapter with the base that its manifest names, and its training config."""
    recorded = manifest.base
    assert recorded is not None
    if source.label in above:  # a forged manifest can close a ring through a base without a digest, such as a hub's
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
def load_errors(path: str) -> Iterator[None]:
    """Turn transformers' long errors about a missing or foreign model into one line."""
    try:
        with foreign.panics(path):
            yield
    except UserError:
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
def quiet_loading() -> Iterator[None]:
    """Hide transformers' table of missing and unexpected keys.

    By design, a policy has no score head, and a classifier has no output layer.
    """
    logger: Any = transformers.utils.logging
    level = logger.get_verbosity()
    logger.set_verbosity_error()
    try:
        yield
    finally:
        logger.set_verbosity(level)


def num_parameters(path: str) -> int | None:
    """The parameter count of a model folder or ensemble, from its safetensors headers; None for a hub name.

    Raises:
        ModelError: a file is damaged.
    """
    total = 0
    for file in [*Path(path).glob("*.safetensors"), *Path(path).glob("member-*/*.safetensors")]:
        with load_errors(path), safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total or None
