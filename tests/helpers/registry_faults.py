"""A small model, and attempts on a registry in a child process."""

from pathlib import Path
from typing import Any

from alignment.registry import Registry, Version

CONTENT = (2).to_bytes(8, "little") + b"{}" + bytes(range(256)) * 16


def make_source(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(CONTENT)
    return folder


def publish(registry: Registry, source: Path, name: str = "m", **fields: Any) -> Version:
    return registry.publish(name, source, **{"stage": "sft", "role": "policy", **fields})


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder, with its mode and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (path.lstat().st_mode, content)
    return found
