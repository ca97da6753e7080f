"""A thread that ends a process which does not come to its next step boundary after a signal.

A signal's Python handler runs in the main thread alone, which may hang in a user's reward function or in C. Python's
wake-up pipe tells this thread of each signal whatever the main thread does. It ends the process

- a few seconds after a signal that finds nothing new to save: before the attempt's first step, or while the report is
  written;
- after a signal, once the main thread has been in one phase for longer than `ALIGNMENT_TIMEOUT`;
- at a second signal.

The exit code is 75 and RUN/exit.json says so; the last checkpoint is what a kill would leave.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from alignment.distributed import heartbeat
from alignment.runs.signals import PREEMPTED_CODE, Listener, Wanted, launched
from alignment.runs.starting import HELD
from alignment.terminal import one_line, say

UNSAVED_SECONDS = 5.0
"""How long a signal waits for the main thread to leave in order, where there is nothing new to save."""
OTHERS_SECONDS = 3.0
"""How much longer on other ranks: the main process tells why, before a launcher sees a process leave."""
SAME_SECONDS, SAME_LAUNCHED_SECONDS = 1.0, 10.0
"""Signals this close together are one request: a launcher, a scheduler and a terminal may each send it."""
END_SECONDS = 10.0
"""How long writing exit.json may take on a disk that hangs."""


@contextmanager
def watching(listener: Listener | None, on_end: Callable[[str], int], is_main: bool = True) -> Iterator[None]:
    """Watch the main thread while the block runs.

    Args:
        listener: of `signals.listen`; None where this is not the main thread, and nothing is watched.
        on_end: writes down the reason and returns the exit code; called by the thread just before it ends the process.
    """
    if listener is None:
        yield
        return
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = Watcher(listener, read, on_end, is_main)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        watcher.done = True
        os.close(write)  # wakes the thread
        watcher.join()
        os.close(read)


class Watcher(threading.Thread):
    """The thread; `check` is one round of it.

    Args:
        pipe: the end that is read of the pipe into which Python writes the number of each signal.
    """

    def __init__(self, listener: Listener, pipe: int, on_end: Callable[[str], int], is_main: bool) -> None:
        super().__init__(name="watcher", daemon=True)
        self.done = False
        self._listener, self._pipe, self._on_end, self._is_main = listener, pipe, on_end, is_main
        self._limit = heartbeat.timeout()
        self._is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self._asked_at: float | None = None
        self._named: heartbeat.Place | None = None
        """The phase that was already said to take long."""

    def run(self) -> None:
        while not self.done:
            select.select([self._pipe], [], [], min(0.5, self._limit / 10))
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._pipe, 64):
                    if number in HELD and not self.done:
                        self.hear(number)
            if not self.done:
                self.check()

    def hear(self, number: int) -> None:
        """A signal has come; the second one ends the process."""
        now, name = time.monotonic(), signal.Signals(number).name
        self._listener.note(number)
        if self._asked_at is None:
            self._asked_at = now
            if self._is_main and self._listener.has_stepped and not self._listener.ending:
                say(
                    f"{name} in {heartbeat.phase()}: the run ends at its next checkpoint, or where it is done; the "
                    "same signal again ends it at once"
                )
        elif now - self._asked_at > (SAME_LAUNCHED_SECONDS if launched() else SAME_SECONDS):
            self._end(f"{name} for the second time")

    def check(self) -> None:
        """Name a main thread that hangs, and end the process if a signal waits in vain."""
        wanted, now = self._listener.pending(), time.monotonic()
        stuck = heartbeat.stuck(self._limit)
        if stuck is not None and self._is_alone and self._named is not stuck.place:
            self._named = stuck.place
            say(one_line(f"warning: {stuck}; SIGTERM ends the run, which keeps its last checkpoint"))
        if not wanted.preempts:
            return
        if self._asked_at is None:  # the launcher has gone, or the signal came before this thread
            self._asked_at = now
        waited = now - self._asked_at
        if stuck is not None:
            self._end(f"{wanted.reason} while {stuck}")
        elif self._listener.ending:
            if waited > UNSAVED_SECONDS:
                self._end(wanted.reason)
        elif not self._listener.has_stepped and waited > self._unsaved_seconds(wanted):
            self._end(f"{wanted.reason} in {heartbeat.phase() or 'start-up'}, with nothing new to save")

    def _unsaved_seconds(self, wanted: Wanted) -> float:
        if self._is_main:
            return UNSAVED_SECONDS
        # Without a launcher nobody tells the others, which would call this process lost.
        return UNSAVED_SECONDS + OTHERS_SECONDS if launched() else float("inf")

    def _end(self, reason: str) -> None:
        timer = threading.Timer(END_SECONDS, os._exit, [PREEMPTED_CODE])
        timer.daemon = True
        timer.start()
        code = PREEMPTED_CODE
        try:
            code = self._on_end(reason)
        finally:
            os._exit(code)
