"""Publishing versions: what is stored, what is refused, and what a manifest records."""

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.versions import TEMPLATE, publish, tensors
from hypothesis import given
from hypothesis import strategies as st

import alignment.registry as package
from alignment.errors import UserError
from alignment.registry import (
    Parent,
    Registry,
    RegistryError,
    files,
    store,
)


def test_a_version_holds_the_files_and_a_manifest_that_hashes_them(registry: Registry, source: Path) -> None:
    (source / "head").mkdir()
    (source / "head" / "value.safetensors").write_bytes(tensors(b"head"))
    version = publish(
        registry, source, seed=7, world_size=2, run_id="run-1", config={"lr": 1e-5}, metrics={"loss": 1.5}
    )

    raw = (version.path / "manifest.json").read_bytes()
    manifest = json.loads(raw)
    assert version.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert version.path == registry.path / "models" / "m" / "v000001"
    assert (version.name, version.number, version.ref) == ("m", 1, "m@v1")
    on_disk = {p.relative_to(version.path).as_posix(): p for p in version.path.rglob("*") if p.is_file()}
    assert set(on_disk) == {*manifest["files"], "manifest.json"}
    for path, record in manifest["files"].items():
        content = on_disk[path].read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        if path != "README.md":
            assert content == (source / path).read_bytes()
    assert {key: manifest[key] for key in ("schema", "seed", "world_size", "run_id", "config", "metrics")} == {
        "schema": 1,
        "seed": 7,
        "world_size": 2,
        "run_id": "run-1",
        "config": {"lr": 1e-5},
        "metrics": {"loss": 1.5},
    }
    assert manifest["created_at"].endswith("Z")
    assert manifest["chat_template_hash"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    version.verify()


def test_versions_count_up_and_keep_their_content(registry: Registry, source: Path) -> None:
    first = publish(registry, source)
    (source / "model.safetensors").write_bytes(tensors(b"other weights"))
    second = publish(registry, source)
    assert [v.ref for v in registry.versions("m")] == ["m@v1", "m@v2"] == [first.ref, second.ref]
    assert (first.path / "model.safetensors").read_bytes() == tensors(b"weights")
    first.verify()


def test_nothing_is_created_before_the_first_publish(tmp_path: Path, source: Path) -> None:
    registry = Registry(tmp_path / "new")
    assert registry.names() == []
    assert not registry.is_reference("m")
    with pytest.raises(RegistryError, match="empty"):
        registry.resolve("m")
    assert not registry.path.exists()
    publish(registry, source)
    assert json.loads((registry.path / "REGISTRY.json").read_bytes()) == {"layout": 1}
    assert os.listdir(registry.path / ".staging") == []


def test_the_default_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    assert Registry().path == tmp_path / "registry"
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "shared"))
    assert Registry().path == tmp_path / "shared"
    assert Registry(tmp_path / "own").path == tmp_path / "own"


def test_a_publish_id_publishes_once(registry: Registry, source: Path) -> None:
    first = publish(registry, source, publish_id="job-1")
    assert publish(registry, source, publish_id="job-1").digest == first.digest
    assert publish(registry, source, publish_id="job-2").number == 2
    assert publish(registry, source, name="other", publish_id="job-1").ref == "other@v1"
    (source / "model.safetensors").unlink()  # the requeued job's output may be gone: nothing is copied again
    assert publish(registry, source, publish_id="job-1").digest == first.digest


