"""A run that a reviewer tags `cancel` on the W&B page stops, as `touch RUN/STOP` stops it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TAG = "cancel"
STOP = "STOP"
EVERY = 60.0
"""Seconds between two questions."""
TIMEOUT = 20
"""Seconds for an answer; nobody waits for it."""


class CancelTag:
    """Asks for a run's tags in a thread of its own, and makes RUN/STOP when TAG is among them.

    Args:
        tags: the run's tags as they are now; may take long, and may fail: it is asked again.
    """

    def __init__(self, run_dir: Path, tags: Callable[[], Iterable[str]], every: float = EVERY) -> None:
        self._file, self._tags, self._every = run_dir / STOP, tags, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="wandb-cancel", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ask no more; does not wait for an answer that is on its way."""
        self._over.set()

    def _ask(self) -> None:
        warned = False
        while not self._over.wait(self._every):
            try:
                if TAG in self._tags() and not self._over.is_set():
                    self._file.touch()
                    print(f"the W&B run is tagged {TAG!r}: the training stops at the next boundary", file=sys.stderr)
                    return
            except Exception as error:  # noqa: BLE001 - a server that cannot be asked is no reason to stop or to fail
                if not warned:
                    print(f"warning: W&B cannot be asked for a {TAG!r} tag ({type(error).__name__})", file=sys.stderr)
                warned = True


def tags_of(path: str) -> Callable[[], list[str]]:
    """Asks the server for the tags of `entity/project/id`, each time anew."""
    runs: list[Any] = []

    def ask() -> list[str]:
        import wandb

        if runs:
            runs[0].load(force=True)
        else:
            runs.append(wandb.Api(timeout=TIMEOUT).run(path))
        return list(runs[0].tags)

    return ask
