"""A line for whoever waits: long work that prints nothing looks like work that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from alignment import heartbeat, terminal

SECONDS = 10.0
"""So long nothing was printed before the first line; later ones wait a tenth of the time that the phase has taken."""


@contextmanager
def ticking(description: str, enabled: bool = True) -> Iterator[None]:
    """Inside, stderr gets a line with the phase (`heartbeat.enter`) and its seconds whenever it was silent for long.

    A thread writes it, so that nothing has to be done by what takes long: a download, a compiler, a large file.
    """
    if not enabled:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_tick, args=(description, done), name="ticker", daemon=True)
    terminal.printed()
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _tick(description: str, done: threading.Event) -> None:
    phase, began = "", time.monotonic()
    while not done.wait(min(1.0, SECONDS / 10)):
        now, text = time.monotonic(), heartbeat.phase()
        if text.partition(",")[0] != phase:  # what follows a comma is how far it has come
            phase, began = text.partition(",")[0], now
        wait = max(SECONDS, (now - began) / 10, terminal.pause_of_lines(now))
        if now - terminal.last_printed() >= wait:
            terminal.say(f"{description}: {text + ', ' if text else ''}{now - began:.0f} s")
