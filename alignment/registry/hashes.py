"""sha256 of files, each read once per node while it is unchanged.

The cache is one small file per hashed file, in the user's cache folder. Its key is the file's metadata: device, inode,
size, and both times to the nanosecond (ctime too: mtime can be set back, ctime cannot). A file that changed a moment
ago is not cached, since a second change within one tick of the clock would not show in its times. On any problem with
the cache the file is read instead.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import time
import uuid
from pathlib import Path

from alignment.registry.errors import RegistryError

MODES = ("cached", "full", "fast")
SETTLED_NS = 2_000_000_000  # the coarsest clock of a filesystem in use (FAT) ticks every 2 seconds
_ENTRY = re.compile(rb"([^\n]+) ([0-9a-f]{64})\n")


def verify_mode(chosen: str | None = None) -> str:
    """The verification mode of a load: `chosen`, else the environment's ALIGNMENT_VERIFY, else "cached".

    cached: sha256 of each file, read once per node. full: every file is read again. fast: sizes only.

    Raises:
        RegistryError: the mode is unknown.
    """
    mode = chosen or os.environ.get("ALIGNMENT_VERIFY") or MODES[0]
    if mode not in MODES:
        where = "the mode" if chosen else "ALIGNMENT_VERIFY"
        raise RegistryError(f"{where} is {mode!r:.40}, expected one of {', '.join(MODES)}")
    return mode


def sha256_of(path: Path, expected: str, cold: bool = False) -> str:
    """A file's sha256, from the cache unless `cold`.

    Only a cached hash that equals `expected` is used, so a damaged cache cannot report an intact file as damaged.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):  # a FIFO put there since it was looked at
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        entry = _entry(before)
        if not cold and entry and _read(*entry) == expected:
            return expected
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if entry and digest == expected and _key(before) == _key(after) and _settled(after):
        _write(*entry, digest)
    return digest


def cache_folder() -> Path | None:
    """The cache's folder; None if this user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "alignment" / "sha256"


def _key(status: os.stat_result) -> bytes:
    # The node's name is part of the key: the home folder may be shared, while the disks are local.
    node = re.sub(r"\s", "", socket.gethostname())
    metadata = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, (node, *metadata))).encode()


def _entry(status: os.stat_result) -> tuple[Path, bytes] | None:
    folder, key = cache_folder(), _key(status)
    return (folder / hashlib.sha256(key).hexdigest(), key) if folder else None


def _settled(status: os.stat_result) -> bool:
    return max(status.st_mtime_ns, status.st_ctime_ns) + SETTLED_NS < time.time_ns()


def _read(path: Path, key: bytes) -> str | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():  # other users' entries are not trusted
                return None
            match = _ENTRY.fullmatch(file.read(1024))
    except OSError:
        return None
    return match[2].decode() if match and match[1] == key else None


def _write(path: Path, key: bytes, digest: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            temporary.write_bytes(key + b" " + digest.encode() + b"\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        pass  # a full disk or a read-only home only costs time
