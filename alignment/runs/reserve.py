"""Room that is kept back on a run's disk, so that a full one still takes RUN/exit.json and the journal's last lines.

    RUN/.reserve    256 KiB of random bytes: some disks store no blocks for zeros

The first 64 KiB become exit.json by writing over them and renaming the file, which needs no new block that another
process could have taken. The rest is given back for the last lines. A disk that copies on write (ZFS, btrfs), one that
fails (EIO) and one that is read-only may refuse both.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = ".reserve"
NUM_BYTES = 256 << 10
EXIT_BYTES = 64 << 10


def keep(run_dir: Path) -> None:
    """Keep room back.

    Raises:
        OSError: there is none.
    """
    with (run_dir / NAME).open("wb") as file:
        file.write(os.urandom(NUM_BYTES))
        file.flush()
        os.fsync(file.fileno())


def give_back(run_dir: Path) -> None:
    """Give back what is not for exit.json."""
    with suppress(OSError):
        if (run_dir / NAME).stat().st_size > EXIT_BYTES:
            os.truncate(run_dir / NAME, EXIT_BYTES)


def become(path: Path, text: str) -> None:
    """Make the reserve the file at `path`, with this text.

    Raises:
        OSError: there is no reserve, or it is smaller than the text, or the disk fails.
    """
    data, kept = text.encode(), path.with_name(NAME)
    if len(data) > kept.stat().st_size:
        raise OSError(f"{kept} is smaller than the text")
    with kept.open("r+b") as file:
        file.write(data)
        file.truncate()
        os.fsync(file.fileno())
    kept.replace(path)


def drop(run_dir: Path) -> None:
    """Remove the reserve, where it was not needed."""
    with suppress(OSError):
        (run_dir / NAME).unlink(missing_ok=True)
