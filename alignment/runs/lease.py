"""The lease of a run folder: one process at a time writes into it.

    RUN/lease/000007.json    the newest record is the lease; its modification time is the owner's heartbeat

A lease is taken by a hard link to the number after the newest, which one process alone can make, also on a shared disk
(flock is not reliable there). Released records stay until the next owner, so that numbers only grow: a process that
has judged an old record can never take the place of a newer one.

On the owner's machine its process tells whether it lives. From elsewhere its heartbeat tells, by the disk's own clock,
since clocks of machines differ.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from alignment.errors import UserError
from alignment.files import disk_errors, host_name, is_alive, read_file
from alignment.terminal import one_line, say

FOLDER = "lease"
BEAT_SECONDS = 10.0
LIMIT_SECONDS = 60.0
"""Age of a heartbeat at which an owner on another machine counts as gone."""


class LeaseRecord(BaseModel):
    """The contents of a record: who owns the folder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    machine: str
    """Where it is the same, process ids mean the same processes."""
    pid: int
    started: str
    """The start time of the process: ids are used again."""
    job: str = ""
    """The Slurm job's id."""
    restart: int = 0
    """How often Slurm has put the job back into its queue."""
    since: AwareDatetime
    released: bool = False

    @classmethod
    def of_this_process(cls) -> LeaseRecord:
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=host_name(),
            machine=_machine(),
            pid=os.getpid(),
            started=_start_of(os.getpid()) or "",
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=int(restart) if restart.isdecimal() else 0,
            since=datetime.now(UTC),
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


_held: list[Lease] = []


def release_held() -> None:
    """Release this process's lease; for a thread that is about to end the process."""
    for lease in _held:
        lease.release()


class Lease:
    """A lease that this process holds; a thread keeps its heartbeat."""

    def __init__(self, path: Path, record: LeaseRecord) -> None:
        self._path, self._record = path, record
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                os.utime(self._path)
            except FileNotFoundError:  # a stopped machine wakes up after another has taken the folder over
                run_dir = self._path.parent.parent
                say(f"error: {run_dir} was removed or taken over by another process; this one ends at once")
                os._exit(1)
            except OSError:  # a disk that does not answer for a while
                continue

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            if self._path.exists():
                _write(self._path.with_name(".released"), self._record.model_copy(update={"released": True})).replace(
                    self._path
                )


@contextmanager
def hold(run_dir: Path, advice: str = "") -> Iterator[None]:
    """Own a run folder, which is made if it is missing; only the main process of a launch does this.

    Args:
        advice: what to do if it is refused; by default that of a stage's command.

    Raises:
        UserError: it belongs to another process that lives; the message says which and since when.
    """
    with folder_errors(run_dir):
        lease = _take(run_dir, advice)
    _held.append(lease)
    try:
        yield
    finally:
        _held.remove(lease)
        lease.release()


def drop_unused(run_dir: Path) -> None:
    """Remove a run folder in which nothing but released leases is left, as after a study that leaves no file."""
    with suppress(OSError):  # not empty: somebody writes into it, and it stays
        if os.listdir(run_dir) != [FOLDER]:
            return
        for file in (run_dir / FOLDER).glob("[0-9]*"):
            file.unlink()
        for folder in (run_dir / FOLDER, run_dir, run_dir.parent):
            folder.rmdir()


