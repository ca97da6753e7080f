"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's config, data or command.

    The message is one line that names the file, line or key, what was found, what was expected, and the fix.
    Command lines print it without a traceback and exit with code 2.
    """


class Preempted(Exception):
    """The run makes room for another job, with a checkpoint if there was anything to save; the message says why."""


class ConfigError(UserError):
    """A config file or override that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or not be resumed. One line, with the fix."""


class ModelError(UserError):
    """A model or tokenizer that cannot be used as asked."""
