"""Files that survive a power cut: written through to disk, listed without following links, kept by hard links."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

CHUNK_BYTES = 4 << 20


def keep_files(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`, or remove it if there are none; by hard links where the disk
    has them, since whoever writes these files again replaces them."""
    shutil.rmtree(target, ignore_errors=True)
    for name in list_files(source) if source.is_dir() else ():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


class FileRecord(BaseModel):
    """What the manifest says of one file: its sha256 (64 hex digits) and size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def list_files(folder: Path) -> Iterator[str]:
    """Relative paths (with `/`) of everything under `folder` that is not a real folder, sorted; links not followed."""
    for directory, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
        folders[:] = sorted(set(folders).difference(links))
        for name in sorted([*names, *links]):
            yield Path(directory, name).relative_to(folder).as_posix()


@contextmanager
def create(path: Path) -> Iterator[BinaryIO]:
    """A new read-only file that is on disk once the `with` block ends. The umask decides who may read it."""
    # Mode 0444 at creation, not a chmod later: the umask is kept and a killed writer leaves nothing writable.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, data: bytes) -> FileRecord:
    """Write a new read-only file through to disk, in place of any that is there (not atomic: for staging only)."""
    path.unlink(missing_ok=True)
    with create(path) as file:
        file.write(data)
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder last: without it a rename can be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync_folder` for a folder and all folders in it, innermost first."""
    for directory, _, _ in os.walk(folder, topdown=False, onerror=_raise):
        sync_folder(Path(directory))


def host_name() -> str:
    """This host, as `work_name` spells it."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())


def is_alive(pid: int) -> bool:
    """Whether this host has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _raise(error: OSError) -> None:
    raise error  # os.walk passes over unreadable folders in silence otherwise
