"""A registry in a folder of its own, named by ALIGNMENT_REGISTRY."""

from pathlib import Path

import pytest
from helpers.models_command import CONTENT

from alignment.registry import (
    Registry,
    provenance,
)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_VERIFY", raising=False)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(CONTENT)
    return Registry()
