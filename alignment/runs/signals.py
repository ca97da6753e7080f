"""Controlling a running job from outside: request a checkpoint, an early stop, or a preemption.

    touch RUN/CHECKPOINT    save a checkpoint and continue
    touch RUN/STOP          stop here as if the last step were done: evaluate, publish
    touch RUN/PREEMPT       save a checkpoint and exit with code 75, to be started again with --resume auto

SIGTERM, SIGINT, SIGHUP or SIGUSR1 to any process, and the end of the launcher, act like PREEMPT. The run polls at each
step boundary (an optimizer step; for PPO an iteration), and all ranks agree in one small collective: a launcher signals
its processes one after the other, and ranks acting on different signals would deadlock. Where no boundary comes,
`alignment.runs.watcher` ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from alignment.errors import Preempted
from alignment.runs.journal import Journal
from alignment.runs.starting import HELD, release_signals

PREEMPTED_CODE = 75
"""EX_TEMPFAIL: the exit code that asks a scheduler to requeue the job."""
GRACE_SECONDS = 30
"""Time from the SIGTERM of torch's launcher to its SIGKILL, unless PET_SHUTDOWN_TIMEOUT sets another."""
LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables that `accelerate launch` and torch's launcher set for their processes."""


class Wanted(IntEnum):
    """A request to the run; the larger value takes precedence."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2
    NO_ROOM = 3
    """The journal has waited too long for room on the disk: the run ends after a last attempt at a checkpoint."""
    PREEMPT = 4
    LAUNCHER_GONE = 5
    SIGUSR1 = 6
    SIGTERM = 7
    SIGHUP = 8
    SIGINT = 9

    @property
    def preempts(self) -> bool:
        return self >= Wanted.PREEMPT

    @property
    def saves(self) -> bool:
        return self in (Wanted.CHECKPOINT, Wanted.NO_ROOM) or self.preempts

    @property
    def reason(self) -> str:
        return {Wanted.PREEMPT: "RUN/PREEMPT", Wanted.LAUNCHER_GONE: "the launcher has ended"}.get(self, self.name)


FILES = (Wanted.PREEMPT, Wanted.STOP, Wanted.CHECKPOINT)


class Listener:
    """The signals that this process has received, and how far its run is."""

    def __init__(self) -> None:
        self._signal = Wanted.NOTHING
        # The end of a launcher ends the run; the end of a shell that started it with nohup does not.
        self._launcher = os.getppid() if launched() else None
        self.has_stepped = False
        """Whether this attempt has done a step: before, there is nothing new to save."""
        self.ending = False
        """Whether the run has ended and its exit code is settled."""

    def note(self, number: int, frame: FrameType | None = None) -> None:
        self._signal = max(self._signal, Wanted[signal.Signals(number).name])

    def pending(self) -> Wanted:
        # The launcher of a single process dies of SIGTERM without forwarding it.
        if self._launcher is not None and os.getppid() != self._launcher:
            return max(self._signal, Wanted.LAUNCHER_GONE)
        return self._signal


def launched() -> bool:
    """Whether the parent process is a launcher."""
    return any(name in os.environ for name in LAUNCHER_VARIABLES)


_listener: Listener | None = None


@contextmanager
def listen() -> Iterator[Listener | None]:
    """Defer the signals to the next step boundary instead of ending the process.

    A signal that is ignored stays so: nohup ignores SIGHUP, and a shell SIGINT in what it starts in the background.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield None
        return
    outer, listener = _listener, Listener()
    _listener = listener
    heard = [number for number in HELD if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, listener.note) for number in heard}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    release_signals()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def restore_in_child() -> None:
        """A pool ends its workers with SIGTERM and waits for them; Ctrl-C is for the main process."""
        if _listener is listener:
            signal.set_wakeup_fd(-1)
            restore()
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    os.register_at_fork(after_in_child=restore_in_child)
    try:
        yield listener
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        restore()
        _listener = outer


def note_step() -> None:
    """A step is done: from here on a signal waits for what is new to be saved, or published."""
    if _listener is not None:
        _listener.has_stepped = True


def pending() -> Wanted:
    """The request that this process has received by a signal."""
    return _listener.pending() if _listener else Wanted.NOTHING


