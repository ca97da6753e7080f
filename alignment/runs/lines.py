"""Files of JSON lines on a disk that may fill up: what finds no room waits in memory, and nothing is lost or doubled.

A write that fails is tried again with every later line, and at each checkpoint. A disk may also take a write and fail
at the `fsync` (network disks and quotas do): so lines stay in memory until they are synced, and if that fails the file
is cut to what was synced before and they are written again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from alignment.errors import DiskError
from alignment.runs import reserve
from alignment.terminal import one_line, say

WAIT_SECONDS = 1800.0
WAIT_BYTES = 64 << 20
"""What may wait for room; beyond it the run ends after a last attempt at a checkpoint."""
SYNC_BYTES = 8 << 20
"""Written lines that are kept in memory at most, until they are synced."""


class LineFile:
    """One file that lines are appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._synced = self.size
        self._unsynced: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._must_repeat = False
        """A sync has failed, so that what was written since the one before may be lost."""
        self.num_bytes_waiting = 0

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Remove what follows the first `size` bytes."""
        self._file.truncate(size)
        self._synced = size

    def add(self, line: bytes) -> None:
        """Put a line behind those that wait; `flush` writes them."""
        self._waiting.append(line)
        self.num_bytes_waiting += len(line)

    def flush(self) -> None:
        """Write all that waits, in order.

        Raises:
            OSError: there is no room; the rest waits.
        """
        if self._must_repeat:
            self._file.truncate(self._synced)
            self._waiting.extendleft(reversed(self._unsynced))
            self.num_bytes_waiting += sum(map(len, self._unsynced))
            self._unsynced, self._must_repeat = [], False
        while self._waiting:
            line = self._waiting[0]
            written = self._file.write(line)  # the last one that finds room may be cut
            self._unsynced.append(line[:written])
            self.num_bytes_waiting -= written
            if written == len(line):
                self._waiting.popleft()
            else:
                self._waiting[0] = line[written:]
        if self.size - self._synced > SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Write all that waits, through to the disk.

        Raises:
            OSError: as `flush`.
        """
        if self._waiting or self._must_repeat:
            self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self._must_repeat = bool(self._unsynced)
            raise
        self._synced, self._unsynced = self.size, []

    def close(self) -> None:
        self._file.close()


class LineFiles:
    """The files of a journal, which wait for room together.

    Args:
        paths: the first has precedence where there is too little room at the end.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path.stem: LineFile(path) for path in paths}
        self._since: float | None = None
        """When the lines that wait began to; None while none does."""

    def __getitem__(self, name: str) -> LineFile:
        return self._files[name]

    def write(self, name: str, line: bytes) -> None:
        """Append a line, at once if there is room."""
        self._files[name].add(line)
        self._try(LineFile.flush)

    def sync(self) -> dict[str, int]:
        """Write everything through to the disk; returns the size in bytes of each file.

        Raises:
            OSError: there is no room.
        """
        if (error := self._try(LineFile.sync)) is not None:
            raise error
        return {name: file.size for name, file in self._files.items()}

    @property
    def num_bytes_waiting(self) -> int:
        return sum(file.num_bytes_waiting for file in self._files.values())

    @property
    def is_overdue(self) -> bool:
        """Whether lines have waited for too long, or too many of them."""
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        return waited > WAIT_SECONDS or self.num_bytes_waiting > WAIT_BYTES

    def close(self, run_dir: Path) -> OSError | None:
        """Write what waits, if need be into the room that was kept back for it, and close.

        Returns:
            The error, if something could not be written.
        """
        error = self._each(LineFile.sync)
        if error is not None:
            reserve.give_back(run_dir)
            error = self._each(LineFile.sync)
        for file in self._files.values():
            file.close()
        return error

    def _try(self, write: Callable[[LineFile], None]) -> OSError | None:
        """Call a method on each file; the first failure, and the end of the failures, are said once."""
        error = self._each(write)
        if error is not None and self._since is None:
            self._since = time.monotonic()
            say(one_line(
                f"warning: a file of the journal cannot be written ({error.strerror or error}); training goes on, and "
                f"its lines wait in memory, for at most {WAIT_SECONDS / 60:.0f} minutes and {WAIT_BYTES >> 20} MiB; "
                "make room"
            ))  # fmt: skip
        elif error is None and self._since is not None:
            say(f"note: the journal can be written again; it is whole ({time.monotonic() - self._since:.0f} s waited)")
            self._since = None
        return error

    def _each(self, write: Callable[[LineFile], None]) -> OSError | None:
        """Call a method on each file; returns the first error."""
        errors = []
        for file in self._files.values():
            try:
                write(file)
            except OSError as error:
                errors.append(error)
        return errors[0] if errors else None


def no_room(run_dir: Path, waiting: int, error: OSError | None = None) -> DiskError:
    """The end of a run whose journal cannot be written."""
    reason = f" ({error.strerror or error})" if error else ""
    return DiskError(
        f"{run_dir}: the last {max(1, waiting >> 10)} KiB of the journal cannot be written{reason}; the newest "
        "checkpoint and the journal up to it are whole; make room and start it again with --resume auto"
    )
