"""Errors that a user can fix, errors that several rooms share, and optional packages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class UserError(ValueError):
    """A mistake in the user's config, data or command.

    The message is one line that names the file, line or key, the value found, the expected one, and the fix. Command
    lines print it without a traceback; a stage exits with `exit_code`.
    """

    exit_code = 2
    details: tuple[str, ...] = ()
    """Lines below the message, such as a list of names to choose from."""


class Preempted(Exception):
    """The run stops to make room for another job, with a checkpoint if there was anything to save."""


class ConfigError(UserError):
    """A config file or override that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or resumed. One line, with the fix."""


class DiskError(UserError):
    """The disk is full, fails, or cannot be written; one line with what is safe."""

    exit_code = 1


class ModelError(UserError):
    """A model or tokenizer that cannot be used as asked."""


def require_extra(extra: str, *packages: str, purpose: str) -> None:
    """Refuse `purpose` where packages of an optional extra are missing.

    Raises:
        UserError: one is missing; the message says how to install the extra.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: pip install 'rlhf-alignment-suite[{extra}]'"
        )


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: `; did you mean 'helpful'?`, or nothing where none is near."""
    near = difflib.get_close_matches(wrong, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
