"""Detecting secrets, so that none is written to run folders, the registry or W&B.

A secret is recognised by the name of its key, by its form (access keys have known prefixes), or as the value of an
environment variable with a secret's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

REDACTED = "(redacted)"
_KEY = re.compile(
    r"api[_-]?key|secret|passw(or)?d|passphrase|credential|private[_-]?key|access[_-]?key|authorization"
    r"|(auth|hub|access|bearer|hf|session|api)[_-]?token|^token$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(rf"{_KEY.pattern}|(^|_)(token|key|pat)(_|$)", re.IGNORECASE)
_FORMS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|wandb_v\d+_[A-Za-z0-9_-]{16,}"
    r"|(?<!/)sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}|A(?:KIA|SIA)[A-Z0-9]{16}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+)"  # a JSON Web Token
    r"|(?<=://)[^/\s:@]*:[^/?#\s]+(?=@)"  # user and password of an address
    r"|(?<=[?&])(?i:api[_-]?key|key|token|access_token|secret|password|sig(?:nature)?)=[^&\s]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|^[0-9a-f]{40}$"  # W&B's older keys
)
_MIN_LENGTH = 8
"""Shorter values of environment variables are switches or numbers."""


def names_secret(key: str) -> bool:
    """Whether a config key names a secret; `eos_token` and `pad_token` do not."""
    return _KEY.search(key) is not None


def from_environment() -> list[str]:
    """Values of the environment variables with a secret's name, the longest first."""
    values = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _MIN_LENGTH}
    return sorted(values, key=len, reverse=True)


def without_secrets(text: str) -> str:
    """The text with everything replaced that looks like a secret or is one of the environment's."""
    for value in from_environment():
        text = text.replace(value, REDACTED)
    return _FORMS.sub(REDACTED, text)


def redact(value: Any, key: str = "") -> Any:
    """Plain values with their secrets replaced, at any depth."""
    if names_secret(key) and value is not None:
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def find_secrets(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of the values that `redact` would replace."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if names_secret(str(name)) and item is not None:
                yield f"{path}.{name}".lstrip(".")
            else:
                yield from find_secrets(item, f"{path}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from find_secrets(item, f"{path}.{index}")
    elif isinstance(value, str) and without_secrets(value) != value:
        yield path
