"""An earlier run set aside in its own folder, until the run that replaces it stands.

    RUN/aside-1/              the earlier run, whole; a second one is aside-2
    RUN/failed/               what the last attempt wrote that failed before it stood; the earlier run is back then
    RUN/config-before.json    the config of the checkpoints, while a resumed run with another one has saved none

A new run stands once it has a checkpoint, or has ended. Only the owner of the folder's lease calls these functions.
Each may be killed at any point: `recover` then completes it or takes it back.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from pathlib import Path

from alignment.files import read_file, replace_text
from alignment.runs import lease

FAILED = "failed"
CONFIG, CONFIG_BEFORE = "config.json", "config-before.json"
_ASIDE = re.compile(r"aside-([0-9]+)")
_PART, _BACK, _FAILING, _TRASH = ".aside", ".back", ".failing", ".trash-"


def stack(run_dir: Path) -> list[Path]:
    """The earlier runs that are set aside, the newest first."""
    found = [(int(match[1]), path) for path in run_dir.iterdir() if (match := _ASIDE.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def push(run_dir: Path) -> Path:
    """Set the run in a folder aside; returns where."""
    newest = next(iter(stack(run_dir)), None)
    target = run_dir / f"aside-{int(newest.name.partition('-')[2]) + 1 if newest else 1}"
    _move(run_dir, run_dir / _PART)
    (run_dir / _PART).rename(target)
    return target


def restore(run_dir: Path) -> bool:
    """Put the newest earlier run back; the failed one becomes RUN/failed. False if there is none."""
    back, failing = run_dir / _BACK, run_dir / _FAILING
    if not back.exists():
        if not (earlier := stack(run_dir)):
            return False
        _move(run_dir, failing)
        earlier[0].rename(back)
    if failing.exists():
        failing.rename(run_dir / FAILED)
    clear(back, FAILED)  # of an older attempt
    _move(back, run_dir)
    back.rmdir()
    return True


def keep_config(run_dir: Path) -> None:
    """Keep the config that the run's checkpoints were made with, since a resumed run is about to write another."""
    with contextlib.suppress(OSError):  # it is lost already
        replace_text(run_dir / CONFIG_BEFORE, read_file(run_dir / CONFIG).decode(errors="replace"))


def restore_config(run_dir: Path) -> None:
    """Put the config of the checkpoints back where a run with another one has saved none."""
    if (before := run_dir / CONFIG_BEFORE).exists():
        before.replace(run_dir / CONFIG)


def recover(run_dir: Path) -> None:
    """Take a `push` back, or complete a `restore`, that was killed; and put a replaced config back."""
    restore_config(run_dir)
    if (part := run_dir / _PART).exists():
        _move(part, run_dir)
        part.rmdir()
    if (run_dir / _BACK).exists() or (run_dir / _FAILING).exists():
        restore(run_dir)


def collect(run_dir: Path) -> None:
    """Remove what was set aside, since the run that replaces it stands."""
    clear(run_dir, FAILED, CONFIG_BEFORE, *(path.name for path in stack(run_dir)))


def clear(run_dir: Path, *names: str) -> None:
    """Remove entries of a run folder; without names, all but its lease and what is set aside."""
    if not (present := [name for name in names or _own(run_dir) if os.path.lexists(run_dir / name)]):
        return
    trash = run_dir / f"{_TRASH}{uuid.uuid4().hex}"  # renamed first: a half-removed run does not look like one
    trash.mkdir()
    for name in present:
        (run_dir / name).rename(trash / name)
    for leftover in run_dir.glob(f"{_TRASH}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _own(folder: Path) -> list[str]:
    """Names of everything that belongs to the run itself."""
    kept = {lease.FOLDER, _PART, _BACK, _FAILING}
    return [name for path in folder.iterdir() if (name := path.name) not in kept and not _ASIDE.fullmatch(name)]


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in _own(source):
        (source / name).rename(target / name)
