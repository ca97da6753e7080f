"""What is wanted of a run from outside while it trains: a checkpoint, an early end, or room for another job.

    touch RUN/CHECKPOINT    save a checkpoint and go on
    touch RUN/STOP          end here as if the last step were done: evaluate, publish
    touch RUN/PREEMPT       save a checkpoint and leave with code 75, to be started again with --resume auto

SIGTERM and SIGUSR1 to any process, and the end of the launcher, are as the last. The run asks at each boundary (an
optimizer step; for PPO an iteration), and all processes agree in one small collective: a launcher signals them one
after the other, and two that went by different signals would leave each other in a collective.
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

CODE = 75
"""EX_TEMPFAIL: start me again."""
GRACE = 30
"""Seconds from torch's launcher's SIGTERM to its SIGKILL, unless PET_SHUTDOWN_TIMEOUT says otherwise."""
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Set by `accelerate launch` and torch's launcher for the processes that they start."""


class Wanted(IntEnum):
    """In the order of what goes before what."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2
    PREEMPT = 3
    LAUNCHER_GONE = 4
    SIGUSR1 = 5
    SIGTERM = 6

    @property
    def preempts(self) -> bool:
        return self >= Wanted.PREEMPT

    @property
    def saves(self) -> bool:
        return self is Wanted.CHECKPOINT or self.preempts

    @property
    def reason(self) -> str:
        return {Wanted.PREEMPT: "RUN/PREEMPT", Wanted.LAUNCHER_GONE: "the launcher has ended"}.get(self, self.name)


FILES = (Wanted.PREEMPT, Wanted.STOP, Wanted.CHECKPOINT)


class Listener:
    """What this process has been told."""

    def __init__(self) -> None:
        self._signal = Wanted.NOTHING
        # Only a launcher's end is the run's: that of the shell which started it with nohup is not.
        self._launcher = os.getppid() if launched() else None

    def note(self, number: int, frame: FrameType | None) -> None:
        self._signal = max(self._signal, Wanted[signal.Signals(number).name])

    def heard(self) -> Wanted:
        # A launcher of one process does not hand SIGTERM on, and dies of it.
        if self._launcher is not None and os.getppid() != self._launcher:
            return max(self._signal, Wanted.LAUNCHER_GONE)
        return self._signal


def launched() -> bool:
    """Whether the parent process is a launcher."""
    return any(name in os.environ for name in LAUNCHED)


_listener: Listener | None = None


@contextmanager
def listen() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 do not end the process but are answered at the next boundary."""
    global _listener
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    _listener = Listener()
    before = {number: signal.signal(number, _listener.note) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)  # a pool ends its workers with SIGTERM, and waits for that
    try:
        yield
    finally:
        restore()
        _listener = None


def ask(run_dir: Path) -> Wanted:
    """What is wanted now: the same on every process, each of which must call this."""
    from alignment.distributed import processes

    wanted = _listener.heard() if _listener else Wanted.NOTHING
    if processes.is_main_process():
        there = (file for file in FILES if (run_dir / file.name).exists())
        wanted = max(wanted, next(there, Wanted.NOTHING))
    return Wanted(processes.all_reduce_max_on_host(int(wanted)))


def leave_if_preempted(run_dir: Path) -> None:
    """To be called by every process where there is nothing to save yet.

    Raises:
        Preempted: this run is to make room.
    """
    if (wanted := ask(run_dir)).preempts:
        answer(run_dir, wanted)


def answer(run_dir: Path, wanted: Wanted) -> NoReturn:
    """Leave; the next attempt is not to be told once more.

    Raises:
        Preempted: always.
    """
    from alignment.distributed import processes

    if processes.is_main_process():
        clear(run_dir, Wanted.PREEMPT)
    raise Preempted(wanted.reason)


def clear(run_dir: Path, *files: Wanted) -> None:
    """Take away the files that have been answered; all of them by default."""
    for file in files or FILES:
        (run_dir / file.name).unlink(missing_ok=True)


def forget_earlier(run_dir: Path) -> None:
    """Take away a RUN/PREEMPT from before this launch, whose run was killed before it could answer; one that came
    while this one was starting stands."""
    process = psutil.Process()
    first = (process.parent() if launched() else None) or process
    with suppress(OSError):
        if (run_dir / Wanted.PREEMPT.name).stat().st_mtime < first.create_time():
            clear(run_dir, Wanted.PREEMPT)


class Control:
    """Asks at a run's boundaries, and answers there; every process makes one."""

    def __init__(self, run_dir: Path, journal: Journal) -> None:
        self.run_dir, self._journal = run_dir, journal
        self._asked_at: float | None = None
        self._step_seconds = 0.0
        self._warned = False

    def ask(self, step: int) -> Wanted:
        """What is wanted after a step; that it is to be the last is written down."""
        now = time.monotonic()
        self._step_seconds = now - self._asked_at if self._asked_at is not None else 0.0
        self._asked_at = now
        wanted = ask(self.run_dir)
        if wanted is Wanted.STOP:
            self._journal.event("stopped", step=step)
        return wanted

    def save(self, wanted: Wanted, step: int, save: Callable[[], Any]) -> None:
        """Save a checkpoint that is due or wanted, once.

        Raises:
            Preempted: when it is saved, if that is what was wanted.
        """
        if wanted.preempts:  # before it is saved, as what comes after is cut off when the run goes on
            self._journal.event("preempted", step=step, reason=wanted.reason)
        started = time.monotonic()
        save()
        if wanted.preempts:
            answer(self.run_dir, wanted)
        self._warn_of_grace(time.monotonic() - started)
        if wanted is Wanted.CHECKPOINT:
            self._journal.event("checkpoint", step=step)
            from alignment.distributed import processes

            if processes.is_main_process():
                clear(self.run_dir, Wanted.CHECKPOINT)

    def _warn_of_grace(self, save_seconds: float) -> None:
        """Say once that a launcher would kill this run before its checkpoint is saved."""
        from alignment.distributed import processes

        needed = self._step_seconds + save_seconds
        told = any(name in os.environ for name in ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
        if self._warned or told or needed < GRACE / 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        self._warned = True
        if processes.is_main_process():
            print(
                f"warning: a step and a checkpoint took {needed:.0f} s, and the launcher kills processes {GRACE} s "
                f"after SIGTERM; set PET_SHUTDOWN_TIMEOUT={max(300, int(4 * needed))} where it is started",
                file=sys.stderr,
            )
