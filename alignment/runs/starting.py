"""The first and the last thing that a stage's command does with signals; it imports nothing slow.

Until a run can answer a signal it is held back, and once the run has ended none may change the exit code.
"""

from __future__ import annotations

import atexit
import os
import signal
from types import FrameType

HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a run to end."""


def hold_signals() -> None:
    """Hold signals back until `alignment.runs.signals.listen` or `release_signals`; call it before slow imports."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    atexit.register(_ignore)  # the first that is registered runs last: Python's end puts the default actions back


def release_signals() -> None:
    """Let signals end this process as they end any other, those held back too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def leave_with(code: int) -> None:
    """From here on a signal ends this process at once, with this code: threads of others may keep it waiting."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(code)

    for number in HELD:
        signal.signal(number, leave)
    release_signals()


def _ignore() -> None:
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
