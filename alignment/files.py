"""Files that survive a power cut: written through to disk, listed without following links, verified by hash."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from alignment.errors import UserError

CHUNK_BYTES = 4 << 20
_HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header; the library has the same limit."""


@contextmanager
def disk_errors(what: str, error_type: type[UserError], advice: str = "") -> Iterator[None]:
    """Turn an OSError, such as a full disk or a missing permission, into a one-line error that begins with `what`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise error_type(f"{what}: {error.strerror or error}{where}{advice}") from error


DISK_FAULTS = {
    errno.ENOSPC: "when there is room again",
    errno.EDQUOT: "when the quota has room again",
    errno.EFBIG: "when larger files are allowed (ulimit -f)",
    errno.EROFS: "when it can be written again",
    errno.EIO: "when the disk works again",
}
"""What a disk answers that is full or fails, and when to try again."""
_FAULT_TEXTS = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "pytorchstreamwriter": errno.ENOSPC,
    "no usable temporary directory": errno.ENOSPC,
    "quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "input/output error": errno.EIO,
    "disk i/o error": errno.EIO,
}
"""How libraries that raise no OSError say so."""


def disk_fault(error: BaseException) -> tuple[str, str] | None:
    """What a full or broken disk has answered, with the file, and when to try again; None for any other error.

    The causes of the error are looked at too.
    """
    seen: BaseException | None = error
    for _ in range(20):  # a chain of causes may be a ring
        if seen is None:
            return None
        number = seen.errno if isinstance(seen, OSError) else None
        if number not in DISK_FAULTS:
            text = str(seen).lower()
            number = next((code for words, code in _FAULT_TEXTS.items() if words in text), None)
        if number is not None:
            name = getattr(seen, "filename", None)
            return f"{name}: {os.strerror(number)}" if name else str(seen).splitlines()[0], DISK_FAULTS[number]
        seen = seen.__cause__ or seen.__context__
    return None


def keep_files(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`, or remove it if there are none.

    Files are hard-linked where the disk supports it: later writers replace these files and never change them.
    """
    shutil.rmtree(target, ignore_errors=True)
    for name in list_files(source) if source.is_dir() else ():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


class FileRecord(BaseModel):
    """A manifest's entry for one file: its sha256 (64 hex digits) and size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def file_problem(
    folder: Path, path: str, record: FileRecord, sha256: Callable[[Path], str] | None = None
) -> str | None:
    """The first way in which a file differs from its record, None if it matches.

    Args:
        sha256: hashes a file; None compares the size and a weights file's header only.
    """
    try:
        status = os.lstat(folder / path)
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is not a regular file"
        if status.st_size != record.size:
            return f"{path} has {status.st_size} bytes, expected {record.size}"
        if sha256 is not None and (digest := sha256(folder / path)) != record.sha256:
            return f"{path} has sha256 {digest}, expected {record.sha256}"
        return weights_problem(folder / path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def weights_problem(path: Path) -> str | None:
    """A fault in the header of a .safetensors file, None if there is none or if it is another kind of file.

    The first 8 bytes are the header's length, and a forged one makes a reader allocate that much memory.
    """
    if path.suffix != ".safetensors":
        return None
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(9)
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(size - 8, _HEADER_LIMIT) or start[8:] != b"{":
        fault = f"its header says {length} bytes" if len(start) >= 8 else "it has no header"
        return f"{path.name} is no safetensors file: {fault}, the file has {size}"
    return None


def list_files(folder: Path) -> Iterator[str]:
    """Relative paths (with `/`) of everything under `folder` that is not a real folder, sorted; links not followed."""
    for directory, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
        folders[:] = sorted(set(folders).difference(links))
        for name in sorted([*names, *links]):
            yield Path(directory, name).relative_to(folder).as_posix()


@contextmanager
def create(path: Path) -> Iterator[BinaryIO]:
    """A new read-only file that is on disk once the `with` block ends; the umask decides who may read it."""
    # Mode 0444 at creation, not a chmod later: the umask is kept and a killed writer leaves nothing writable.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, data: bytes) -> FileRecord:
    """Write a new read-only file through to disk, replacing any other (not atomic: for staging only)."""
    path.unlink(missing_ok=True)
    with create(path) as file:
        file.write(data)
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file gets the name `path` when the block ends without an error.

    No two processes write to the same part, and a file that another process has put at `path` meanwhile stays.

    Args:
        replace: the caller owns the file at `path`, and the new one takes its place.

    Raises:
        FileExistsError: something stands at `path`, and `replace` is false.
    """
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        (os.replace if replace else name_file)(part, path)
        sync_folder(path.absolute().parent)
    finally:
        part.unlink(missing_ok=True)


def name_file(part: Path, path: Path) -> None:
    """Give a finished file its name by a hard link, which never replaces what stands there; `part` may go afterwards.

    Raises:
        FileExistsError: something stands at `path`.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without hard links. Only an empty file of our own making is replaced.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.replace(part, path)


def read_file(path: Path, limit: int | None = None, follow_links: bool = True) -> bytes:
    """Read a regular file; opening a FIFO in its place would wait for ever, and a device has no end.

    Args:
        limit: the most bytes that the file may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `limit`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    _check_readable(path, os.stat(path, follow_symlinks=follow_links))  # opening some devices does something
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        _check_readable(path, status)
        if limit is not None and status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, at most {limit:,} are read", str(path))
        return file.read() if limit is None else file.read(limit)


def _check_readable(path: Path, status: os.stat_result) -> None:
    if (kind := file_kind(status)) != "a file":
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))


def file_kind(status: os.stat_result) -> str:
    """The kind of a file in words: a file, a folder, a symbolic link, a FIFO, a socket or a device."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}
    kinds |= {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader, or a kill, finds the old text or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)  # half a file would take up room on a full disk
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; otherwise a power cut can undo a rename."""
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
    """This host's name, with letters, digits and dots only."""
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
    raise error  # without this, os.walk silently skips unreadable folders
