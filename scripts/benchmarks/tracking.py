"""Measure the cost of tracking: SFT on `sft.prepare`'s transcripts with and without an offline W&B run.

The journal has a line at each optimizer step, ten times as often as by default, and a table of samples at every tenth
step. W&B's start and end are not timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.sft import ROWS as ROWS
from benchmarks.sft import UNIT as UNIT
from benchmarks.sft import prepare as prepare

REQUIREMENTS: tuple[str, ...] = ()
OURS = "tracking_sft"
PEERS: dict[str, tuple[str, dict[str, Any]]] = {"without": ("tracking_sft", {"wandb": "disabled"})}


def more(mode: str, work: Mapping[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The report with the fractions of time spent in the journal and in W&B's thread and process."""
    if mode != "speed":
        return report
    notes = []
    shares: dict[str, list[float]] = {}
    for name, runs in report["runs"].items():
        for field in ("journal", "wandb_cpu_seconds"):
            shares[f"{name}: {field}"] = [100 * run[field] / run["seconds"] for run in runs]
    for name, values in shares.items():
        notes.append(f"{name} {min(values):.3f} to {max(values):.3f}% of the training")
    return report | {"shares": shares, "notes": notes}
