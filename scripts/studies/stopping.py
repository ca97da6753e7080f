"""When to stop: the forecast of `alignment rate report --model` against what more ratings brought, on 100 splits a set.

    scripts/study.py stopping --hh pairs.jsonl.gz --pandalm testset-v1.json --demo runs/influence
    scripts/study.py stopping --unseen runs/influence --hh-longer pairs.jsonl.gz     sets that nothing was tuned on
    scripts/study.py stopping --page         only the page, from existing rows

HH and PandaLM are human votes, whose hidden states are SmolLM2-135M-Instruct's; the demo's ratings and its SFT model
are those that scripts/study.py influence left. HOME is runs/stopping; docs/development/studies/stopping.md has the
results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import demo

from studies.ratings_value import forecasts

PAGE = demo.ROOT / "docs" / "development" / "studies" / "stopping.md"
ROWS = Path("rows.jsonl")
KNOWN = (0.5, 0.75)
"""Shares of the ratings that are known."""
MOST_TOKENS = 96
"""Most tokens of a prompt with an answer, so that one core computes the hidden states in minutes."""
LONGER_TOKENS = 128


def published(name: str, file: Path, most: int, above: int = 0, up_to: int = MOST_TOKENS) -> tuple[Path, str]:
    """A ratings file of the short pairs of a published set, of more than `above` tokens and not more than `up_to`, and
    the model that reads them."""
    from help_desk import real_model

    from alignment.labeling.import_export import import_into
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.ratings import RatingsStore
    from alignment.registry import Registry

    model = real_model.fetch(Path())
    whole, short = Path(f"{name}-all.db"), Path(f"{name}.db")
    import_into(whole, "auto", file)
    with RatingsStore(short, create=True) as store:
        made = bool(store.items())  # all of them are made in one transaction
    if not made:
        tokenizer = load_tokenizer(find_model(model, Registry(), role="policy"))
        forecasts.shortened(whole, short, tokenizer, up_to, most, above)
    return short, model


def unseen(world: Path, seed: int = 1) -> Path:
    """Ratings of the demo's world with another seed: other prompts, answers of the SFT model that `world` has, and
    other draws of its labelers."""
    import random

    from help_desk import rating
    from help_desk.world import write_data

    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_prompts
    from alignment.data.reading import read_records
    from alignment.labeling.sampling import sample_into
    from alignment.ratings import RatingsStore
    from studies.influence import DEMO

    db, folder, size = Path(f"demo-seed-{seed}.db"), Path(f"data-{seed}"), demo.SCRATCH
    if not db.exists():
        write_data(folder, seed, size.demonstrations, size.held_out)
        path = str(folder / "prompts.jsonl")
        prompts = read_records(path, to_prompts, DataConfig(train=path)).items
        sample_into(
            db, ["help-desk-sft"], prompts, registry_path=str(world / "registry"), k=demo.COMPLETIONS_PER_PROMPT,
            need=DEMO.votes, max_new_tokens=size.max_new_tokens, temperature=demo.TEMPERATURE,
            batch_size=size.batch_size, seed=seed,
        )  # fmt: skip
    with RatingsStore(db, seed=seed) as store, store.transaction():
        store.settings.repeat_share = 0.0
        for labeler in DEMO.labelers:
            store.people.mark_simulated(labeler.name)
        gold = {item.id: rating.item_gold(item) for item in store.items()}
        rating.take_turns(store, DEMO.labelers, gold, random.Random(seed))
    return db


def run(sets: dict[str, tuple[Path, str, str | None]], splits: int) -> None:
    """All splits of each set; each row is written as soon as it is known."""
    from alignment.labeling.refit.table import load_refit

    done = {(row["set"], row["known"]) for row in read_rows()}
    for name, (db, model, registry) in sets.items():
        if all((name, known) in done for known in KNOWN):
            continue
        table = load_refit(str(db), model, registry, trained=False).table
        for known in KNOWN:
            if (name, known) in done:
                continue
            print(f"{time.strftime('%H:%M:%S')} {name}, {known} known", file=sys.stderr, flush=True)
            tried = [forecasts.split(table, seed, known) for seed in range(splits)]
            found = forecasts.summary([each for each in tried if each])
            with ROWS.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"set": name, "known": known, "pairs": len(table.x), **found}) + "\n")


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hh", type=Path, help="pairs as whole transcripts")
    parser.add_argument("--hh-longer", type=Path, help="the same file, of which the longer pairs are taken")
    parser.add_argument("--pandalm", type=Path, help="pairs with three votes each")
    parser.add_argument("--demo", type=Path, help="working folder of the study influence")
    parser.add_argument("--unseen", type=Path, help="the same folder, whose SFT model answers prompts of another seed")
    parser.add_argument("--pairs", type=int, default=500, help="most pairs of HH and of PandaLM, the shortest")
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--home", type=Path, default=Path("runs/stopping"), help="working folder")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    options = parser.parse_args(argv)
    files = {"HH": options.hh, "PandaLM": options.pandalm}
    paths = {name: file.resolve() for name, file in files.items() if file}
    given = (options.demo, options.unseen, options.hh_longer)
    world, other, longer = (path.resolve() if path else None for path in given)
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    if not options.page:
        sets: dict[str, tuple[Path, str, str | None]] = {}
        if world:
            sets["demo"] = (world / "ratings.db", "help-desk-sft", str(world / "registry"))
        if other:
            sets[forecasts.UNSEEN[0]] = (unseen(other), "help-desk-sft", str(other / "registry"))
        if longer:
            limits = (MOST_TOKENS, LONGER_TOKENS)
            sets[forecasts.UNSEEN[1]] = (*published("HH-longer", longer, options.pairs, *limits), None)
        for name, file in paths.items():
            sets[name] = (*published(name, file, options.pairs), None)
        run(sets, options.splits)
    PAGE.write_text(forecasts.page(read_rows()), encoding="utf-8")
    return 0
