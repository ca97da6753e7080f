"""The recipes, launch files and dashboards that come with the suite: `configs/` of a checkout, a part of a wheel."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from alignment.errors import ConfigError

_HERE = Path(__file__).resolve().parents[1]  # of the package
KINDS = ("sft", "reward", "ppo", "accelerate")
"""Folders of files that people copy and change."""


def configs() -> Path:
    """The folder."""
    installed = _HERE / "configs"  # pyproject.toml puts it there
    return installed if installed.is_dir() else _HERE.parent / "configs"


def recipes() -> list[tuple[str, str]]:
    """Each shipped recipe and launch file, as `sft/demo.yaml`, with what its first lines say of it."""
    files = [file for kind in KINDS for file in sorted((configs() / kind).glob("*.yaml"))]
    return [(name_of(file), _header(file)) for file in files]


def recipe(name: str) -> Path:
    """A shipped recipe or launch file by its name, `sft/demo.yaml`, or `sft/demo` for short.

    Raises:
        ConfigError: there is none of that name.
    """
    names = [known for known, _ in recipes()]
    wanted = f"{name.removesuffix('.yaml')}.yaml"
    if wanted not in names:
        near = get_close_matches(wanted, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`alignment recipes list` names them"
        raise ConfigError(f"{name}: no such recipe or launch file; {hint}")
    return configs() / wanted


def name_of(file: Path) -> str:
    """The name of a shipped file, as `sft/demo.yaml`."""
    return file.relative_to(configs()).as_posix()


def _header(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines[: next(
        (n for n, line in enumerate(lines) if not line.startswith("#")), len(lines)
    )]]  # fmt: skip
    return " ".join(comments)
