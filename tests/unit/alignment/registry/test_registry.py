"""The registry against plain files: what is stored, found, verified and refused."""

import hashlib
import json
import math
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
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import alignment.registry as package
from alignment.errors import UserError
from alignment.registry import (
    Parent,
    Registry,
    RegistryError,
    Version,
    aliases,
    files,
    lineage,
    provenance,
    render_lineage,
    store,
)
from alignment.registry.card import escape
from alignment.registry.references import parse_reference

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


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


def tensors(content: bytes) -> bytes:
    """A .safetensors file as far as the registry looks: the header's length, the header, the rest."""
    return (2).to_bytes(8, "little") + b"{}" + content


def make_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(tensors(weights))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def publish(registry: Registry, source: Path, name: str = "m", **fields: Any) -> Version:
    return registry.publish(name, source, **{"stage": "sft", "role": "policy", **fields})


def printed(renderable: object) -> str:
    console = Console(width=400, force_terminal=False, markup=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rewrite_manifest(published: Version, **changes: Any) -> None:
    """Forge a manifest, as somebody with write access could."""
    path = published.path / "manifest.json"
    forged = json.loads(path.read_bytes()) | changes
    path.unlink()
    path.write_text(json.dumps(forged))


# Publishing


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
        ({"stage": "dpo"}, "stage.*'dpo'"),
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


# Provenance


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


# References


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
    monkeypatch.setattr(store, "read_manifest", lambda folder: (b"", "sha256:" + "a" * 64))
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


# Verifying and loading


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
    version.verify(full=False)
    expected, found = (hashlib.sha256(tensors(content)).hexdigest() for content in (b"weights", b"WEIGHTS"))
    with pytest.raises(RegistryError, match=f"model.safetensors has sha256 {found}, expected {expected}"):
        registry.load("m")
    weights.write_bytes(b"short")
    with pytest.raises(RegistryError, match=r"model\.safetensors has 5 bytes, expected 17"):
        version.verify(full=False)
    weights.write_bytes(tensors(b"weights"))
    version.verify()
    (version.path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RegistryError, match=r"'pytorch_model\.bin' was not published with it"):
        version.verify(full=False)


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


# Aliases


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


# Lineage


RATINGS = {"name": "ratings.db", "ratings": 2400, "labelers": 4, "simulated": True}


def three_stages(registry: Registry, source: Path) -> Version:
    demonstrations = {"name": "handbook.jsonl", "rows": 1500, "split": "train"}
    sft = publish(registry, source, name="sft", data=[demonstrations])
    start = Parent("init", sft.ref, sft.digest)
    reward = publish(registry, source, name="judge", stage="reward", role="reward", parents=[start], data=[RATINGS])
    parents = [start, Parent("reference", sft.ref, sft.digest), Parent("reward", reward.ref, reward.digest)]
    return publish(registry, source, name="ppo", stage="ppo", parents=parents, metrics={"kl": 4.25})


def test_the_lineage_reaches_the_ratings_and_joins_a_shared_parent(registry: Registry, source: Path) -> None:
    ppo = three_stages(registry, source)
    node = registry.lineage("ppo")
    assert [(edge.relation, edge.node.ref) for edge in node.parents] == [
        ("init, reference", "sft@v1"),
        ("reward", "judge@v1"),
    ]
    reward = node.parents[1].node
    assert reward.data[0].labelers == 4
    assert reward.parents[0].node is node.parents[0].node
    assert ppo.parent("reward") == Parent("reward", "judge@v1", reward.version.digest if reward.version else None)
    assert ppo.parent("value") is None
    tree = printed(render_lineage(node))
    assert "ppo@v1  ppo  " + ppo.digest[:15] + "  kl 4.25" in tree
    assert "ratings.db - 2400 ratings, 4 simulated labelers" in tree
    assert "handbook.jsonl - 1500 rows, split train" in tree
    assert tree.count("handbook.jsonl") == 1
    assert "init: sft@v1" in tree
    assert "(shown above)" in tree


def test_parents_are_pinned_and_strangers_kept(registry: Registry, source: Path) -> None:
    sft = publish(registry, source, name="sft")
    registry.set_alias("sft", "prod", 1)
    parents = [
        Parent("init", "sft@prod"),
        Parent("base", "org/base-7b"),
        Parent("reward", "sft@v9", "sha256:" + "0" * 64),
    ]
    version = publish(registry, source, parents=parents)
    assert version.manifest.parents == (Parent("init", "sft@v1", sft.digest), *parents[1:])
    nodes = [edge.node for edge in registry.lineage("m").parents]
    assert [node.version is None for node in nodes] == [False, True, True]
    assert all("missing" in (node.problem or "missing") for node in nodes)
    assert "missing" in printed(render_lineage(registry.lineage("m")))


def test_a_parent_moved_by_an_alias_since_is_still_found_by_digest(registry: Registry, source: Path) -> None:
    first = publish(registry, source, name="sft")
    publish(registry, source, name="sft")
    version = publish(registry, source, parents=[Parent("init", "sft@latest", first.digest)])
    assert version.manifest.parents == (Parent("init", "sft@v1", first.digest),)


def test_a_changed_parent_a_cycle_and_a_long_chain_are_shown_not_crashed_on(
    registry: Registry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = three_stages(registry, source)
    sft = registry.resolve("sft")
    rewrite_manifest(sft, parents=[{"role": "init", "ref": "ppo@v1", "digest": None}])
    tree = printed(render_lineage(registry.lineage(version.ref)))
    assert "not the same any more" in tree
    assert "its own ancestor" in tree
    monkeypatch.setattr(lineage, "MAX_GENERATIONS", 5)
    for number in range(1, 9):
        publish(registry, source, name="chain", parents=[Parent("init", f"chain@v{number - 1}")] if number > 1 else [])
    tree = printed(render_lineage(registry.lineage("chain")))
    assert "more than 5 generations" in tree
    assert "chain@v4" in tree
    assert "chain@v1" not in tree


def test_a_deep_diamond_is_read_in_linear_time(registry: Registry, source: Path) -> None:
    for number in range(1, 41):
        parents = [Parent(role, f"d@v{number - 1}") for role in "ab"] + [Parent("c", f"d@v{max(1, number - 2)}")]
        publish(registry, source, name="d", parents=parents if number > 1 else [])
    assert len(printed(render_lineage(registry.lineage("d"))).splitlines()) < 100


def test_hostile_text_in_a_manifest_is_only_text(registry: Registry, source: Path) -> None:
    hostile = "[red]x[/red]\x1b]52;c;AA==\x07\x9b31m\u202e\nnew line"
    publish(
        registry,
        source,
        data=[{"name": hostile, "split": hostile}],
        metrics={hostile: 1.0},
        parents=[Parent(hostile, hostile)],
    )
    tree = printed(render_lineage(registry.lineage("m")))
    assert "[red]x[/red]" in tree
    assert not set(tree) & set("\x1b\x07\x9b\u202e")
    assert len(tree.splitlines()) == 3


# The model card


def test_the_card_says_when_ratings_were_simulated_also_for_descendants(registry: Registry, source: Path) -> None:
    ppo = three_stages(registry, source)
    cards = {name: (registry.resolve(name).path / "README.md").read_text() for name in ("sft", "judge", "ppo")}
    assert "imulated" not in cards["sft"]
    assert "**Simulated ratings.**" in cards["judge"]
    assert "**Simulated ratings.**" in cards["ppo"]
    assert ppo.ref in cards["ppo"]
    assert "judge@v1" in cards["ppo"]
    assert "| kl | 4.25 |" in cards["ppo"]


def test_a_card_of_the_sources_own_is_kept(registry: Registry, source: Path) -> None:
    (source / "README.md").write_text("mine")
    assert (publish(registry, source).path / "README.md").read_text() == "mine"


def test_a_card_cannot_be_injected_into(registry: Registry, source: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](http://evil.example) `code`\n# heading"
    version = publish(registry, source, data=[{"name": hostile}], metrics={hostile: 1.0}, run_id=hostile)
    card = (version.path / "README.md").read_text()
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    html = markdown.render(card)
    assert "<script" not in html
    assert "<a " not in html
    assert "<code>code" not in html
    assert html.count("<h1>") == 1
    assert html.count("heading") == 3


@given(st.text(max_size=60))
def test_escaped_text_renders_as_itself(text: str) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    rendered = markdown.renderInline(escape(text))
    assert "<a" not in rendered
    assert "<img" not in rendered
    assert "<code" not in rendered


# The package


def test_exports_are_what_they_say() -> None:
    assert sorted(package.__all__) == package.__all__
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_the_registry_does_not_import_torch() -> None:
    code = "import sys, alignment.cli.main; print([m for m in ('torch', 'transformers', 'wandb') if m in sys.modules])"
    root = Path(package.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
