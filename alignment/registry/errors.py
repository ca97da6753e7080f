"""The registry's exception."""

from __future__ import annotations

from alignment.errors import UserError


class RegistryError(UserError):
    """A wrong reference, a folder that may not be published, or a damaged version. One line, with the fix."""
