"""What a manifest records beside the files: metrics, packages, code, hashes of tokenizer and template."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.versions import printed, publish, tensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alignment.registry import (
    Registry,
    provenance,
    render_lineage,
)

json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.builds(Path, st.just("a/b")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(metrics={"\ud800": ["\udfff", math.nan, -math.inf]})
@given(metrics=st.dictionaries(st.text(max_size=8), json_like, max_size=4))
def test_any_metrics_survive_a_publish(registry: Registry, source: Path, metrics: dict[str, Any]) -> None:
    def expected(value: Any) -> Any:
        if isinstance(value, dict):
            return {key.encode("utf-8", "replace").decode(): expected(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expected(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return str(value).encode("utf-8", "replace").decode() if isinstance(value, str | Path) else value

    version = publish(registry, source, metrics=metrics)
    assert registry.resolve(version.ref).manifest.metrics == expected(metrics)
    printed(render_lineage(registry.lineage(version.ref)))


def test_scalars_of_numpy_and_torch_become_numbers(registry: Registry, source: Path) -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    version = publish(registry, source, metrics={"a": numpy.float32(0.5), "b": torch.tensor(2), "c": numpy.int64(3)})
    assert version.manifest.metrics == {"a": 0.5, "b": 2, "c": 3}


def test_packages_are_those_installed(registry: Registry, source: Path) -> None:
    packages = publish(registry, source).manifest.packages
    assert packages["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "pydantic" not in packages


def test_code_state_tells_clean_changed_and_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    checkout = tmp_path / "checkout"
    module = checkout / "alignment" / "registry" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.code_state() is None

    def git(*arguments: str) -> str:
        identity = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.c",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=",
        ]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=checkout, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    assert provenance.code_state() is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "one")
    clean = provenance.code_state()
    assert clean
    assert clean.commit == git("rev-parse", "HEAD").strip()
    assert clean.dirty is None
    (checkout / "new.py").write_text("y = 1\n")
    added = provenance.code_state()
    (checkout / "new.py").write_text("y = 2\n")
    edited = provenance.code_state()
    module.write_text("x = 2\n")
    changed = provenance.code_state()
    assert len({state.dirty for state in (clean, added, edited, changed) if state}) == 4
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert provenance.code_state() == changed
    (checkout / "lib").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(checkout / "lib" / "alignment" / "registry" / "provenance.py"))
    assert provenance.code_state() is None  # inside a checkout that is not the suite's


def test_tokenizer_and_template_hashes_follow_their_files_alone(registry: Registry, source: Path) -> None:
    first = publish(registry, source).manifest
    (source / "model.safetensors").write_bytes(tensors(b"trained"))
    second = publish(registry, source).manifest
    (source / "tokenizer.json").write_text('{"changed": true}')
    third = publish(registry, source).manifest
    (source / "chat_template.jinja").write_text("other")
    fourth = publish(registry, source).manifest
    for tokenizer in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / tokenizer).unlink()
    none = publish(registry, source).manifest
    assert first.tokenizer_hash == second.tokenizer_hash != third.tokenizer_hash == fourth.tokenizer_hash
    assert first.chat_template_hash == third.chat_template_hash != fourth.chat_template_hash
    assert none.tokenizer_hash is None
    assert none.chat_template_hash is None
