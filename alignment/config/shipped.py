"""The recipes, launch files and dashboards that come with the suite: `configs/` of a checkout, a part of a wheel."""

from __future__ import annotations

from pathlib import Path

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
    return [(file.relative_to(configs()).as_posix(), _header(file)) for file in files]


def _header(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines[: next(
        (n for n, line in enumerate(lines) if not line.startswith("#")), len(lines)
    )]]  # fmt: skip
    return " ".join(comments)
