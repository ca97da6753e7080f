"""What the shell offers after Tab: `alignment --install-completion` sets it up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.registry import Registry


def complete_reference(ctx: Any, incomplete: str) -> list[str]:
    """Models by name; after an @, one model's aliases and versions, the newest first."""
    return _offered(ctx, incomplete, _references)


def complete_name(ctx: Any, incomplete: str) -> list[str]:
    """Models by name."""
    return _offered(ctx, incomplete, lambda registry, _: iter(registry.names()))


def complete_run(ctx: Any, incomplete: str) -> list[str]:
    """Runs by name, the newest first."""
    from alignment.runs.record import find_runs

    names = (path.name for path in find_runs(ctx.params.get("folder") or Path("runs")))
    return [name for name in names if name.startswith(incomplete)]


def _offered(ctx: Any, incomplete: str, find: Any) -> list[str]:
    try:
        registry = Registry(ctx.params.get("registry"))
        return [word for word in find(registry, incomplete) if word.startswith(incomplete)]
    except UserError:
        return []  # Tab is no place for an error


def _references(registry: Registry, incomplete: str) -> Iterator[str]:
    name, at, _ = incomplete.partition("@")
    if not at:
        yield from registry.names()
    elif numbers := registry.numbers(name):
        yield from (f"{name}@{alias}" for alias in registry.aliases(name))
        yield from (f"{name}@v{number}" for number in reversed(numbers))
