"""Stop a run that a reviewer tags `cancel` on its W&B page, like `touch RUN/STOP`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TAG = "cancel"
STOP = "STOP"
EVERY = 60.0
"""Seconds between two polls."""
TIMEOUT = 20
"""Timeout of a poll in seconds; training does not wait for it."""


class CancelTag:
    """Polls a run's tags in a separate thread, and creates RUN/STOP if TAG is among them.

    Args:
        tags: returns the current tags; it may be slow or fail, and is called again.
    """

    def __init__(self, run_dir: Path, tags: Callable[[], Iterable[str]], every: float = EVERY) -> None:
        self._file, self._tags, self._every = run_dir / STOP, tags, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="wandb-cancel", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop polling without waiting for a poll in progress."""
        self._over.set()

    def _ask(self) -> None:
        warned = False
        while not self._over.wait(self._every):
            try:
                if TAG in self._tags() and not self._over.is_set():
                    self._file.touch()
                    print(f"the W&B run is tagged {TAG!r}: the training stops at the next boundary", file=sys.stderr)
                    return
            except Exception as error:  # noqa: BLE001 - an unreachable server must not stop the run
                if not warned:
                    print(f"warning: W&B cannot be polled for a {TAG!r} tag ({type(error).__name__})", file=sys.stderr)
                warned = True


def tags_of(path: str) -> Callable[[], list[str]]:
    """A function that fetches the current tags of `entity/project/id`."""
    runs: list[Any] = []

    def ask() -> list[str]:
        import wandb

        if runs:
            runs[0].load(force=True)
        else:
            runs.append(wandb.Api(timeout=TIMEOUT).run(path))
        return list(runs[0].tags)

    return ask