def poll(run_dir: Path, own: Wanted = Wanted.NOTHING) -> Wanted:
    """The current request; every rank must call this and gets the same.

    Args:
        own: what this process itself requests.
    """
    from alignment.distributed import processes

    wanted = max(own, pending())
    if processes.is_main_process():
        requests = (file for file in FILES if (run_dir / file.name).exists())
        wanted = max(wanted, next(requests, Wanted.NOTHING))
    return Wanted(processes.all_reduce_max_on_host(int(wanted)))


def exit_if_preempted(run_dir: Path) -> None:
    """Exit on a pending preemption while there is nothing to save yet; every rank must call this.

    Raises:
        Preempted: the run must make room for another job.
    """
    if (wanted := poll(run_dir)).preempts:
        acknowledge(run_dir, wanted)


def exit_early(run_dir: Path) -> None:
    """Exit on a signal that came before anything was loaded; several processes agree later, once they have joined.

    Raises:
        Preempted: the run must make room for another job.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and (wanted := pending()).preempts:
        clear(run_dir, Wanted.PREEMPT)
        raise Preempted(wanted.reason)


def acknowledge(run_dir: Path, wanted: Wanted) -> NoReturn:
    """Remove RUN/PREEMPT, so that the next attempt does not see it, and exit.

    Raises:
        Preempted: always.
    """
    from alignment.distributed import processes

    if processes.is_main_process():
        clear(run_dir, Wanted.PREEMPT)
    raise Preempted(wanted.reason)


def clear(run_dir: Path, *files: Wanted) -> None:
    """Remove request files that have been handled; all of them by default."""
    for file in files or FILES:
        (run_dir / file.name).unlink(missing_ok=True)


def clear_stale_preempt(run_dir: Path) -> None:
    """Remove a RUN/PREEMPT that is older than this launch: its run was killed before it could handle it."""
    process = psutil.Process()
    first = (process.parent() if launched() else None) or process
    with suppress(OSError):
        if (run_dir / Wanted.PREEMPT.name).stat().st_mtime < first.create_time():
            clear(run_dir, Wanted.PREEMPT)


class Control:
    """Polls and handles requests at a run's step boundaries; every rank makes one."""

    def __init__(self, run_dir: Path, journal: Journal) -> None:
        self.run_dir, self._journal = run_dir, journal
        self._polled_at: float | None = None
        self._step_seconds = 0.0
        self._warned = False

    def poll(self, step: int) -> Wanted:
        """The request after a step; a stop is journalled."""
        now = time.monotonic()
        self._step_seconds = now - self._polled_at if self._polled_at is not None else 0.0
        self._polled_at = now
        wanted = poll(self.run_dir, Wanted.NO_ROOM if self._journal.is_overdue else Wanted.NOTHING)
        if wanted is Wanted.STOP:
            self._journal.event("stopped", step=step)
        return wanted

    def save(self, wanted: Wanted, step: int, save: Callable[[], Any]) -> None:
        """Save a checkpoint that is due or requested.

        Raises:
            Preempted: after saving, if a preemption was requested.
            DiskError: after saving, if the journal still finds no room.
        """
        from alignment.distributed import processes

        if wanted.preempts:  # a line after the checkpoint would be truncated on resume
            self._journal.event("preempted", step=step, reason=wanted.reason)
        started = time.monotonic()
        save()
        if wanted.preempts:
            acknowledge(self.run_dir, wanted)
        if wanted is Wanted.NO_ROOM:
            processes.on_main_process(self._journal.check_written)
        self._warn_if_grace_is_short(time.monotonic() - started)
        if wanted is Wanted.CHECKPOINT:
            self._journal.event("checkpoint", step=step)
            if processes.is_main_process():
                clear(self.run_dir, Wanted.CHECKPOINT)

    def _warn_if_grace_is_short(self, save_seconds: float) -> None:
        """Warn once if the launcher could kill this run before its checkpoint is saved."""
        from alignment.distributed import processes

        needed = self._step_seconds + save_seconds
        is_set = any(name in os.environ for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
        if self._warned or is_set or needed < GRACE_SECONDS / 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        self._warned = True
        if processes.is_main_process():
            print(
                f"warning: a step and a checkpoint took {needed:.0f} s, and the launcher kills processes "
                f"{GRACE_SECONDS} s after SIGTERM; set PET_SHUTDOWN_TIMEOUT={max(300, int(4 * needed))} where it is "
                "started",
                file=sys.stderr,
            )
