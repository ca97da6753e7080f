"""A model folder, and a registry without the costs of git and of the cache."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.registry_faults import make_source

from alignment.registry import hashes, provenance


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_VERIFY", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """What came of each fault; written to the folder that ALIGNMENT_RELIABILITY names."""
    rows: list[dict[str, Any]] = []
    yield rows
    if (folder := os.environ.get("ALIGNMENT_RELIABILITY")) and rows:
        Path(folder).mkdir(parents=True, exist_ok=True)
        table = {"title": request.module.TITLE, "rows": rows}
        Path(folder, f"{request.module.__name__.rpartition('.')[2]}.json").write_text(
            json.dumps(table, indent=2) + "\n"
        )
