"""References and aliases: every form finds its version, and nothing else is accepted."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.versions import publish, rewrite_manifest
from hypothesis import given
from hypothesis import strategies as st

from alignment.registry import (
    Registry,
    RegistryError,
    aliases,
    version,
)
from alignment.registry.references import parse_reference


def test_every_form_of_reference_finds_its_version(registry: Registry, source: Path) -> None:
    one, two = publish(registry, source), publish(registry, source)
    registry.set_alias("m", "prod", 1)
    for ref in ("m@v1", "m@v000001", "m@prod", f"m@{one.digest}", f"m@{one.digest[:15]}"):
        assert registry.resolve(ref).digest == one.digest
    for ref in ("m", "m@latest", "m@v2", f"m@{two.digest[:20]}"):
        assert registry.resolve(ref).digest == two.digest
    assert registry.is_reference("m@v9")
    assert registry.is_reference("m@nowhere")
    for text in ("other", "org/model", "./m", "m@", "", "M", "m@v0", "m@sha256:12"):
        assert not registry.is_reference(text)


def test_an_unknown_reference_says_what_there_is(registry: Registry, source: Path) -> None:
    for _ in range(2):
        publish(registry, source, name="help-desk-sft")
    registry.set_alias("help-desk-sft", "prod", 1)
    for ref, parts in {
        "help-desk-stf": ["did you mean help-desk-sft?"],
        "help-desk-sft@v9": ["v9", "v1, v2", "prod"],
        "help-desk-sft@prd": ["'prd'", "v1, v2", "prod"],
        "help-desk-sft@sha256:00000000": ["matches no version", "v1 sha256:", "v2 sha256:"],
        "help-desk-sft@v0": ["count from v1"],
    }.items():
        with pytest.raises(RegistryError) as caught:
            registry.resolve(ref)
        assert all(part in str(caught.value) for part in parts), str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_ambiguous_digest_is_refused(registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry, source), publish(registry, source)
    monkeypatch.setattr(version, "read_manifest", lambda folder: (b"", "sha256:" + "a" * 64))
    with pytest.raises(RegistryError, match="matches v1, v2"):
        registry.resolve("m@sha256:aaaaaaaa")


@given(st.text(max_size=80))
def test_text_is_a_reference_or_a_registry_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except RegistryError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    assert text.isascii()
    assert len(reference.name) <= 64
    assert "/" not in text
    assert sum(part is not None for part in (reference.number, reference.alias, reference.digest)) <= 1


def test_alias_moves_are_kept_and_can_be_conditional(registry: Registry, source: Path) -> None:
    for _ in range(3):
        publish(registry, source)
    registry.set_alias("m", "prod", 1, expect=None)
    registry.set_alias("m", "prod", 2, expect=1)
    with pytest.raises(RegistryError, match="is v2, expected v1"):
        registry.set_alias("m", "prod", 3, expect=1)
    with pytest.raises(RegistryError, match="is v2, expected not set"):
        registry.set_alias("m", "prod", 3, expect=None)
    registry.set_alias("m", "best", 3)
    assert registry.aliases("m") == {"best": 3, "prod": 2}
    history = sorted((registry.path / "models" / "m" / "aliases" / "prod").iterdir())
    assert [path.name for path in history] == ["00000001.json", "00000002.json"]
    assert [json.loads(path.read_bytes())["version"] for path in history] == [1, 2]
    assert os.listdir(registry.path / ".staging") == []


@pytest.mark.parametrize("alias", ["latest", "v3", "v0", "Prod", "", "a/b", "..", "sha256:ab"])
def test_an_alias_never_looks_like_something_else(registry: Registry, source: Path, alias: str) -> None:
    publish(registry, source)
    with pytest.raises(RegistryError, match="cannot be an alias"):
        registry.set_alias("m", alias, 1)


def test_an_alias_for_a_missing_version_is_refused(registry: Registry, source: Path) -> None:
    publish(registry, source)
    with pytest.raises(RegistryError, match="no version v2"):
        registry.set_alias("m", "prod", 2)


def test_concurrent_alias_moves_all_stay_in_the_history(registry: Registry, source: Path) -> None:
    publish(registry, source)
    won: list[bool] = []

    def move() -> None:
        for _ in range(10):
            registry.set_alias("m", "prod", 1)
        try:
            registry.set_alias("m", "once", 1, expect=None)
            won.append(True)
        except RegistryError:
            pass

    threads = [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = sorted(os.listdir(registry.path / "models" / "m" / "aliases" / "prod"))
    assert history == [f"{number:08d}.json" for number in range(1, 41)]
    assert won == [True]


def test_a_repeated_link_request_counts_as_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("new")
    link = os.link

    def repeated(old: Any, new: Any) -> None:
        link(old, new)
        link(old, new)

    monkeypatch.setattr(os, "link", repeated)
    assert aliases.link_new(tmp_path / "new", tmp_path / "target")
    monkeypatch.setattr(os, "link", link)
    (tmp_path / "late").write_text("late")
    assert not aliases.link_new(tmp_path / "late", tmp_path / "target")


def test_an_alias_notices_a_forged_manifest(registry: Registry, source: Path) -> None:
    version = publish(registry, source)
    registry.set_alias("m", "prod", 1)
    rewrite_manifest(version, seed=99)
    with pytest.raises(RegistryError, match=f"recorded {version.digest}"):
        registry.resolve("m@prod")
