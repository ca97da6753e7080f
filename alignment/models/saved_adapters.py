"""An adapter's files, and the digest of its base, without PEFT, which takes seconds to import."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from alignment.files import replace_text

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no full model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def folder_digest(folder: str) -> str:
    """`sha256:...` over the names and contents of a local model's config and weights."""
    digest = hashlib.sha256()
    for file in sorted([Path(folder) / "config.json", *Path(folder).glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def name_base(folder: Path, label: str) -> None:
    """Set the base's name in a saved adapter to `label`; PEFT writes a path on this machine."""
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    # Replaced, not written over: it may be a hard link to the same file of a checkpoint, whose hash would be wrong.
    replace_text(path, json.dumps(config | {"base_model_name_or_path": label}, indent=2) + "\n")
