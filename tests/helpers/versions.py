"""Small model folders and versions for tests of the registry."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment.registry import (
    Registry,
    Version,
)

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tensors(content: bytes) -> bytes:
    """A .safetensors file as far as the registry looks: the header's length, the header, the rest."""
    return (2).to_bytes(8, "little") + b"{}" + content


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(tensors(weights))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def publish(registry: Registry, source: Path, name: str = "m", **fields: Any) -> Version:
    return registry.publish(name, source, **{"stage": "sft", "role": "policy", **fields})


def printed(renderable: object) -> str:
    console = Console(width=400, force_terminal=False, markup=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rewrite_manifest(published: Version, **changes: Any) -> None:
    """Forge a manifest, as somebody with write access could."""
    path = published.path / "manifest.json"
    forged = json.loads(path.read_bytes()) | changes
    path.unlink()
    path.write_text(json.dumps(forged))
