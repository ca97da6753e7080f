"""Mirror the registry to Weights & Biases: an artifact for each version that refers to its folder.

Versions are mirrored after publishing, and the registry never waits for it. `alignment models mirror` catches up after
a run without a network, a server failure, or a moved alias. `.mirror` in the registry's folder records the mirrored
versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any, Literal

from alignment.errors import UserError
from alignment.registry import Registry, RegistryError, Version
from alignment.registry.files import read_entry
from alignment.tracking.wandb_sink import MirroredModel, WandbSink

_WAIT_SECONDS = 120.0


def mirrored_model(version: Version, registry: Registry) -> MirroredModel:
    """The description of a version for W&B."""
    manifest = version.manifest
    try:
        aliases = [alias for alias, number in registry.aliases(version.name).items() if number == version.number]
    except RegistryError:
        aliases = []  # a damaged alias must not block the mirror
    base = [manifest.base] if manifest.base else []
    metadata: dict[str, Any] = {
        "ref": version.ref,
        "digest": version.digest,
        "stage": manifest.stage,
        "role": manifest.role,
        "aliases": aliases,
        "lineage": [{"as": p.role, "ref": p.ref, "digest": p.digest} for p in (*manifest.parents, *base)],
        "data": [{"name": d.name, "sha256": d.sha256, "rows": d.rows, "ratings": d.ratings} for d in manifest.data],
        "metrics": manifest.metrics or {},
        "run": manifest.run_id,
    }
    # W&B reserves `latest` and names like `v3`
    return MirroredModel(version.name, version.path, (f"registry-v{version.number}", *aliases), metadata)


def mirror_all(
    registry: Registry, project: str, mode: Literal["online", "offline"] = "online"
) -> tuple[list[str], list[str]]:
    """Mirror every version that is not yet mirrored in its current state.

    Returns:
        The mirrored references, and those that failed.

    Raises:
        UserError: W&B cannot be reached.
    """
    missing = [
        model
        for version in _versions(registry)
        if _note(model := mirrored_model(version, registry)) != _read(registry, model)
    ]
    if not missing:
        return [], []
    mirrored: list[str] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mirror-") as temporary:
        folder = Path(temporary) if mode == "online" else Path.cwd()
        sink = WandbSink(
            folder, mode=mode, project=project, name="registry-mirror", stage="mirror", config={}, patient=True
        )
        if not sink.is_open:
            raise UserError("W&B cannot be reached; log in with `wandb login`, or use --offline")
        for model in missing:
            arrived = sink.mirror(model, _WAIT_SECONDS if mode == "online" else None)
            (mirrored if arrived else failed).append(model.metadata["ref"])
            if arrived and mode == "online":
                _write(registry, model)
        sink.finish()
    return mirrored, failed


def _versions(registry: Registry) -> list[Version]:
    versions = []
    for name in registry.names():
        for number in registry.numbers(name):
            with contextlib.suppress(RegistryError):  # a damaged version must not block the others
                versions.append(registry.resolve(f"{name}@v{number}"))
    return versions


def _file(registry: Registry, model: MirroredModel) -> Path:
    return registry.path / ".mirror" / model.name / f"{model.folder.name}.json"


def _note(model: MirroredModel) -> dict[str, Any]:
    return {"digest": model.metadata["digest"], "aliases": sorted(model.aliases)}


def _read(registry: Registry, model: MirroredModel) -> Any:
    try:
        return json.loads(read_entry(_file(registry, model)))
    except (OSError, ValueError, RecursionError, RegistryError):
        return None


def _write(registry: Registry, model: MirroredModel) -> None:
    """Record a mirrored version, on a best-effort basis: mirroring it again gives the same artifact version in W&B."""
    path = _file(registry, model)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        temporary.write_text(json.dumps(_note(model)) + "\n", encoding="utf-8")
        os.replace(temporary, path)
