"""What a model's name can be: checked without torch, so that a mistyped one is told at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import ModelError
from alignment.models.importing import foreign
from alignment.registry import Registry, RegistryError
from alignment.registry.manifest import Role

ENSEMBLE = "ensemble.json"
"""Describes the members of an ensemble (`alignment.models.ensembles`)."""


def split_head(name: str) -> tuple[str, str | None]:
    """A reward model's name, and which of its heads is meant: `REF#HEAD` (`alignment.models.heads`); None: no head."""
    model, mark, head = name.rpartition("#")
    return (name, None) if not mark or Path(name).expanduser().is_dir() else (model, head)


def check_name(name: str, registry: Registry, role: Role | Sequence[Role]) -> None:
    """Refuse what is neither a registry reference of this role, nor a model's folder, nor a hub name.

    Raises:
        RegistryError: a reference does not resolve, or has another role.
        ModelError: a path without a model.
    """
    if registry.is_reference(name):
        registry.resolve(name, role)
    else:
        check_path(name, registry)


def check_path(name: str, registry: Registry) -> None:
    """Refuse a name that is no registry reference, and neither a model's folder nor a hub name.

    Raises:
        RegistryError: it may have been meant as a reference; the message has the nearest names.
        ModelError: a path without a model.
    """
    local = Path(os.path.expanduser(name))
    if local.is_dir():
        is_model = any((local / file).is_file() for file in ("config.json", ENSEMBLE))
        if problem := foreign.quantization(local) if is_model else foreign.about_folder(local):
            raise ModelError(f"{name}: {problem}")
        return
    if local.is_file():
        raise ModelError(f"{name}: {foreign.about_file(local)}")
    if foreign.is_path(name):
        raise ModelError(
            f"{name}: no such folder; give a registry reference, a folder with config.json and safetensors weights, or "
            "a hub name (owner/name)"
        )
    if "@" in name or "/" not in name:
        _resolve(name, registry)


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
