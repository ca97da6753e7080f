#!/usr/bin/env python3
"""Compare what `alignment plan` says of a run's memory with what the run takes, on this machine's CPU.

    scripts/memory_table.py
    scripts/memory_table.py --case "sft lora" --json
    scripts/memory_table.py --zero3 2 --zero3 4      PPO of 419M parameters on so many processes, 13 GB in all

Each case of `benchmarks/memory.py` is a whole run in a process of its own, from reading data to publishing; its peak is
that of the process, less what it held after its imports. `--zero3` runs `benchmarks/memory_sharded.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def compare(cases: Sequence[str], threads: int, seed: int = 0) -> dict[str, Any]:
    """Planned and measured bytes of each case, and the ratio of the first to the second."""
    from bench import Process, machine
    from benchmarks import memory

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # some libraries greet; --json is alone on stdout
            parameters = memory.prepare(Path(folder), seed)
        for case in cases:
            settings = {"case": case}
            with Process(sys.executable, memory.OURS, Path(folder), settings, threads, **memory.GIVES_BACK) as process:
                found = process.ask("run")
            found["measured"] = found.pop("bytes")
            found["ratio"] = round(found["planned"] / found["measured"], 3)
            rows[case] = found
            print(f"{case}: {found}", file=sys.stderr)
    return {"parameters": parameters, "cases": rows, "machine": machine(threads)}


def table(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    lines = ["| run | planned, MB | measured, MB | planned / measured | fullest at |", "|---|---|---|---|---|"]
    for case, found in report["cases"].items():
        planned, measured = found["planned"] / 1e6, found["measured"] / 1e6
        lines.append(f"| {case} | {planned:,.0f} | {measured:,.0f} | {found['ratio']:.2f} | {found['moment']} |")
    return lines


def compare_sharded(counts: Sequence[int], size: str = "large") -> dict[str, Any]:
    """Planned and measured bytes of PPO under ZeRO-3 by number of processes and phase; the fullest rank counts."""
    from bench import machine
    from benchmarks import memory_sharded

    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), memory_sharded.SIZES[size]
        with contextlib.redirect_stdout(sys.stderr):
            whole = memory_sharded.prepare(folder, shape)
        for count in counts:
            ranks = memory_sharded.measure(folder, folder / str(count), shape, count, timeout=3600)
            phases = runs[str(count)] = {}
            for phase, planned in ranks[0]["planned"].items():
                measured = max(rank[phase] for rank in ranks)
                phases[phase] = {"planned": planned, "measured": measured, "ratio": round(planned / measured, 3)}
            phases["largest_tensor"] = max(rank["largest_tensor"] for rank in ranks)
            print(f"{count} processes: {phases}", file=sys.stderr)
    return {"parameters": whole // 4, "processes": runs, "machine": machine(1)}


def sharded_table(report: dict[str, Any]) -> list[str]:
    """The report of `compare_sharded` as Markdown."""
    lines = ["| processes | phase | planned, MB | measured, MB | planned / measured |", "|---|---|---|---|---|"]
    for count, phases in report["processes"].items():
        for phase, row in phases.items():
            if phase != "largest_tensor":
                sizes = f"{row['planned'] / 1e6:,.0f} | {row['measured'] / 1e6:,.0f}"
                lines.append(f"| {count} | {phase} | {sizes} | {row['ratio']:.2f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    from benchmarks.memory import CASES

    parser = argparse.ArgumentParser(
        description="Compare planned memory with measured peaks, on this machine.",
        epilog='example: scripts/memory_table.py --case "ppo shared"',
    )
    parser.add_argument("--case", choices=CASES, action="append", help="one case (may be repeated); default: all")
    parser.add_argument(
        "--zero3", type=int, action="append", metavar="N", help="PPO under ZeRO-3 on N processes (may be repeated)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    if options.zero3 and options.case:
        parser.error("--case and --zero3 are two measurements; ask for one")
    if min(options.zero3 or [2]) < 2:
        parser.error("--zero3: at least 2 processes")
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    try:
        if options.zero3:
            report = compare_sharded(options.zero3)
        else:
            report = compare(options.case or list(CASES), options.threads, options.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = sharded_table if options.zero3 else table
    print(json.dumps(report, indent=2) if options.json else "\n".join(lines(report)))
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
