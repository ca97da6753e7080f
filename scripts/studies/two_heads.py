"""Two questions to labelers, a reward model with a head for each, and PPO that is bound on one of them.

    scripts/study.py two_heads                 the full study, about 25 minutes on one core
    scripts/study.py two_heads --quick         the first run of the first seed, as a test
    scripts/study.py two_heads --page          only the page, from existing rows

The demo's world with SIMULATED labelers, who are asked of each pair which answer has the facts right and which has the
better manners. Good manners are courtesy in few words here, so an answer with all facts cannot have the best manners.
PPO maximises the head of the facts alone, a weighted sum of both, or the facts with a bound on the mean of the manners.
All runs have one SFT model and one reward model. Rows are appended to HOME/rows.jsonl; existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.overoptimisation import append_runs, make_loop, read_rows, stage, write_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "development" / "studies" / "two-heads.md"
PICTURE = PAGE.with_name("two-heads.png")
HEADS = ("facts", "manners")
ASKED = {"facts": "Which answer has the facts right?", "manners": "Which answer has better manners, in fewer words?"}
BOUNDS = (0.6, 1.2)
"""Lowest means of the manners, in points of that head."""
WEIGHTS = (0.5, 1.0)
"""Weights of the manners in the sum; the facts have the rest."""
FREE_WORDS, PER_WORD = 8, 0.15
"""An answer of more words than these has worse manners for each word, by at most 1."""
RATED_PROMPTS, HELD_OUT = 1000, 120
STEPS = 25


@dataclass(frozen=True)
class BoundRun:
    """One PPO run.

    Args:
        weight: of the manners in the score; the facts have the rest.
        bound: the lowest mean of the manners; None: no bound.
    """

    weight: float
    bound: float | None
    seed: int

    @property
    def name(self) -> str:
        if self.bound is not None:
            return f"facts, manners >= {self.bound:g}"
        return f"weight of the manners {self.weight:g}" if self.weight else "facts alone"


def cells(seeds: Sequence[int]) -> list[BoundRun]:
    """Facts alone and under each bound, then each weight of the manners, so that an interrupted study is useful."""
    bound = [BoundRun(0.0, bound, seed) for seed in seeds for bound in (None, *BOUNDS)]
    return bound + [BoundRun(weight, None, seed) for seed in seeds for weight in WEIGHTS]


# --- the world -----------------------------------------------------------------------------------------------------


def gold(fact: str, text: str, ended: bool) -> dict[str, float]:
    """What the simulated people judge by. Facts are from -1 to 2: the rules `right` and `honest` of the demo. Manners
    are from -2 to 1: its rule `polite`, less for each word beyond the free ones."""
    from help_desk.gold import gold_score

    rules = gold_score(fact, text, ended)
    words = len(re.findall(r"[a-z0-9']+", text.lower()))
    return {
        "facts": rules.right + rules.honest,
        "manners": rules.polite - min(1.0, PER_WORD * max(0, words - FREE_WORDS)),
    }


def prepare(seed: int) -> None:
    """Make the demo's data, the SFT model, ratings of both questions, and the reward model of two heads."""
    import demo
    from help_desk import world
    from help_desk.labelers import LABELERS
    from help_desk.rating import take_turns

    from alignment.ratings import RatingsStore
    from alignment.ratings.questionnaire import Attribute, Questionnaire
    from alignment.registry import Registry

    if "two-heads-reward" in Registry().names():
        return
    world.write_data(demo.DATA, seed)
    stage("sft", "demo.yaml", f"training.seed={seed}")
    demo.sample("help-desk-sft", seed, demo.DemoSize("demo", "help-desk", 1500, rated_prompts=RATED_PROMPTS))
    with RatingsStore(demo.RATINGS) as store, store.transaction():
        store.settings.repeat_share = 0.0
        store.settings.ask(
            Questionnaire(attributes=tuple(Attribute(name=name, ask=ASKED[name], scale="pair") for name in HEADS))
        )
        for labeler in LABELERS:
            store.people.mark_simulated(labeler.name)
        scores: dict[str, dict[int, tuple[float, ...]]] = {name: {} for name in HEADS}
        for item in store.items():
            judged = [gold(item.metadata["fact"], each.text, each.ended) for each in item.completions]
            for name in HEADS:
                scores[name][item.id] = tuple(each[name] for each in judged)
        whole = {item: tuple(map(sum, zip(*(scores[name][item] for name in HEADS), strict=True))) for item in
                 scores["facts"]}  # fmt: skip
        take_turns(store, LABELERS, whole, random.Random(seed), asked=scores)
    stage(
        "reward", "demo.yaml", "name=two-heads-reward", "registry.name=two-heads-reward", f"training.seed={seed}",
        f"reward.attributes=[{','.join(HEADS)}]", f"reward.demonstrations={demo.DATA}/demonstrations.jsonl",
    )  # fmt: skip


# --- one run -------------------------------------------------------------------------------------------------------


def ppo_config(cell: BoundRun) -> Any:
    from alignment.config.loading import load_config
    from ppo.config import PPOStageConfig

    bound = () if cell.bound is None else (f"rewards.constraints={{manners: '>= {cell.bound}'}}",)
    return load_config(
        PPOStageConfig,
        ROOT / "configs" / "ppo" / "demo.yaml",
        [
            "model.reward=two-heads-reward", "model.held_out_reward=null",
            f"model.reward_weights={{facts: {1 - cell.weight}, manners: {cell.weight}}}", *bound,
            f"training.max_steps={STEPS}", f"training.seed={cell.seed}", "training.lr_scheduler_type=constant",
            "training.load_best_model_at_end=false", "tracking.wandb=disabled",
        ],
    )  # fmt: skip


