"""Progress lines for phases that print nothing themselves: silent work looks like work that hangs."""

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

VARIABLE, DEFAULT = "ALIGNMENT_TICK", 10.0
"""Seconds that nothing was printed before the first line, 0 for no lines; later ones wait a tenth of the time that the
phase has taken."""


@contextmanager
def ticking(description: str, enabled: bool = True) -> Iterator[None]:
    """Inside, stderr gets a line with the phase (`heartbeat.enter`) and its seconds whenever it was silent for long.

    A thread writes it, so that nothing has to be done by what takes long: a download, a compiler, a large file.

    Raises:
        UserError: the variable is no number of seconds.
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
    text = os.environ.get(VARIABLE, str(DEFAULT))
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:  # so that NaN fails too
        raise UserError(f"{VARIABLE}={text} is no number of seconds; set it to 10, or to 0 for no lines")
    return found


def _tick(description: str, seconds: float, done: threading.Event) -> None:
    phase, began = "", time.monotonic()
    while not done.wait(min(1.0, seconds / 10)):
        now, text = time.monotonic(), heartbeat.phase()
        if text.partition(",")[0] != phase:  # what follows a comma is how far it has come
            phase, began = text.partition(",")[0], now
        wait = max(seconds, (now - began) / 10, terminal.pause_of_lines(now))
        if now - terminal.last_printed() >= wait:
            terminal.say(f"{description}: {text + ', ' if text else ''}{now - began:.0f} s")
