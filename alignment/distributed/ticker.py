"""Progress lines for phases that print nothing themselves, so that slow work does not look like a hang."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from alignment import terminal
from alignment.distributed import heartbeat
from alignment.errors import UserError

VARIABLE = "ALIGNMENT_TICK"
"""Seconds of silence before the first line, 0 for no lines. Later lines wait a tenth of the phase's time so far."""
DEFAULT_SECONDS = 10.0


@contextmanager
def ticking(description: str, enabled: bool = True) -> Iterator[None]:
    """Print the current phase (`heartbeat.enter`) and its seconds to stderr whenever it has been silent for long.

    A thread prints, so the slow work (a download, a compiler, a large file) needs no calls of its own.

    Raises:
        UserError: the variable is not a number of seconds.
    """
    seconds = _seconds()
    if not enabled or not seconds:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_tick, args=(description, seconds, done), name="ticker", daemon=True)
    terminal.printed()
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _seconds() -> float:
    text = os.environ.get(VARIABLE, str(DEFAULT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:  # NaN fails this comparison too
        raise UserError(f"{VARIABLE}={text} is no number of seconds; set it to 10, or to 0 for no lines")
    return seconds


def _tick(description: str, seconds: float, done: threading.Event) -> None:
    phase, started = "", time.monotonic()
    while not done.wait(min(1.0, seconds / 10)):
        now, text = time.monotonic(), heartbeat.phase()
        if text.partition(",")[0] != phase:  # progress within the phase follows a comma
            phase, started = text.partition(",")[0], now
        wait = max(seconds, (now - started) / 10, terminal.pause_of_lines(now))
        if now - terminal.last_printed() >= wait:
            terminal.say(f"{description}: {text + ', ' if text else ''}{now - started:.0f} s")
