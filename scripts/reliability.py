#!/usr/bin/env python3
"""docs/cluster/reliability.md from the figures of the fault tests.

ALIGNMENT_RELIABILITY=figures scripts/test -m slow tests/faults && scripts/reliability.py figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cluster" / "reliability.md"
HEAD = """# Reliability

```bash
ALIGNMENT_RELIABILITY=figures scripts/test tests/faults
ALIGNMENT_RELIABILITY=figures scripts/test -m slow tests/faults
scripts/reliability.py figures
```

Written from what the fault tests counted, the failed ones too: what was tried in them counts as not held. *Bit for bit*
is equal to the run that was left alone: published weights, the last checkpoint's optimizer, and the journal without its
times.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The page: a table of each title, with equal faults counted together."""
    tables: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(dict)
    for row in rows:
        counts = tables[row["title"]].setdefault((row["fault"], row["answer"]), [0, 0])
        counts[0] += row["tried"]
        counts[1] += row["held"]
    text = HEAD
    for title, counted in sorted(tables.items()):
        text += f"\n## {title}\n\n| what was tried | times | held | what is right |\n| --- | ---: | ---: | --- |\n"
        for (fault, answer), (times, held) in sorted(counted.items()):
            text += f"| {fault} | {times} | {held if held == times else f'**{held}**'} | {answer} |\n"
        times, held = (sum(counts[place] for counts in counted.values()) for place in (0, 1))
        text += f"| all | {times} | {held if held == times else f'**{held}**'} | |\n"
    return text


def read(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path, help="the folder that ALIGNMENT_RELIABILITY named")
    folder = parser.parse_args(argv).figures
    if not (rows := read(folder)):
        parser.error(f"{folder} has no figures; run the fault tests with ALIGNMENT_RELIABILITY={folder}")
    PAGE.write_text(page(rows), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
