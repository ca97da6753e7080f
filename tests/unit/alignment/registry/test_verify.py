"""Damaged and forged versions are found and named."""

import hashlib
import os
from pathlib import Path

import pytest
from helpers.versions import publish, rewrite_manifest, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.registry import (
    Registry,
    RegistryError,
)


def test_a_reward_model_is_not_loaded_as_a_policy(registry: Registry, source: Path) -> None:
    publish(registry, source, name="policy")
    publish(registry, source, name="judge", stage="reward", role="reward")
    assert registry.load("judge", role="reward").ref == registry.load("judge").ref == "judge@v1"
    with pytest.raises(RegistryError, match=r"^judge@v1 is a reward model; a policy was asked for: .*policy"):
        registry.load("judge", role="policy")
    with pytest.raises(RegistryError, match=r"^policy@v1 is a policy; a reward model was asked for: .*judge"):
        registry.load("policy", role="reward")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bit_flip_or_truncation_is_found(registry: Registry, source: Path, data: st.DataObject) -> None:
    version = publish(registry, source)
    version.verify()
    path = data.draw(st.sampled_from(sorted(version.path.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 2**16)) % len(content)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.chmod(path, 0o644)
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    path.write_bytes(content)
    os.utime(path, ns=times)  # the cache must not trust a time that was set back
    with pytest.raises(RegistryError, match=path.name):
        version.verify()


def test_missing_extra_and_swapped_files_are_named_with_what_was_expected(registry: Registry, source: Path) -> None:
    version = publish(registry, source)
    weights = version.path / "model.safetensors"
    weights.unlink()
    with pytest.raises(RegistryError, match=r"model\.safetensors is missing"):
        registry.load("m")
    weights.symlink_to(source / "model.safetensors")
    with pytest.raises(RegistryError, match=r"model\.safetensors is not a regular file"):
        registry.load("m")
    weights.unlink()
    weights.write_bytes(tensors(b"WEIGHTS"))
    version.verify(hash_files=False)
    expected, found = (hashlib.sha256(tensors(content)).hexdigest() for content in (b"weights", b"WEIGHTS"))
    with pytest.raises(RegistryError, match=f"model.safetensors has sha256 {found}, expected {expected}"):
        registry.load("m")
    weights.write_bytes(b"short")
    with pytest.raises(RegistryError, match=r"model\.safetensors has 5 bytes, expected 17"):
        version.verify(hash_files=False)
    weights.write_bytes(tensors(b"weights"))
    version.verify()
    (version.path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RegistryError, match=r"'pytorch_model\.bin' was not published with it"):
        version.verify(hash_files=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "schema None"),
        (b'{"schema": 2}', "upgrade"),
        (b'{"schema": 1}', "name"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_manifest_is_one_line_and_does_not_stop_the_rest(
    registry: Registry, source: Path, content: bytes, message: str
) -> None:
    version = publish(registry, source, publish_id="a")
    path = version.path / "manifest.json"
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=message) as caught:
        registry.resolve("m@v1")
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    second = publish(registry, source, publish_id="b")
    assert second.number == 2
    assert registry.resolve(f"m@{second.digest[:15]}").number == 2


@pytest.mark.parametrize("path", ["../../../escape.json", "/etc/passwd.txt", "a/../../b.json", "manifest.json", "x.py"])
def test_a_forged_manifest_cannot_name_files_elsewhere(registry: Registry, source: Path, path: str) -> None:
    rewrite_manifest(publish(registry, source), files={path: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(RegistryError, match="damaged"):
        registry.resolve("m")


def test_a_manifest_moved_to_another_version_is_refused(registry: Registry, source: Path) -> None:
    rewrite_manifest(publish(registry, source), version=2)
    with pytest.raises(RegistryError, match="it is of m@v2, expected m@v1"):
        registry.resolve("m")
