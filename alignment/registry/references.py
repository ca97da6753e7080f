"""Model references: `name`, `name@latest`, `name@v3`, `name@alias`, `name@sha256:<8 or more hex digits>`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignment.registry.errors import RegistryError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_NUMBER = 999_999_999
"""The highest number that a version can have: a longer one in a reference is an alias."""
VERSION = r"v(?!000000)(0[0-9]{5}|[1-9][0-9]{5,8})"
"""A version's folder, such as v000003."""
_NUMBER = re.compile(r"v([0-9]{1,9})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}")
_NAME_RULE = "1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit"
_FORMS = "NAME, NAME@latest, NAME@v3, NAME@ALIAS or NAME@sha256:<8 or more hex digits>"


@dataclass(frozen=True)
class Reference:
    """A parsed reference: at most one of number, alias and digest (a prefix) is set; without any it is the newest."""

    name: str
    number: int | None = None
    alias: str | None = None
    digest: str | None = None


def parse_reference(text: str) -> Reference:
    """Read a reference without looking anything up.

    Raises:
        RegistryError: the text has none of the forms above.
    """
    name, at, selector = text.partition("@")
    if not NAME.fullmatch(name):
        raise RegistryError(f"{text!r} is not a model reference: {name!r} is no name ({_NAME_RULE}); write {_FORMS}")
    if not at or selector == "latest":
        return Reference(name)
    if match := _NUMBER.fullmatch(selector):
        if int(match[1]) < 1:
            raise RegistryError(f"{text!r} is not a model reference: versions count from v1")
        return Reference(name, number=int(match[1]))
    if _DIGEST.fullmatch(selector):
        return Reference(name, digest=selector)
    if NAME.fullmatch(selector):
        return Reference(name, alias=selector)
    raise RegistryError(f"{text!r} is not a model reference: {selector!r} follows the @; write {_FORMS}")


def check_name(name: str) -> None:
    """Raise RegistryError unless `name` may be a model's name."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"{name!r} cannot be a model's name: use {_NAME_RULE}")


def check_alias(alias: str) -> None:
    """Raise RegistryError unless `alias` may be an alias: a name that is neither `latest` nor a version number."""
    if not NAME.fullmatch(alias):
        raise RegistryError(f"{alias!r} cannot be an alias: use {_NAME_RULE}")
    if alias == "latest" or re.fullmatch(r"v[0-9]+", alias):
        raise RegistryError(f"{alias!r} cannot be an alias: it already means a version; choose another word")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest names, else the first few of all."""
    names = sorted(known)
    if not names:
        return "the registry is empty: publish a model first"
    if close := difflib.get_close_matches(word, names, n=3, cutoff=0.6):
        return f"did you mean {', '.join(close)}?"
    return f"it has {enumerated(names)}"


def enumerated(words: Sequence[str], limit: int = 8) -> str:
    """A list such as `a, b, c`; a long one is cut to its first two and its last entries."""
    if len(words) > limit:
        words = [*words[:2], "...", *words[-(limit - 2) :]]
    return ", ".join(words)
