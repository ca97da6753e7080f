"""The cache of hashes: it saves reading, it never hides a change, and nothing that is wrong with it is an error."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment.registry import Registry, RegistryError, Version, hashes, provenance

CONTENT = (2).to_bytes(8, "little") + b"{}" + b"weights"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "code_state", lambda: None)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)  # files of a moment ago are cached too
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNMENT_VERIFY", raising=False)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(CONTENT)
    return Registry(tmp_path / "registry").publish("m", source, stage="sft", role="policy")


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are hashed from now on."""
    seen: list[str] = []
    digest = hashlib.file_digest

    def counted(file, name):
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{file.fileno()}")))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return seen


def rewrite(path: Path, content: bytes) -> None:
    """In place, with the old mtime: only ctime tells."""
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.chmod(path, 0o644)
    path.write_bytes(content)
    os.utime(path, ns=times)


def entries(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "alignment" / "sha256"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_file_is_read_once_and_again_when_told_to(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(monkeypatch)
    version.verify()
    assert sorted(seen) == ["README.md", "config.json", "model.safetensors"]
    version.verify()
    assert len(seen) == 3
    version.verify(cold=True)
    assert len(seen) == 6
    version.verify(hash_files=False)
    assert len(seen) == 6


def test_another_process_of_this_user_shares_the_cache(version: Version) -> None:
    version.verify()
    code = """
import hashlib, sys
from alignment.registry import Registry
hashlib.file_digest = lambda *_: sys.exit("read again")
print(Registry(sys.argv[1]).load("m").ref)
"""
    root = Path(hashes.__file__).parents[3]
    command = [sys.executable, "-c", code, str(version.path.parents[2])]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "m@v1\n"


def test_a_changed_file_is_found_though_it_was_cached(version: Version) -> None:
    version.verify()
    weights = version.path / "model.safetensors"
    rewrite(weights, CONTENT[:-1] + b"S")
    with pytest.raises(RegistryError, match="sha256"):
        version.verify()
    rewrite(weights, CONTENT)
    version.verify()
    shutil.copy2(weights, version.path / "copy")  # another inode with the same times and size
    (version.path / "copy").write_bytes(CONTENT[:-1] + b"S")
    os.utime(version.path / "copy", ns=(0, weights.stat().st_mtime_ns))
    os.replace(version.path / "copy", weights)
    with pytest.raises(RegistryError, match="sha256"):
        version.verify()


def test_a_file_that_changed_a_moment_ago_is_not_cached(
    version: Version, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_NS", 3600 * 10**9)
    version.verify()
    assert entries(tmp_path) == []
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 2 * 3600 * 10**9)
    version.verify()
    assert len(entries(tmp_path)) == 3


def test_only_good_hashes_are_cached(version: Version, tmp_path: Path) -> None:
    rewrite(version.path / "model.safetensors", CONTENT[:-1] + b"S")
    with pytest.raises(RegistryError, match="sha256"):
        version.verify()
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"x" * 5000, b"\xff\n", b"other-key " + b"0" * 64 + b"\n", None])
def test_a_damaged_cache_is_no_cache(version: Version, tmp_path: Path, damage: bytes | None) -> None:
    version.verify()
    for path in entries(tmp_path):
        content = path.read_bytes()
        path.write_bytes(content[:-65] + b"0" * 64 + b"\n" if damage is None else damage)
    version.verify()
    rewrite(version.path / "config.json", b"[]")
    with pytest.raises(RegistryError, match=r"config\.json has sha256"):
        version.verify()


def test_an_entry_that_is_a_link_a_fifo_or_a_folder_is_not_read(version: Version, tmp_path: Path) -> None:
    version.verify()
    first, second, third = entries(tmp_path)
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    second.unlink()
    os.mkfifo(second)
    third.unlink()
    third.mkdir()
    version.verify()


@pytest.mark.parametrize("where", ["a file", "/proc/1/nothing", "relative"])
def test_without_a_place_to_write_every_file_is_read(
    version: Version, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / where) if where == "a file" else where)
    seen = reads(monkeypatch)
    version.verify()
    version.verify()
    assert len(seen) == (3 if where == "relative" else 6)  # a relative folder is passed over, as XDG says
    assert not Path("relative").exists()


def test_entries_of_another_user_are_not_believed(
    version: Version, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version.verify()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    seen = reads(monkeypatch)
    version.verify()
    assert len(seen) == 3


def test_the_mode_of_a_load_comes_from_the_call_or_the_environment(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(version.path.parents[2])
    seen = reads(monkeypatch)
    for mode, count in (("fast", 0), ("cached", 3), ("cached", 3), ("full", 6), ("", 6)):
        monkeypatch.setenv("ALIGNMENT_VERIFY", mode)
        registry.load("m")
        assert len(seen) == count
    registry.load("m", verify="full")
    assert len(seen) == 9
    monkeypatch.setenv("ALIGNMENT_VERIFY", "ful")
    with pytest.raises(RegistryError, match=r"^ALIGNMENT_VERIFY is 'ful', expected one of cached, full, fast$"):
        registry.load("m")
    rewrite(version.path / "config.json", b"[]")
    registry.load("m", verify="fast")
    with pytest.raises(RegistryError, match=r"config\.json has sha256"):
        registry.load("m", verify="cached")
