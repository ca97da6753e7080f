"""Figures of the fault tests: a JSON line for each thing that was tried, if `ALIGNMENT_RELIABILITY` names a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "ALIGNMENT_RELIABILITY"
FILE = "figures.jsonl"


class Trials:
    """What a test tries. Whatever it has called so when it fails is in the figures, as tried and not held.

    Args:
        title: the table that it belongs to.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[dict[str, str | int]] = []

    def __call__(self, fault: str, answer: str = "", times: int = 1) -> None:
        """A fault that is tried from here on, and what is right then, in words."""
        self.rows.append({"title": self.title, "fault": fault, "answer": answer, "tried": times})

    def end(self, held: bool) -> None:
        """Write down what was tried since the last call, all of which held or counts as not held."""
        if (folder := os.environ.get(VARIABLE)) and self.rows:
            Path(folder).mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row | {"held": int(row["tried"]) if held else 0}) + "\n" for row in self.rows]
            with Path(folder, FILE).open("a", encoding="utf-8") as file:  # of all test processes
                file.write("".join(lines))
        self.rows.clear()
