"""Which items to rate next: at random, by doubt or by expected gain, in the demo's world at equal numbers of ratings.

    scripts/study.py selection --demo runs/influence      ten seeds, seconds of work
    scripts/study.py selection --page --demo runs/influence

The pairs and the SFT model are those that scripts/study.py influence left; docs/development/studies/selection.md has
the results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import demo

from studies.ratings_value import selections

PAGE = demo.ROOT / "docs" / "development" / "studies" / "selection.md"


def main(argv: Sequence[str] | None = None) -> int:
    from help_desk.rating import item_gold

    from alignment.labeling.refit.table import load_refit
    from alignment.ratings import RatingsStore

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--demo", type=Path, required=True, help="working folder of the study influence")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    options = parser.parse_args(argv)
    path = options.demo / "selection.json"
    if not options.page:
        db = str(options.demo / "ratings.db")
        with RatingsStore(db) as store:
            gold = {item.id: item_gold(item) for item in store.items()}
        table = load_refit(db, "help-desk-sft", str(options.demo / "registry"), trained=False).table
        path.write_text(json.dumps(selections.measure(table, gold, options.seeds)), encoding="utf-8")
    PAGE.write_text(selections.page(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0
