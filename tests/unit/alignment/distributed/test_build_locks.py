"""A lock that a killed build has left is named at the start."""

import os
import time

import pytest

from alignment.distributed import build_locks


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(build_locks, "_is_compiling", lambda: False)
    path = tmp_path / "shm_comm" / "lock"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (time.time() - 7200,) * 2)
    return path


def test_an_old_lock_is_named_with_its_age_and_how_to_remove_it(lock, capsys):
    build_locks.warn_about_stale_locks()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {lock} is 120 minutes old and no compiler runs")
    assert line.endswith(f"rm {lock}")


@pytest.mark.parametrize("why", ["young", "compiling", "no deepspeed", "another rank"])
def test_nothing_is_said_otherwise(lock, capsys, monkeypatch, why):
    if why == "young":
        os.utime(lock)
    if why == "compiling":
        monkeypatch.setattr(build_locks, "_is_compiling", lambda: True)
    if why == "no deepspeed":
        monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    if why == "another rank":
        monkeypatch.setenv("LOCAL_RANK", "1")
    build_locks.warn_about_stale_locks()
    assert capsys.readouterr().err == ""


def test_the_default_folder_is_torchs_own(tmp_path, monkeypatch):
    from torch.utils.cpp_extension import get_default_build_root

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "torch_extensions" / "py311_cpu" / "op" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    assert build_locks._lock_files() == [path]
    assert str(path).startswith(get_default_build_root())
