"""What tracking costs: the SFT stage's trainer on `sft.prepare`'s transcripts with an offline W&B run, and without one.

A line of the journal at each optimizer step, ten times as often as by default, and a table of samples and a histogram
at each tenth. W&B's start and end, which a run has once, are not timed.
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


def more(mode: str, work: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What the run waited for its journal, and W&B's processor time on its thread and in its process, as shares."""
    if mode != "speed":
        return found
    notes = []
    shares: dict[str, list[float]] = {}
    for name, runs in found["runs"].items():
        for what in ("journal", "wandb_cpu_seconds"):
            shares[f"{name}: {what}"] = [100 * run[what] / run["seconds"] for run in runs]
    for name, values in shares.items():
        notes.append(f"{name} {min(values):.3f} to {max(values):.3f}% of the training")
    return found | {"shares": shares, "notes": notes}
