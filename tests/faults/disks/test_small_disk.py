"""W&B on a real disk that is too small, a tmpfs: its process does not see the preloaded shim."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from resuming import check_same, configure, run_whole
from test_full_disk import SFT, errors

TITLE = "W&B on a full disk"


@pytest.fixture
def small_disk():
    """Mounts a tmpfs of so many KiB at a new folder."""
    mounted: list[Path] = []

    def mount(path: Path, kilobytes: int) -> Path:
        path.mkdir(parents=True)
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", path], capture_output=True)
        if made.returncode:
            pytest.skip(f"this user may not mount a tmpfs ({made.stderr.decode().strip()})")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


def start(house, forks, config, *arguments):
    log = house / "log.txt"
    before = log.stat().st_size
    return forks(house, "sft", [config, *arguments]), log.read_bytes()[before:].decode()


@pytest.mark.slow
def test_wandb_without_room_does_not_touch_the_run(house, forks, tried, small_disk):
    tried("sft: no room for W&B's files", "the run is as without it")
    run_whole(house, "sft", SFT, lambda *given: forks(house, *given))
    small_disk(house / "runs" / "sft-wandb" / "wandb", 16)
    config = configure(house, "sft-wandb", "sft", {**SFT, "tracking": {"wandb": "offline"}})
    code, text = start(house, forks, config)
    assert (code, errors(text)) == (0, []), text
    check_same(house, "sft", "sft-wandb")
