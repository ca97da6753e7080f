"""Where a thread stands, and the state of a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

PACKAGES = ("alignment", "sft", "reward", "ppo")


def process_state(pid: int) -> tuple[str, int]:
    """A process's state letter in /proc (X if there is no such process) and its parent's id."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return state, int(parent)


def current_position(thread: int | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and its innermost line in this suite or in a user's own file.

    The autograd engine counts as waiting: DDP's collectives run in it and leave no Python frame.
    """
    frame: FrameType | None = sys._current_frames().get(thread or 0)
    waits = frame is not None and frame.f_code.co_filename.endswith("torch/autograd/graph.py")
    where = None
    while frame is not None:
        path = frame.f_code.co_filename
        waits = waits or "/torch/distributed/" in path
        if where is None and (shown := own_path(path)):
            where = f"{shown}:{frame.f_lineno}"
        frame = frame.f_back
    return waits, where or "not in this suite"


def own_path(path: str) -> str | None:
    """The path of a file of this suite or of a user, None for one of a library."""
    root = Path(__file__).resolve().parents[2]
    if any(path.startswith(f"{root}/{name}/") for name in PACKAGES):
        return str(Path(path).relative_to(root))
    is_library = path.startswith(("<", str(Path(os.__file__).parent))) or "-packages/" in path
    return None if is_library else path
