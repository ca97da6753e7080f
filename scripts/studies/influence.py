"""Whose ratings made this model so: the refitted last layer against exact retraining without each labeler.

    scripts/study.py influence               seeds 0 and 1; a killed study goes on
    scripts/study.py influence --seeds 3     with one more
    scripts/study.py influence --page        only the page, from existing rows
    scripts/study.py influence --cast graded --only full graded-0    a part of the steps, for several processes at once

The pairs are the demo's, rated by two casts of simulated labelers. *demo*: its six, one who picks at random and one who
prefers the worse answer; three votes a pair. *graded*: six from careful to contrary, one vote a pair, so that each has
more weight. The demo's reward model is trained on everybody's ratings and without each labeler in turn, by `python -m
reward`. What the retrained models say of the held-out pairs is what the refit has to foretell. HOME is runs/influence;
docs/development/studies/influence.md has the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo
from help_desk import rating, world
from help_desk.labelers import JUDGES, LABELERS, SimulatedLabeler

from studies.ratings_value import influence as analysis

PAGE = demo.ROOT / "docs" / "development" / "studies" / "influence.md"
ROWS = Path("rows.jsonl")
Row = dict[str, Any]


@dataclass(frozen=True)
class Cast:
    """Who rates, with so many votes a pair, and the ratings file in HOME."""

    name: str
    labelers: tuple[SimulatedLabeler, ...]
    votes: int
    db: str


DEMO = Cast(
    "demo",
    (
        *LABELERS,
        *JUDGES,
        SimulatedLabeler("simulated-random", slope=0.0, lapse=1.0, tie_band=0.0),
        SimulatedLabeler("simulated-contrary", slope=-1.2, lapse=0.1, tie_band=0.3),
    ),
    rating.RATINGS_PER_PAIR,
    "ratings.db",
)
GRADED = Cast(
    "graded",
    tuple(
        SimulatedLabeler(f"graded-{place}", slope=slope, lapse=0.02, tie_band=0.2)
        for place, slope in enumerate((2.5, 1.2, 0.5, 0.0, -0.8, -2.0))
    ),
    1,
    "graded.db",
)


def make_world(cast: Cast, size: demo.DemoSize) -> Row:
    """The demo's data, SFT and sampled pairs; then the ratings of the cast."""
    from alignment.ratings import RatingsStore

    if not demo.RATINGS.exists():
        world.write_data(demo.DATA, 0, size.demonstrations, size.held_out)
        sft = demo.stage("sft", 0, "tracking.wandb=disabled", recipe=size.recipe)
        demo.sample(sft["model"], 0, size)
    with RatingsStore(demo.RATINGS) as store:
        items = store.items()
    with RatingsStore(cast.db, create=True, seed=0) as store, store.transaction():
        store.settings.repeat_share = 0.0
        for labeler in cast.labelers:
            store.people.mark_simulated(labeler.name)
        for item in items:
            store.add_item(item.prompt, item.completions, cast.votes, item.metadata)
        gold = {item.id: rating.item_gold(item) for item in store.items()}
        count = rating.take_turns(store, cast.labelers, gold, random.Random(0))
    return {"items": len(items), "ratings": count}


def train(cast: Cast, seed: int, left_out: str | None) -> Row:
    """Train the reward model without one labeler; what it says of each held-out pair (second score from first)."""
    run = f"{cast.name}-without-{left_out}-{seed}" if left_out else f"{cast.name}-full-{seed}"
    others = [labeler for labeler in cast.labelers if labeler.name != left_out]
    own = (f"name={run}", f"registry.name={run}", f"data.train={cast.db}", "tracking.wandb=disabled")
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


def read_rows(cast: Cast) -> dict[str, Row]:
    """A cast's rows by step."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row for row in rows if row["cast"] == cast.name}


def run(cast: Cast, seeds: int, only: Sequence[str]) -> None:
    """Run the steps without a row, a whole seed before the next.

    Args:
        only: names of labelers to leave out, and "full"; empty: all.
    """
    steps: list[tuple[str, Any]] = [("world", lambda: make_world(cast, demo.SCRATCH))]
    for seed in range(seeds):
        for name in (None, *(labeler.name for labeler in cast.labelers)):
            if not only or (name or "full") in only:
                steps.append((f"{name or 'full'}-{seed}", lambda seed=seed, name=name: train(cast, seed, name)))
    for name, work in steps:
        if name in read_rows(cast):
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        row = {"cast": cast.name, "step": name, **work(), "seconds": round(time.monotonic() - started, 1)}
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="of the training; each trains 9 and 7 reward models")
    parser.add_argument("--cast", choices=("demo", "graded"), help="only this one")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only without these labelers; or full")
    parser.add_argument("--home", type=Path, default=Path("runs/influence"), help="working folder")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")
    options = parser.parse_args(argv)
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    casts = [cast for cast in (DEMO, GRADED) if options.cast in (None, cast.name)]
    if not options.page:
        for cast in casts:
            run(cast, options.seeds, options.only)
    if options.only or options.cast:
        return 0
    found = {cast.name: analysis.compare(cast.db, list(read_rows(cast).values())) for cast in casts}
    PAGE.write_text(analysis.page(found), encoding="utf-8")
    if options.json:
        print(json.dumps(found))
    return 0
