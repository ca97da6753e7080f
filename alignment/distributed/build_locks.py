"""Locks that killed builds have left: every later launch under DeepSpeed would wait for them without a word.

torch compiles DeepSpeed's extensions at their first use, under a lock that is a file and nothing else.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from alignment.terminal import one_line, say

STALE_SECONDS = 300.0
COMPILERS = {"ninja", "nvcc", "cicc", "ptxas", "hipcc", "cc1plus", "c++", "g++", "gcc", "clang", "clang++"}


def warn_about_stale_locks() -> None:
    """Say in one line which old lock this launch may wait for, once on each host."""
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1", "yes")
    if not is_deepspeed or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    for path, age in stale_locks():
        say(
            one_line(
                f"warning: {path} is {age / 60:.0f} minutes old and no compiler runs on this host: a killed build has "
                f"left it, and a launch that needs this extension waits for it without end; remove it: rm {path}"
            )
        )


def stale_locks() -> list[tuple[Path, float]]:
    """Lock files of builds that are older than any build takes, with their age in seconds; none while one runs."""
    locks = []
    for path in sorted(_lock_files()):
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        if age > STALE_SECONDS:
            locks.append((path, age))
    return [] if not locks or _is_compiling() else locks


def _lock_files() -> list[Path]:
    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return list(Path(root).glob("*/lock"))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return list(Path(cache, "torch_extensions").glob("*/*/lock"))


def _is_compiling() -> bool:
    return any(process.info["name"] in COMPILERS for process in psutil.process_iter(["name"]))
