"""The registry's files: which may be stored, and copying them durably with their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from alignment.files import (
    CHUNK_BYTES,
    FileRecord,
    create,
    disk_errors,
    host_name,
    list_files,
    read_file,
    sync_folder,
    weights_problem,
    write_file,
)
from alignment.registry.errors import RegistryError

MANIFEST = "manifest.json"
MAX_ENTRY = 1_000_000
"""Bytes of an alias's move, a review, a signature or a note."""
MAX_MANIFEST = 64_000_000
SUFFIXES = (".json", ".jsonl", ".safetensors", ".txt", ".md", ".jinja", ".model", ".tiktoken")
_BARE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_PART = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+@=-]{0,254}")


def check_path(path: str, code: bool = False) -> str:
    """Check that a file may be stored in a version; returns its path. `code` allows Python: see Manifest.remote_code.

    Refused: absolute paths, `..`, hidden files, anything but plain ASCII names, the registry's own manifest, and
    kinds of file that can run code on loading (`.bin`, `.pt`, `.pkl`, `.py`: only SUFFIXES are stored).

    Raises:
        RegistryError: it may not be stored; the message names the file.
    """
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise RegistryError(
            f"file {path!r} cannot be stored: names are of A-Z a-z 0-9 . _ + @ = -, relative, not hidden"
        )
    if path == MANIFEST:
        raise RegistryError(f"file {path!r} cannot be stored: the registry writes its own; publish a folder without it")
    kept = (*SUFFIXES, ".py") if code else SUFFIXES
    if parts[-1] not in _BARE_NAMES and not parts[-1].endswith(kept):
        raise RegistryError(
            f"file {path!r} cannot be stored: a version holds {' '.join(SUFFIXES)} only; "
            "write the model with save_pretrained and take other files out of the folder"
        )
    return path


def read_entry(path: Path, limit: int = MAX_ENTRY) -> bytes:
    """Read one of the registry's own small files. Whoever may write there could put anything in its place.

    Raises:
        RegistryError: it is a link, a FIFO, a device or a folder, is too large, or cannot be read.
        FileNotFoundError, NotADirectoryError: it does not exist, or its folder is none.
    """
    try:
        return read_file(path, limit, follow_links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RegistryError(f"{path} cannot be read: {error.strerror}{_advice(error)}") from None


def _advice(error: OSError) -> str:
    if error.errno in (errno.EINVAL, errno.EFBIG, errno.ELOOP):
        return "; move it elsewhere, and see alignment models doctor"
    return "; ask its owner for access" if error.errno in (errno.EACCES, errno.EPERM) else ""


def entries(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if there is no such folder.

    Raises:
        RegistryError: there is no permission to read it.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, which `doctor` names; the other names must stay readable
            return []
        raise RegistryError(f"{folder} cannot be read: {error.strerror}; ask its owner for access") from None


def copy_tree(source: Path, target: Path, code: bool = False) -> dict[str, FileRecord]:
    """Copy every file of `source` into the existing folder `target`, hashing what is written.

    Nothing is linked, since the source may change afterwards. Files are on disk when this returns, folders are not.

    Raises:
        RegistryError: a file may not be stored, is no regular file, or changed while it was read.
    """
    paths = list(list_files(source))
    for path in paths:  # all are checked first, so that no gigabytes are copied in vain
        check_path(path, code)
        _check_regular(path, os.lstat(source / path))
        if problem := weights_problem(source / path):
            raise RegistryError(f"file {path!r} cannot be stored: {problem}; write the model with save_pretrained")
    records = {}
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        records[path] = _copy_file(source / path, target / path, path)
    return records


def _copy_file(source: Path, target: Path, path: str) -> FileRecord:
    # O_NONBLOCK: a fifo put in the file's place since the check must not block the copy
    with open(
        os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0
    ) as reading:
        before = os.fstat(reading.fileno())
        _check_regular(path, before)
        digest, size = hashlib.sha256(), 0
        with create(target) as writing:
            while chunk := reading.read(CHUNK_BYTES):
                digest.update(chunk)
                writing.write(chunk)
                size += len(chunk)
        after = os.fstat(reading.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != before.st_size:
        raise RegistryError(
            f"file {path!r} changed while it was copied; publish when nothing writes to {source.parent}"
        )
    return FileRecord(sha256=digest.hexdigest(), size=size)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each entered durably in the one above it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def check_model_folder(source: Path, adapter: bool) -> None:
    """Check that `source` looks like a saved model: a config and a .safetensors file.

    An ensemble has a description of its own, and its models in folders.

    Raises:
        RegistryError: it does not.
    """
    if not source.is_dir():
        raise RegistryError(f"{source} cannot be published: it is not a folder; name one written by save_pretrained")
    config = "adapter_config.json" if adapter else "config.json"
    if not any((source / name).is_file() for name in (config, "ensemble.json")):
        raise RegistryError(f"{source} cannot be published: it has no {config}; write it with save_pretrained")
    if not any(path.endswith(".safetensors") for path in list_files(source)):
        raise RegistryError(f"{source} cannot be published: it has no .safetensors file; write it with save_pretrained")


@contextmanager
def passing_file(folder: Path, data: bytes) -> Iterator[Path]:
    """A temporary file to hard-link from; it is removed afterwards, even if the disk was full."""
    path = folder / f"{work_name()}.json"
    try:
        write_file(path, data)
        yield path
    finally:
        path.unlink(missing_ok=True)


def work_name() -> str:
    """A new name for work in progress that identifies its process: HOST-PID-UUID."""
    return f"{host_name()}-{os.getpid()}-{uuid.uuid4().hex}"


def one_line_errors(what: str) -> AbstractContextManager[None]:
    """A `disk_errors` that raises RegistryError."""
    return disk_errors(what, RegistryError, "; fix that and try again")


def _check_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise RegistryError(f"file {path!r} cannot be stored: it is {kind}; put a plain copy of it in the folder")
