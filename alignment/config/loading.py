"""Strict, frozen configs: one YAML file per run, then dotted `key=value` overrides.

An unknown key, a wrong type or a duplicate key is an error that names the full path, what was found and the nearest
right key. Nothing is inherited between files, and a config never changes after it was read.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ValidationError,
)

from alignment.config import shipped
from alignment.config.arguments import OWNED_ARGUMENTS
from alignment.config.yaml_text import MAX_BYTES, SURROGATE, parse_yaml
from alignment.errors import ConfigError
from alignment.redaction import find_secrets

ONE, MANY = "(one)", "(many)"  # which kind of `data.train` an error is about; taken out of the key it names


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between `---` lines at the head of a Markdown file; empty where there is none that can be read."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.{0,20000}?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        found = parse_yaml(match[1], "front matter") if match else None
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def load_config(cls: type[ConfigT], path: str | Path, overrides: Iterable[str] = ()) -> ConfigT:
    """Read a YAML file, apply dotted overrides such as `training.learning_rate=2e-5`, and validate.

    Values of overrides are YAML, so `data.columns={prompt: question}` and `data.eval=null` work.

    Raises:
        ConfigError: one line with the path of the key, what was found and what to write instead.
    """
    return validate(cls, read_values(path, overrides), str(path))


def read_values(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a config file and the overrides say, before anything is known of its keys.

    Raises:
        ConfigError: no file of `key: value` lines; an override that is none.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").glob("*/*.yaml")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if path.parts[:1] == ("configs",) and shipped.configs().joinpath(*path.parts[1:]).is_file():
            hint = "; the shipped one can be had with `alignment recipes --copy configs`"
        raise ConfigError(f"no config file at {path}{hint}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ConfigError(f"{path}: {size:,} bytes, at most {MAX_BYTES:,} are read; is it a config file?")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); is it a config file?") from None
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return with_overrides(values, overrides, str(path))


def with_overrides(values: dict[str, Any], overrides: Iterable[str], where: str) -> dict[str, Any]:
    """The values changed by dotted overrides, with `~/` expanded.

    Args:
        where: the file of the values, or the command, for errors.

    Raises:
        ConfigError: an override that is none, or a secret.
    """
    for override in overrides:
        _apply_override(values, override)
    values = {key: _expand(value) for key, value in values.items()}
    for key in find_secrets(values):
        hint = OWNED_ARGUMENTS.get(key.rpartition(".")[2], "take it out, and let what needs it read the environment")
        raise ConfigError(
            f"{where}: {key} holds a secret, and configs are kept in run folders and the registry; {hint}"
        )
    return values


def _expand(value: Any) -> Any:
    """`~/` at the start of a text is the home folder, which no shell puts into a file or behind `key=`."""
    if isinstance(value, dict):
        return {key: _expand(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_expand(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"'{override}' is not an override; write key=value, for example training.max_steps=10")
    if SURROGATE.search(key):
        raise ConfigError(f"{key!a} is no key: it is not UTF-8 text")
    *parents, last = key.split(".")
    target = values
    for depth, parent in enumerate(parents):
        child = target.get(parent)
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: '{'.'.join(parents[: depth + 1])}' is a value, not a section")
        target = child
    target[last] = parse_yaml(text, key)


def validate(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build `cls` from plain values; the first problem found becomes one ConfigError line."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first, rest = error.errors(include_url=False)[0], error.error_count() - 1
    location = tuple(part for part in first["loc"] if part not in (ONE, MANY))
    key = ".".join(str(part) for part in location)
    removed = getattr(cls, "removed_keys", {}).get(".".join(part for part in location if isinstance(part, str)))
    if first["type"] == "extra_forbidden" and removed:
        message = f"key '{key}' was taken out: {removed}"
    elif first["type"] == "extra_forbidden":
        message = f"unknown key '{key}'{_nearest(cls, location)}"
    elif first["type"] == "missing":
        message = f"key '{key}' is missing; add `{key}=...`"
    else:
        found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
        message = f"{key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{found}"
    raise ConfigError(f"{where}: {message}" + (f" (and {rest} more)" if rest else ""))


def _nearest(cls: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """The full path of the key nearest to an unknown one: in its section first, then anywhere in the config."""
    section = ".".join(part for part in location[:-1] if isinstance(part, str))  # the numbers are of parts of a list
    wrong = str(location[-1])
    keys = list(_keys(cls))
    here = [key for key in keys if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(wrong, [key.rpartition(".")[2] for key in here], 1, cutoff=0.6)
    if near:
        return f"; did you mean '{section + '.' if section else ''}{near[0]}'?"
    same = [key for key in keys if key.rpartition(".")[2] == wrong]
    return f"; did you mean '{same[0]}'?" if same else f"; keys here: {', '.join(k.rpartition('.')[2] for k in here)}"


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for part in _types_in(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.")


def _types_in(annotation: Any) -> Iterable[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types_in(part)