def test_a_lost_race_takes_the_next_number_and_says_so_in_the_manifest(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def beaten(old: Any, new: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        publish(registry, source)
        monkeypatch.setattr(store.Registry, "numbers", lambda self, name: [])  # an NFS client's stale listing
        rename(old, new)

    monkeypatch.setattr(os, "rename", beaten)
    late = publish(registry, source)
    assert late.number == json.loads((late.path / "manifest.json").read_bytes())["version"] == 2
    assert "m@v2" in (late.path / "README.md").read_text()
    late.verify()


def test_a_rename_that_was_done_but_reported_as_failed_is_found_again(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def repeated(old: Any, new: Any) -> None:
        rename(old, new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", repeated)
    assert publish(registry, source).ref == "m@v1"
    assert registry.numbers("m") == [1]


def test_publishing_at_once_from_many_threads_is_gapless(registry: Registry, source: Path) -> None:
    done: list[int] = []
    threads = [threading.Thread(target=lambda: done.append(publish(registry, source).number)) for _ in range(8)]
    same = [threading.Thread(target=lambda: publish(registry, source, name="once", publish_id="x")) for _ in range(4)]
    for thread in threads + same:
        thread.start()
    for thread in threads + same:
        thread.join()
    assert sorted(done) == registry.numbers("m") == list(range(1, 9))
    assert registry.numbers("once") == [1]


def test_files_are_read_only_and_follow_the_umask(tmp_path: Path, source: Path) -> None:
    old = os.umask(0o027)
    try:
        version = publish(Registry(tmp_path / "r"), source)
    finally:
        os.umask(old)
    for path in version.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert stat.S_IMODE(version.path.stat().st_mode) == 0o750


@pytest.mark.parametrize(
    "name", ["training_args.bin", "model.pt", "x.pkl", "modeling.py", ".hidden", "a b.json", "x\x1b.json"]
)
def test_other_kinds_of_file_are_refused_by_name(registry: Registry, source: Path, name: str) -> None:
    (source / name).write_bytes(b"")
    with pytest.raises(RegistryError) as caught:
        publish(registry, source)
    assert repr(name) in str(caught.value)
    assert registry.names() == []
    assert os.listdir(registry.path / ".staging") == []


def test_links_devices_and_the_registrys_own_manifest_are_refused(
    registry: Registry, source: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (tmp_path / "folder").mkdir()
    for make, path in (
        (lambda p: p.symlink_to(secret), source / "notes.txt"),
        (lambda p: p.symlink_to(tmp_path / "folder"), source / "notes.md"),
        (os.mkfifo, source / "pipe.txt"),
        (lambda p: p.write_text("{}"), source / "manifest.json"),
    ):
        make(path)
        with pytest.raises(RegistryError, match=path.name):
            publish(registry, source)
        path.unlink()
    assert publish(registry, source).number == 1
    (tmp_path / "late.json").symlink_to(secret)  # a link put in a file's place after the check
    with pytest.raises(OSError, match="symbolic links"):
        files._copy_file(tmp_path / "late.json", tmp_path / "copy", "late.json")


@given(st.text(max_size=12) | st.from_regex(r"[./\\~a-z\x00-\x1f]{1,12}(\.json)?", fullmatch=True))
def test_no_accepted_path_leaves_the_folder(path: str) -> None:
    try:
        files.check_path(path)
    except RegistryError:
        return
    folder = "/a/registry/version"
    assert os.path.normpath(os.path.join(folder, path)) == f"{folder}/{path}"
    assert path.isascii()
    assert path.isprintable()


def test_a_folder_that_is_no_model_is_refused_with_the_reason(registry: Registry, source: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="not a folder"):
        publish(registry, tmp_path / "nowhere")
    with pytest.raises(RegistryError, match=r"no adapter_config\.json"):
        publish(registry, source, base=Parent("base", "somewhere/base"))
    (source / "model.safetensors").unlink()
    with pytest.raises(RegistryError, match=r"no \.safetensors"):
        publish(registry, source)
    (source / "config.json").unlink()
    with pytest.raises(RegistryError, match=r"no config\.json"):
        publish(registry, source)


def test_a_source_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 2)
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        with open(source / "model.safetensors", "ab") as file:
            file.write(b"more")

    (source / "config.json").unlink()  # so that the weights are the first file written
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(RegistryError, match="changed while"):
        files.copy_tree(source, tmp_path / "copy")


def test_a_folder_with_other_things_is_not_made_a_registry(tmp_path: Path, source: Path) -> None:
    with pytest.raises(RegistryError, match=r"not a registry"):
        publish(Registry(tmp_path), source)
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="not a folder"):
        Registry(tmp_path / "file")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "REGISTRY.json").write_text('{"layout": 2}')
    with pytest.raises(RegistryError, match="upgrade"):
        Registry(tmp_path / "newer")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, source)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RegistryError, match=r"^m cannot be published to .*: No space left on device"):
        publish(registry, source)
    assert registry.numbers("m") == [1]
    assert os.listdir(registry.path / ".staging") == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who owns nothing")
def test_without_permission_reading_works_or_is_one_line(source: Path) -> None:
    code = """
import os, sys
from alignment.registry import Registry, RegistryError, provenance
provenance.code_state = lambda: None
provenance.package_versions()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
registry = Registry(sys.argv[1])
for attempt in (
    lambda: print(registry.load("m@prod").ref),
    lambda: registry.set_alias("m", "prod", 1),
    lambda: registry.publish("m", sys.argv[1] + "/models/m/v000001", stage="sft", role="policy"),
):
    try:
        attempt()
    except RegistryError as error:
        print(error)
"""

    def as_stranger(path: Path) -> list[str]:
        command = [sys.executable, "-c", code, str(path)]
        root = Path(package.__file__).parents[3]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()

    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: its parents are closed to others
        Path(folder).chmod(0o755)
        registry = Registry(Path(folder, "registry"))
        publish(registry, source)
        registry.set_alias("m", "prod", 1)
        read, alias, publishing = as_stranger(registry.path)
        assert read == "m@v1"
        assert re.match("alias m@prod cannot be set in .*: Permission denied", alias)
        assert re.match("m cannot be published to .*: Permission denied", publishing)
        (registry.path / "models").chmod(0o700)
        read, alias, publishing = as_stranger(registry.path)
        assert read == alias
        assert read.endswith("cannot be read: Permission denied; ask its owner for access")
        assert re.match("m cannot be published to .*: Permission denied", publishing)
        assert registry.numbers("m") == [1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "grpo"}, "stage.*'grpo'"),
        ({"role": "judge"}, "role.*'judge'"),
        ({"name": "Upper"}, "'Upper'"),
        ({"name": "../up"}, "cannot be a model's name"),
        ({"config": {"a": {"b": object()}}}, r"config\.a\.b"),
        ({"data": [{"rows": 3}]}, "name"),
        ({"world_size": 0}, "world_size"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    registry: Registry, source: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegistryError, match=message) as caught:
        publish(registry, source, **fields)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert not registry.path.exists()
