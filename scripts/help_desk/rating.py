"""Rate pairs by simulated labelers, through the same store that people use."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from alignment.ratings import Item, RatingsStore
from help_desk.gold import gold_score
from help_desk.labelers import JUDGES, LABELERS, SimulatedLabeler, choose

RATINGS_PER_PAIR = 3
JUDGED_SHARE = 0.5
"""Fraction of the pairs that all of `JUDGES` rate. The held-out reward model may be worse than the one it evaluates,
but its errors must be on other pairs."""

ON_PAIR_SCALE = {"left": 1, "right": -1, "tie": 0}


def rate(store: RatingsStore, seed: int, shuffle: bool = False) -> tuple[int, int]:
    """Rate all pairs by `LABELERS` for the reward model, then some of them by `JUDGES` for the held-out one.

    Args:
        shuffle: shuffle the gold scores among the pairs, so that ratings are random.

    Returns:
        The numbers of ratings by the two groups.
    """
    rng = random.Random(seed)
    items = store.items()
    gold = {item.id: item_gold(item) for item in items}
    if shuffle:
        gold = dict(zip(gold, rng.sample(list(gold.values()), len(gold)), strict=True))
    store.settings.repeat_share = 0.0  # simulated labelers need no check of consistency
    with store.transaction():
        for labeler in (*LABELERS, *JUDGES):
            store.people.mark_simulated(labeler.name)
        count = take_turns(store, LABELERS, gold, rng)
        for item in rng.sample(items, round(JUDGED_SHARE * len(items))):
            store.add_item(item.prompt, item.completions, RATINGS_PER_PAIR + len(JUDGES), item.metadata)
        return count, take_turns(store, JUDGES, gold, rng)


def item_gold(item: Item) -> tuple[float, ...]:
    """Gold totals of an item's completions, in item order."""
    fact = item.metadata["fact"]
    return tuple(gold_score(fact, completion.text, completion.ended).total for completion in item.completions)


def take_turns(
    store: RatingsStore,
    labelers: Sequence[SimulatedLabeler],
    gold: Mapping[int, tuple[float, ...]],
    rng: random.Random,
    most: int | None = None,
    asked: Mapping[str, Mapping[int, tuple[float, ...]]] | None = None,
) -> int:
    """Let the labelers claim and answer in turns until no item is left, or until there are `most` answers; returns the
    number of answers.

    Args:
        gold: scores of each item's completions, by which labelers choose.
        asked: the same for each attribute that the questions ask about, on the pair scale.
    """
    count, working = 0, list(labelers)
    while working:
        for labeler in list(working):
            if count == most:
                return count
            assignment = store.claim(labeler.name)
            if assignment is None:
                working.remove(labeler)
                continue
            first, second = assignment.order_shown
            choice, *answered = (
                choose(labeler, scores[assignment.item][first], scores[assignment.item][second], rng)
                for scores in (gold, *(asked or {}).values())
            )
            values = dict(zip(asked or {}, map(ON_PAIR_SCALE.__getitem__, answered), strict=True))
            store.submit(assignment, choice, seconds=0.0, answers={"attributes": values} if values else None)
            count += 1
    return count
