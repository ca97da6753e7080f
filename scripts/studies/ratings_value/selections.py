"""Items chosen at random, by doubt or by gain, at equal numbers of ratings, in the demo's world."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from help_desk.labelers import LABELERS, choose
from numpy.typing import NDArray

from alignment.evaluation.clusters import t_quantile
from alignment.labeling.refit.head import Array, fit_head, hessian, losses, probabilities
from alignment.labeling.refit.table import VoteTable
from studies.ratings_value.d_optimal import greedy_order

WAYS = ("random", "uncertain", "gain", "half gain")
FIRST, ROUND, ROUNDS = 60, 60, 6
"""Items of the first round, which is random, and of each later one, after which the head is refitted."""
VOTES = 3
L2 = 1.0
HELD_OUT = 0.25
Row = dict[str, Any]


class Pool(NamedTuple):
    """Pairs that can be rated, and those that judge."""

    x: Array
    target: Array
    """Share of the votes for the first answer that each would get, (P,)."""
    held_out: NDArray[np.bool_]
    """Whether the prompt is held out, (P,)."""
    better: Array
    """Sign of the first answer's gold score less the second's, (P,)."""


def make_pool(table: VoteTable, gold: Mapping[int, tuple[float, ...]], seed: int) -> Pool:
    """Draw the prompts that are held out, and what `VOTES` of the demo's labelers would say of each pair."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    groups = np.unique(table.groups)
    out = rng.choice(groups, round(HELD_OUT * len(groups)), replace=False)
    value = {"left": 1.0, "tie": 0.5, "right": 0.0}
    target = [
        fmean(
            value[choose(labeler, gold[item][0], gold[item][1], chance)] for labeler in chance.sample(LABELERS, VOTES)
        )
        for item in table.items.tolist()
    ]
    better = np.array([np.sign(gold[item][0] - gold[item][1]) for item in table.items.tolist()])
    return Pool(table.x, np.array(target), np.isin(table.groups, out), better)


def chosen(way: str, pool: Pool, rated: list[int], head: Array, rng: np.random.Generator) -> list[int]:
    """The next round's pairs."""
    left = np.setdiff1d(np.flatnonzero(~pool.held_out), np.array(rated))
    picked = rng.choice(left, ROUND, replace=False).tolist()
    if way == "random":
        return picked
    p = probabilities(pool.x[left] @ head)
    if way == "uncertain":  # as the command does: half by doubt, half at random
        order = left[np.argsort(np.abs(p - 0.5), kind="stable")].tolist()
    else:
        start = hessian(pool.x[rated], np.full(len(rated), float(VOTES)), head, L2)
        order = left[greedy_order(pool.x[left], VOTES * p * (1 - p), start, ROUND)].tolist()
    count = ROUND if way == "gain" else ROUND // 2
    first = order[:count]
    return first + [each for each in picked if each not in first][: ROUND - count]


def run(pool: Pool, way: str, seed: int) -> list[tuple[float, float]]:
    """Held-out log-loss, and accuracy by the gold score, after each round."""
    rng = np.random.default_rng(seed)
    rated = rng.choice(np.flatnonzero(~pool.held_out), FIRST, replace=False).tolist()
    found = []
    held_out, decided = pool.held_out, pool.held_out & (pool.better != 0)
    for number in range(ROUNDS + 1):
        head = fit_head(pool.x[rated], pool.target[rated], np.full(len(rated), float(VOTES)), L2)
        loss = float(losses(pool.x[held_out] @ head, pool.target[held_out]).mean())
        right = float((np.sign(pool.x[decided] @ head) == pool.better[decided]).mean())
        found.append((loss, right))
        if number < ROUNDS:
            rated += chosen(way, pool, rated, head, rng)
    return found


def measure(table: VoteTable, gold: Mapping[int, tuple[float, ...]], seeds: int) -> list[Row]:
    """A row for each seed and way."""
    rows = []
    for seed in range(seeds):
        pool = make_pool(table, gold, seed)
        rows += [{"seed": seed, "way": way, "rounds": run(pool, way, seed)} for way in WAYS]
    return rows


HEAD = """# Which items to rate next

`scripts/study.py selection`. Every figure is computed from the rows that the study left.

The demo's world: pairs of the SFT model's answers, three votes each by the demo's four SIMULATED labelers, the head
refitted on the SFT model's hidden states. A quarter of the prompts is held out. After {first} random pairs each round
adds {round}: *random*; *uncertain*, half of them those nearest to p = 1/2 and half random, as `--order uncertain` does;
*gain*, all by greedy D-optimal design (`scripts/studies/ratings_value/d_optimal.py`); *half gain*, half by it and half
random. The ratings are equal in number. Differences are by seed, with Student's 95% interval over seeds.
"""


def page(rows: Sequence[Row]) -> str:
    """The study's page."""
    seeds = sorted({row["seed"] for row in rows})
    by = {(row["seed"], row["way"]): row["rounds"] for row in rows}
    lines = [HEAD.format(first=FIRST, round=ROUND)]
    for place, title in enumerate(
        ("log-loss (less is better)", "accuracy by the gold score, percent (more is better)")
    ):
        scale, form = ((1, ".4f"), (100, ".1f"))[place]
        lines += [f"## Held-out {title}, {len(seeds)} seeds\n"]
        heads = [f"{way} less random" for way in WAYS[1:]]
        lines += [f"| ratings | random | {' | '.join(heads)} |", "|---" * (len(WAYS) + 1) + "|"]
        for number in range(ROUNDS + 1):
            values = {way: np.array([by[seed, way][number][place] for seed in seeds]) * scale for way in WAYS}
            cells = [f"{values['random'].mean():{form}}"]
            for way in WAYS[1:]:
                change = values[way] - values["random"]
                reach = t_quantile(len(seeds) - 1) * change.std(ddof=1) / np.sqrt(len(seeds))
                mean = change.mean()
                cells.append(f"{mean:+{form}} ({mean - reach:+{form}} to {mean + reach:+{form}})")
            lines.append(f"| {VOTES * (FIRST + number * ROUND)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