@contextmanager
def folder_errors(run_dir: Path) -> Iterator[None]:
    """Turn an OSError while the run folder is opened into a line with the fix."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{run_dir}: the run folder cannot be made ({error.strerror or error}); set tracking.runs to a "
            "folder that can be written"
        ) from error


def owned_folder(path: Path) -> Path | None:
    """The run folder that a file is in, if one has been leased."""
    parents = path.resolve().parents
    return next((one for one in parents if (one / FOLDER).is_dir() and (one / "config.json").is_file()), None)


def _take(run_dir: Path, advice: str) -> Lease:
    folder, record = run_dir / FOLDER, LeaseRecord.of_this_process()
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{uuid.uuid4().hex}"
    try:
        _write(draft, record)
        while True:
            number = _newest(folder)
            gone = _check_free(run_dir, number, draft, record, advice)
            path = folder / f"{number + 1:06d}.json"
            if not _link(draft, path):
                continue
            if _newest(folder) == number + 1:
                break
            path.unlink()  # numbers went on since `number` was read, and this one had been removed
    finally:
        draft.unlink(missing_ok=True)
    for old in _numbers(folder):
        if old <= number:
            (folder / f"{old:06d}.json").unlink(missing_ok=True)
    if gone:
        say(one_line(f"note: {run_dir} is taken over from {gone}"))
    return Lease(path, record)


def _check_free(run_dir: Path, number: int, draft: Path, mine: LeaseRecord, advice: str) -> str | None:
    """The owner that is gone, with the reason; None if the folder has no owner.

    Args:
        draft: a file of this process beside the record, whose time is set to the disk's now.

    Raises:
        UserError: the owner lives.
    """
    path = run_dir / FOLDER / f"{number:06d}.json"
    os.utime(draft)
    try:
        owner: LeaseRecord | None = LeaseRecord.model_validate_json(read_file(path))  # opening it asks the server
    except FileNotFoundError:
        return None
    except ValidationError:  # a power cut left it empty
        owner = None
    with suppress(FileNotFoundError):
        age = max(0.0, draft.stat().st_mtime - path.stat().st_mtime)
        if owner is not None and owner.released:
            return None
        if reason := _why_gone(owner, mine, age):
            return f"{owner or 'an unknown process'}: {reason}"
        raise UserError(
            f"{run_dir} belongs to {owner or 'an unknown process'} (last heartbeat {age:.0f} s ago); "
            f"{advice or _advice(run_dir, owner, mine)}"
        )
    return None


def _why_gone(owner: LeaseRecord | None, mine: LeaseRecord, age: float) -> str | None:
    """Why an owner counts as gone; None if it may live."""
    if owner is not None:
        if owner.job and owner.job == mine.job and owner.restart < mine.restart:
            return "Slurm has started the job again"
        if owner.machine == mine.machine:
            return None if _start_of(owner.pid) in (owner.started, "") else "it has ended"
    return f"no heartbeat for {age:.0f} s" if age > LIMIT_SECONDS else None


def _advice(run_dir: Path, owner: LeaseRecord | None, mine: LeaseRecord) -> str:
    if owner and owner.job and (owner.job, owner.restart) == (mine.job, mine.restart) and "RANK" not in os.environ:
        return (
            "tasks of one job that run side by side need a launcher: start one task on each node, with "
            "`accelerate launch` (docs/cluster/slurm.md), export MASTER_ADDR and MASTER_PORT, or give each its own name"
        )
    return f"wait for it, end it with `touch {run_dir / 'STOP'}`, or choose another name (name={run_dir.name}-2)"


def _numbers(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]


def _newest(folder: Path) -> int:
    """The number of the newest record, 0 if there is none."""
    return max(_numbers(folder), default=0)


def _write(path: Path, record: LeaseRecord) -> Path:
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def _link(draft: Path, path: Path) -> bool:
    """Link the draft to a new name; False if another process was first."""
    with disk_errors(f"{path} cannot be made by a hard link", UserError, "; set tracking.runs elsewhere"):
        try:
            os.link(draft, path)
        except FileExistsError:  # NFS may also answer so to the repeat of a request that it has fulfilled
            return draft.stat().st_nlink == 2
    return True


def _machine() -> str:
    """One boot of one host, and there one container: process ids are different ones in another."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{host_name()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return host_name()


def _start_of(pid: int) -> str | None:
    """The start time of a process of this machine: "" if it is hidden, None if there is none or it is a zombie."""
    try:  # in ticks since boot: psutil's time moves with the clock
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return "" if is_alive(pid) else None
    with suppress(psutil.NoSuchProcess):
        return str(psutil.Process(pid).create_time())
    return None
