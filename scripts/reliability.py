#!/usr/bin/env python3
"""docs/cluster/reliability.md from the figures of the fault tests.

ALIGNMENT_RELIABILITY=figures scripts/test -m slow tests/faults && scripts/reliability.py figures
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster" / "reliability.md"
HEAD = """# Reliability

```bash
ALIGNMENT_RELIABILITY=figures scripts/test -m slow tests/faults && scripts/reliability.py figures
```

Written from what the fault tests counted. Each killed run was resumed to its end and is bit for bit the run that was
left alone: published weights, the last checkpoint's optimizer, and the journal without its times.
"""


def read(folder: Path, kind: str) -> list[dict[str, object]]:
    path = folder / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(head: tuple[str, ...], counts: Counter[tuple[str, ...]]) -> str:
    rows = [head, ("---",) * len(head), *((*key, str(number)) for key, number in sorted(counts.items()))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(folder: Path) -> str:
    """The page for a folder of figures; a part without figures is left out."""
    kills: Counter[tuple[str, ...]] = Counter()
    for row in read(folder, "kills"):
        kills[str(row["stage"]), str(row["place"]), str(row["processes"])] += int(str(row.get("kills", 1)))
    signals: Counter[tuple[str, ...]] = Counter(
        (str(row["stage"]), str(row["phase"]), str(row["signal"]), str(row["code"])) for row in read(folder, "signals")
    )
    races: Counter[tuple[str, ...]] = Counter(
        (str(row["race"]), str(row["processes"])) for row in read(folder, "races")
    )
    parts = (
        ("Kills", "SIGKILL.", ("stage", "killed", "processes", "kills"), kills),
        ("Signals", "", ("stage", "phase", "signal", "exit code", "times"), signals),
        ("Races", "One process wins, the others are told by whom.", ("what they did", "processes", "races"), races),
    )
    written = [f"\n## {name}\n\n{text}\n\n{table(head, counts)}" for name, text, head, counts in parts if counts]
    return HEAD + "".join(part.replace("\n\n\n", "\n") for part in written)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="the folder that ALIGNMENT_RELIABILITY named")
    PAGE.write_text(page(parser.parse_args().figures), encoding="utf-8")
    print(PAGE)
