"""Every key of a stage's config: its type, default, range and meaning, read from the config classes.

`python -m STAGE --keys` prints them; `scripts/reference.py` writes docs/reference/config.md from them.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alignment.config.arguments import ABOUT, TrainerSection
from alignment.errors import ConfigError

WIDTH = 100
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMES = {dict: "mapping", list: "list", Any: "any value"}


@dataclass(frozen=True)
class Key:
    """One key as a user writes it: `ppo.kl_coef`; `[]` stands for an entry of a list."""

    name: str
    kind: str
    """Type, choices and range: `float >= 0`."""
    default: str
    """As YAML has it, or `required`."""
    about: str

    @property
    def section(self) -> str:
        return self.name.partition(".")[0] if "." in self.name else ""


def keys(cls: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """All keys of a config class, sections and entries of lists unfolded, in the order of their declaration."""
    for name, field in cls.model_fields.items():
        sections = [each for each in _parts(field.annotation) if _is_section(each)]
        if not _is_section(field.annotation):
            yield Key(
                prefix + name, _kind(field.annotation, field.metadata), _default_of(field), _flat(field.description)
            )
        for section in sections:
            yield from keys(section, f"{prefix}{name}{'[]' if _is_listed(field.annotation, section) else ''}.")
        if name == "training" and isinstance(trainer := getattr(cls, "trainer", None), TrainerSection):
            yield from _trainer_keys(trainer)


def _trainer_keys(trainer: TrainerSection) -> Iterator[Key]:
    """The stage's defaults over TRL's and the arguments beside them; those that only TRL has are not listed."""
    for name, value in trainer.defaults.items():
        yield Key(f"training.{name}", _type_of(value), _yaml(value), ABOUT.get(name, ""))
    for cls in trainer.beside:
        hints, about = typing.get_type_hints(cls), _attribute_docstrings(cls)
        for field in dataclasses.fields(cls):
            yield Key(f"training.{field.name}", _kind(hints[field.name]), _yaml(field.default), about[field.name])


def trl_keys(trainer: TrainerSection) -> Iterator[Key]:
    """The arguments that TRL's own class has beside those; imports TRL and torch."""
    ours = {key.name for key in _trainer_keys(trainer)}
    for name, (hint, default) in trainer.trl_fields().items():
        if f"training.{name}" not in ours:
            yield Key(f"training.{name}", _kind(hint), _yaml(default), f"An argument of trl.{trainer.trl_class}.")


def find_keys(cls: type[BaseModel], prefix: str) -> list[Key]:
    """The keys that begin with a prefix; all of them for an empty one.

    Raises:
        ConfigError: no key does; it names the nearest one.
    """
    known = list(keys(cls))
    matches = [key for key in known if key.name.startswith(prefix)]
    trainer = getattr(cls, "trainer", None)
    if not matches and prefix.startswith("training.") and isinstance(trainer, TrainerSection):
        more = list(trl_keys(trainer))
        matches = [key for key in more if key.name.startswith(prefix)]
        known += more
    if not matches:
        near = nearest(prefix, [key.name for key in known])
        hint = f"; did you mean '{near}'?" if near else "; --keys without a prefix lists all"
        raise ConfigError(f"--keys: no key begins with '{prefix}'{hint}")
    return matches


def nearest(wrong: str, names: list[str]) -> str | None:
    """The key that was probably meant: the same last word anywhere, else the most similar path, else last word."""
    last = wrong.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    if last in by_last:
        return by_last[last]
    close = difflib.get_close_matches(wrong, names, 1, cutoff=0.75) if "." in wrong else []
    return close[0] if close else by_last.get(next(iter(difflib.get_close_matches(last, by_last, 1, cutoff=0.7)), ""))


def as_text(found: list[Key], cls: type[BaseModel]) -> str:
    """The keys for a terminal: a line with type and default, and the meaning below it."""
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    lines = []
    for key in found:
        default = key.default if key.default == "required" else f"default {key.default}"
        lines += textwrap.wrap(f"{key.name}  ({key.kind}; {default})", width, subsequent_indent="        ")
        lines += textwrap.wrap(key.about, width, initial_indent="    ", subsequent_indent="    ")
    trainer = getattr(cls, "trainer", None)
    if isinstance(trainer, TrainerSection) and any(key.section == "training" for key in found):
        note = f"`training` takes every other argument of trl.{trainer.trl_class} too; "
        lines += ["", *textwrap.wrap(note + "--keys training.<name> shows one.", width)]
    return "\n".join(lines)


# --- types and values ------------------------------------------------------------------------------------------------


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _is_listed(annotation: Any, section: Any) -> bool:
    """Whether a section is the entry of a list, as in `tuple[Section, ...]`."""
    lists = [each for each in _parts(annotation) if typing.get_origin(each) in (tuple, list)]
    return any(section in typing.get_args(each) for each in lists)


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in words: `float >= 0`, `one of a, b`, `list of str`. That null is allowed too, the default says."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0], (*metadata, *arguments[1:]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(each) for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return "one of " + ", ".join(str(each) for each in arguments)
    if origin in (tuple, list):
        return f"list of {_kind(arguments[0])}" if arguments else "list"
    base = NAMES.get(origin or annotation) or ("mapping" if _is_section(annotation) else _name(origin or annotation))
    return " ".join([base, ", ".join(_bounds(metadata))]).rstrip()


def _name(annotation: Any) -> str:
    return str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Any) -> Iterator[str]:
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from _bounds(each.metadata)
        for attribute, sign in BOUNDS.items():
            if getattr(each, attribute, None) is not None:
                value = getattr(each, attribute)
                yield f"{sign} {'2**32' if value == 2**32 else _yaml(value)}"
        if getattr(each, "pattern", None):
            yield f"matching {each.pattern}"


def _type_of(value: Any) -> str:
    return _name(type(value))


def _default_of(field: FieldInfo) -> str:
    return "required" if field.is_required() else _yaml(field.get_default(call_default_factory=True))


def _yaml(value: Any) -> str:
    """A default as a YAML file would have it."""
    if value is None or value is dataclasses.MISSING:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_yaml(each) for each in value) + "]"
    return str(getattr(value, "value", value))


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, as pydantic reads them for its own classes."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
    return {
        field.target.id: _flat(str(text.value.value))
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
