#!/usr/bin/env python3
"""Compare what `alignment plan` says of a run's memory with what the run takes, on this machine's CPU.

    scripts/memory_table.py
    scripts/memory_table.py --case "sft lora" --json

Each case of `benchmarks/memory.py` is a whole run in a process of its own, from reading data to publishing; its peak is
that of the process, less what it held after its imports.
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


def main(argv: Sequence[str] | None = None) -> int:
    from benchmarks.memory import CASES

    parser = argparse.ArgumentParser(
        description="Compare planned memory with measured peaks, on this machine.",
        epilog='example: scripts/memory_table.py --case "ppo shared"',
    )
    parser.add_argument("--case", choices=CASES, action="append", help="one case (may be repeated); default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    try:
        report = compare(options.case or list(CASES), options.threads, options.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if options.json else "\n".join(table(report)))
    return 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
