"""Options that were given although nothing would read them are refused, for commands whose options depend on others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from alignment.errors import UserError


def refuse_unread(args: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str], why: str) -> None:
    """Refuse the options `names` where they differ from their defaults.

    Args:
        why: what makes them unread, and the fix.

    Raises:
        UserError: one or several were given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != parser.get_default(name)]
    if given:
        raise UserError(f"{', '.join(given)}: {why}")