def run(cell: BoundRun) -> Iterator[dict[str, Any]]:
    """Yield a row for the policy after one PPO run, and before the run that is a seed's first: means over held-out
    answers, by the heads and by gold."""
    from ppo.prompts import prompt_batches

    loop = make_loop(ppo_config(cell), HELD_OUT)
    batches = prompt_batches(len(loop.prompts), loop.config.rollout.batch_size, cell.seed)
    for step in range(STEPS + 1):
        if step == STEPS or (step == 0 and cell.weight == 0 and cell.bound is None):
            judged = loop.evaluation.answer(step)
            rules = [
                gold(prompt.columns["fact"], text.strip(), ended)
                for (prompt, _), text, ended in zip(loop.evaluation.prompts, judged.texts, judged.ended, strict=True)
            ]
            row = {**asdict(cell), "step": step, "kl": statistics.fmean(judged.kl)}
            for name in HEADS:
                head = judged.parts[name]
                row |= {
                    f"head_{name}": statistics.fmean(head),
                    f"gold_{name}": statistics.fmean(r[name] for r in rules),
                }
                row[f"head_{name}_se"] = statistics.stdev(head) / len(head) ** 0.5
            multiplier = loop.lagrangian.multiplier("manners") if loop.lagrangian and step else None
            yield row | {
                "multiplier": multiplier, "length": statistics.fmean(judged.lengths), "answer": judged.texts[0].strip(),
            }  # fmt: skip
        if step < STEPS:
            loop.iterate(next(batches))


# --- the page ------------------------------------------------------------------------------------------------------


def last_rows(rows: Iterable[Mapping[str, Any]]) -> dict[BoundRun, Mapping[str, Any]]:
    """The last row of each run that is complete."""
    return {BoundRun(row["weight"], row["bound"], row["seed"]): row for row in rows if row["step"] == STEPS}


FIGURES = ("head_facts", "gold_manners", "gold_facts", "kl", "length")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line for each setting: the manners of each seed, and means over seeds."""
    settings: dict[str, list[Mapping[str, Any]]] = {}
    if start := [row for row in rows if row["step"] == 0]:
        settings["before PPO"] = start[:1]
    for cell, row in last_rows(rows).items():
        settings.setdefault(cell.name, []).append(row)
    lines = [
        "| setting | manners' head, by seed | multiplier | facts' head | gold manners | gold facts | KL | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, same in settings.items():
        same.sort(key=lambda row: row["seed"])
        manners = ", ".join(f"{row['head_manners']:.2f}" for row in same)
        multipliers = ", ".join(f"{row['multiplier']:.2f}" for row in same if row["multiplier"] is not None)
        means = "".join(f" {statistics.fmean(row[figure] for row in same):.2f} |" for figure in FIGURES)
        lines.append(f"| {name} | {manners} | {multipliers} |{means}")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Plot where runs end, facts over manners, by the heads and by gold: the weights of a seed joined by a line."""
    from matplotlib.figure import Figure  # slow to import

    last = last_rows(rows)
    seeds = sorted({cell.seed for cell in last})
    colours = dict(zip((None, *BOUNDS), ("#1b6ca8", "#b3541e", "#3f7d3f"), strict=True))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, source, by in zip(panels, ("head", "gold"), ("their head", "the rules (gold)"), strict=True):

        def place(cell: BoundRun, source: str = source) -> tuple[float, float]:
            return last[cell][f"{source}_manners"], last[cell][f"{source}_facts"]

        for seed in seeds:
            front = sorted((c for c in last if c.seed == seed and c.bound is None), key=lambda cell: cell.weight)
            marker = "osD^v"[seed % 5]
            label = "weights of the manners from 0 to 1" if seed == seeds[0] else None
            line = zip(*map(place, front), strict=True)
            panel.plot(*line, color="#7a7a7a", marker=marker, markersize=4, linewidth=0.8, label=label)
            for cell in last:
                if cell.seed == seed and cell.weight == 0:
                    label = cell.name if seed == seeds[0] else None
                    panel.plot(*place(cell), marker=marker, linestyle="", color=colours[cell.bound], label=label)
        panel.set_xlabel(f"manners, by {by}")
        panel.set_ylabel(f"facts, by {by}")
    for bound in BOUNDS:
        panels[0].axvline(bound, color=colours[bound], linestyle=":", linewidth=1)
    panels[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def write_page(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture and the table between the page's markers; the rest of the page is kept."""
    draw(rows)
    write_table(PAGE, "Two heads", table(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog="example: scripts/study.py two_heads --seeds 0 1 2"
    )
    parser.add_argument("--home", type=Path, default=Path("runs/two-heads"), help="working folder")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of PPO; data and models use the first one"
    )
    parser.add_argument("--quick", action="store_true", help="one run only")
    parser.add_argument("--page", action="store_true", help="only write the page from existing rows")
    options = parser.parse_args(argv)
    from alignment.errors import UserError
    from alignment.training.stage import quiet_libraries

    quiet_libraries()
    options.home.mkdir(parents=True, exist_ok=True)
    os.chdir(options.home)
    path = Path("rows.jsonl")
    try:
        if not options.page:
            prepare(options.seeds[0])
            done = last_rows(read_rows(path))
            wanted = [cell for cell in cells(options.seeds) if cell not in done][: 1 if options.quick else None]
            append_runs(path, wanted, run, "head_facts", "head_manners")
        if not options.quick:
            write_page(read_rows(path))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
