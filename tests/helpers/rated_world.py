"""Votes on pairs by labelers who see more or less well which answer is better, as arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alignment.labeling.refit.head import probabilities
from alignment.labeling.refit.table import VoteTable

NAMES = ("ann", "bob", "cyn", "dan")


def world(
    seed: int = 0,
    pairs: int = 240,
    held_out: int = 120,
    dimensions: int = 8,
    skill: tuple[float, ...] = (2.0, 1.0, 1.0, -1.0),
) -> VoteTable:
    """Votes on pairs whose features decide, two votes each; dan prefers the worse one."""
    rng = np.random.default_rng(seed)
    total = pairs + held_out
    x = rng.standard_normal((total, dimensions)) / np.sqrt(dimensions)
    truth = x @ (4 * rng.standard_normal(dimensions))
    pair = np.repeat(np.arange(total), 2)
    labeler = np.concatenate([rng.choice(len(NAMES), 2, replace=False) for _ in range(total)])
    target = (rng.random(len(pair)) < probabilities(np.array(skill)[labeler] * truth[pair])).astype(float)
    target[rng.random(len(pair)) < 0.1] = 0.5
    # Two pairs of one item stand for a ranking.
    items = np.where(np.arange(total) % 5 == 1, np.arange(total) - 1, np.arange(total)) + 1
    weight = np.where(np.bincount(items, minlength=total + 1)[items[pair]] > 1, 1 / 3, 1.0)
    return VoteTable(
        x, items, items.copy(), items > pairs, pair, labeler, target, weight, NAMES, ("even", "odd") * (total // 2)
    )


def cut(table: VoteTable, votes: Any) -> VoteTable:
    """The table with some of its votes, (V,)."""
    return dataclasses.replace(
        table, **{name: getattr(table, name)[votes] for name in ("pair", "labeler", "target", "weight")}
    )
