"""What a plan has found out from torch and TRL before, in the user's cache folder: sizes of models, types of arguments.

One small file for each. Its name is a hash of all that it depends on: for a size the model's config and the method, and
always the libraries' versions and our own code. On any problem with the cache it is found out again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.config.arguments import ArgumentType, ArgumentTypes
from alignment.files import replace_text
from alignment.memory.workload import Model, Shape
from alignment.registry.hashes import cache_folder

LIBRARIES = ("torch", "transformers", "peft", "trl")
CODE = ("config", "models", "memory")
"""Rooms by whose code models are built and described, and arguments checked."""


def find(key: Sequence[str]) -> Model | None:
    """The size that was kept under this key; None if there is none, or none that can be read."""
    try:
        values = _read(["size", *key])
        return Model(**values | {"shape": Shape(**values["shape"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(key: Sequence[str], model: Model) -> None:
    """Keep a size for later processes."""
    _write(["size", *key], dataclasses.asdict(model))


def trl_arguments(class_name: str) -> ArgumentTypes:
    """The types of the arguments of one of TRL's config classes, which is imported only the first time."""
    key = ["arguments", class_name]
    try:
        return ArgumentTypes(class_name, {name: ArgumentType(*each) for name, each in _read(key).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        import trl

        found = ArgumentTypes.of(getattr(trl, class_name))
        _write(key, found.types)
        return found


def _read(key: Sequence[str]) -> Any:
    file = _file(key)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def _write(key: Sequence[str], values: Any) -> None:
    if (file := _file(key)) is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_text(file, json.dumps(values) + "\n")
    except OSError:
        pass  # a read-only or full home only costs time


def _file(key: Sequence[str]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(json.dumps([*key, *_made_by()]).encode()).hexdigest()
    return folder.parent / "plans" / f"{name}.json"


@functools.cache
def _made_by() -> tuple[str, ...]:
    """The libraries and the code by which things are found out: after a change of either they are found out again."""
    package, code = Path(__file__).parents[1], hashlib.sha256()
    for room in CODE:
        for file in sorted((package / room).glob("*.py")):
            code.update(file.read_bytes())
    return (platform.python_version(), *(f"{name} {version(name)}" for name in LIBRARIES), code.hexdigest())
