"""Figures of the fault tests: a JSON line each in `$ALIGNMENT_RELIABILITY/KIND.jsonl`, if that names a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "ALIGNMENT_RELIABILITY"


def record(kind: str, **fields: Any) -> None:
    """Write down one thing that was tried and what came of it."""
    if folder := os.environ.get(VARIABLE):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with Path(folder, f"{kind}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
