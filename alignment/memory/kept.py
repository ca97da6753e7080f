"""Sizes of models that were measured before, in the user's cache folder.

One small file for each size. Its name is a hash of all that the size depends on: the model's config, the method, the
libraries' versions, and the code that measures. On any problem with the cache the model is measured instead.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from alignment.files import replace_text
from alignment.memory.workload import Model, Shape
from alignment.registry.hashes import cache_folder

LIBRARIES = ("torch", "transformers", "peft")
CODE = ("models", "memory")
"""Rooms whose code settles a size: models and adapters are built in one, and described in the other."""


def find(key: Sequence[str]) -> Model | None:
    """The size that was kept under this key; None if there is none, or none that can be read."""
    file = _file(key)
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file else None
        return None if values is None else Model(**values | {"shape": Shape(**values["shape"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(key: Sequence[str], model: Model) -> None:
    """Keep a size for later processes."""
    if (file := _file(key)) is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_text(file, json.dumps(dataclasses.asdict(model)) + "\n")
    except OSError:
        pass  # a read-only or full home only costs time


def _file(key: Sequence[str]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(json.dumps([*key, *_made_by()]).encode()).hexdigest()
    return folder.parent / "sizes" / f"{name}.json"


@functools.cache
def _made_by() -> tuple[str, ...]:
    """The libraries and the code by which sizes are measured: after a change of either they are measured again."""
    package, code = Path(__file__).parents[1], hashlib.sha256()
    for room in CODE:
        for file in sorted((package / room).glob("*.py")):
            code.update(file.read_bytes())
    return (*(f"{name} {version(name)}" for name in LIBRARIES), code.hexdigest())
