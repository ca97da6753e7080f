"""The registry's one exception."""

from __future__ import annotations

from alignment.errors import UserError


class RegistryError(UserError):
    """A wrong reference, a folder that may not be published, or a version that is damaged. One line, with the fix."""
