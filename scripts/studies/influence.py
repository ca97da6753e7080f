"""Whose ratings made this model so: the refitted last layer against exact retraining without each labeler.

    scripts/study.py influence               seeds 0 and 1; a killed study goes on
    scripts/study.py influence --seeds 3     with one more
    scripts/study.py influence --page        only the page, from existing rows

The world is the demo's. Eight simulated labelers rate its pairs, three each: the demo's six, one who picks at random,
and one who prefers the worse answer. The demo's reward model is trained on everybody's ratings and without each labeler
in turn, by `python -m reward`. What the retrained models say of the held-out pairs is what the refit has to foretell.
HOME is runs/influence; docs/development/studies/influence.md has the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import demo
from help_desk import rating, world
from help_desk.labelers import JUDGES, LABELERS, SimulatedLabeler

from studies.ratings_value import influence as analysis

PAGE = demo.ROOT / "docs" / "development" / "studies" / "influence.md"
ROWS, DB = Path("rows.jsonl"), Path("ratings.db")
EIGHT = (
    *LABELERS,
    *JUDGES,
    SimulatedLabeler("simulated-random", slope=0.0, lapse=1.0, tie_band=0.0),
    SimulatedLabeler("simulated-contrary", slope=-1.2, lapse=0.1, tie_band=0.3),
)
Row = dict[str, Any]


def make_world(size: demo.DemoSize) -> Row:
    """The demo's data, SFT and sampled pairs; then the ratings of `EIGHT`."""
    from alignment.ratings import RatingsStore

    if not demo.RATINGS.exists():
        world.write_data(demo.DATA, 0, size.demonstrations, size.held_out)
        sft = demo.stage("sft", 0, "tracking.wandb=disabled", recipe=size.recipe)
        demo.sample(sft["model"], 0, size)
    with RatingsStore(demo.RATINGS) as store:
        items = store.items()
    DB.unlink(missing_ok=True)
    with RatingsStore(DB, create=True, seed=0) as store, store.transaction():
        store.settings.repeat_share = 0.0
        for labeler in EIGHT:
            store.people.mark_simulated(labeler.name)
        for item in items:
            store.add_item(item.prompt, item.completions, rating.RATINGS_PER_PAIR, item.metadata)
        gold = {item.id: rating.item_gold(item) for item in store.items()}
        count = rating.take_turns(store, EIGHT, gold, random.Random(0))
    return {"items": len(items), "ratings": count}


def train(seed: int, left_out: str | None) -> Row:
    """Train the reward model without one labeler; what it says of each held-out pair (second score from first)."""
    run = f"without-{left_out}-{seed}" if left_out else f"full-{seed}"
    others = [labeler for labeler in EIGHT if labeler.name != left_out]
    own = (f"name={run}", f"registry.name={run}", f"data.train={DB}", "tracking.wandb=disabled")
    found = demo.stage("reward", seed, "model.name=help-desk-sft", *own, demo.only(others), recipe="demo", run=run)
    lines = Path("runs", run, "eval_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    scores = {
        analysis.pair_key(pair["prompt"][-1]["content"], pair["first"], pair["second"]): round(
            pair["first_score"] - pair["second_score"], 5
        )
        for pair in pairs
    }
    return {"model": found["model"], "seed": seed, "left_out": left_out, "scores": scores}


def read_rows() -> dict[str, Row]:
    """Rows by step."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row for row in rows}


def run(seeds: int) -> None:
    """Run the steps without a row, a whole seed before the next."""
    steps: list[tuple[str, Any]] = [("world", lambda: make_world(demo.SCRATCH))]
    for seed in range(seeds):
        for name in (None, *(labeler.name for labeler in EIGHT)):
            steps.append((f"{name or 'full'}-{seed}", lambda seed=seed, name=name: train(seed, name)))
    for name, work in steps:
        if name in read_rows():
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        row = work()
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": name, "seconds": round(time.monotonic() - started, 1), **row}) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="of the training; each trains nine reward models")
    parser.add_argument("--home", type=Path, default=Path("runs/influence"), help="working folder")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")
    options = parser.parse_args(argv)
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    if not options.page:
        run(options.seeds)
    found = analysis.compare(str(DB), list(read_rows().values()))
    PAGE.write_text(analysis.page(found), encoding="utf-8")
    if options.json:
        print(json.dumps(found))
    return 0
