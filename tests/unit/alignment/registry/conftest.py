"""A registry without the costs of git, and a model to publish."""

from pathlib import Path

import pytest
from helpers.versions import make_model

from alignment.registry import (
    Registry,
    provenance,
)


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)  # 20 ms a publish; it has its own test


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_VERIFY", raising=False)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_model(tmp_path / "source")
