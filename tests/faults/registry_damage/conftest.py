"""A model folder, and a registry without the costs of git and of the cache."""

from pathlib import Path

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
