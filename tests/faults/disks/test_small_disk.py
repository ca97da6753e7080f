"""Runs on a real disk that is too small: a tmpfs of a few hundred kilobytes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from resuming import check_same, configure, run_whole
from test_full_disk import SFT, errors

TITLE = "Disks that are too small"


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


def test_a_run_folder_without_room_ends_in_one_line_and_goes_on_later(house, forks, said, small_disk):
    run_whole(house, "sft", SFT, lambda *given: forks(house, *given))
    run_dir = small_disk(house / "runs" / "sft-small", 2000)
    config = configure(house, "sft-small", "sft", SFT)
    filler = run_dir / "filler"
    filler.write_bytes(bytes(1_100_000))
    code, text = start(house, forks, config)
    assert code == 1, text
    assert len(errors(text)) == 1, text
    outcome = json.loads((run_dir / "exit.json").read_text())
    assert outcome["code"] == 1
    assert outcome["last_checkpoint"], "the first checkpoints had room"
    filler.unlink()
    code, text = start(house, forks, config, "--resume", "auto")
    assert code == 0, text
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (run_dir / file).stat().st_size
    said.append({"fault": "sft: a tmpfs that fills up", "tried": 1, "held": 1,
                 "answer": "exit code 1 in one line, exit.json is written; resumed"})  # fmt: skip


def test_wandb_without_room_does_not_touch_the_run(house, forks, said, small_disk):
    run_whole(house, "sft", SFT, lambda *given: forks(house, *given))
    small_disk(house / "runs" / "sft-wandb" / "wandb", 16)
    config = configure(house, "sft-wandb", "sft", {**SFT, "tracking": {"wandb": "offline"}})
    code, text = start(house, forks, config)
    assert (code, errors(text)) == (0, []), text
    check_same(house, "sft", "sft-wandb")
    said.append({"fault": "sft: no room for W&B's files", "tried": 1, "held": 1, "answer": "the run is as without it"})
