"""The votes of a ratings file as arrays, beside the features of what they compare."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.reading import is_held_out
from alignment.data.records import Prompt, prompt_group
from alignment.errors import UserError
from alignment.labeling.refit.features import Answer, Hidden, hidden_states, pair_texts
from alignment.labeling.refit.head import Array, Projection, choose_l2, fit_head, losses, projection
from alignment.models.sources import find_model
from alignment.ratings import Item, Rating, RatingsStore
from alignment.ratings.pairs import choice_of
from alignment.registry import Manifest, Registry
from alignment.templates.rendering import Message

DIMENSIONS = 64
"""Directions of the hidden states that a head is fitted on."""
EVAL_SHARE = 0.2
"""Share of the prompts held out where the model's own config does not say it."""
TARGETS = {"first": 1.0, "tie": 0.5, "second": 0.0}
Counts = NDArray[np.int64]
FeaturesOf = Callable[[Sequence[Answer]], Array]
LEAST_PROMPTS = 10
MOST_SLICES = 12
NONE, OTHER = "(none)", "(other)"


def _no_model(answers: Sequence[Answer]) -> Array:
    """Stands for the model in a table that was not made from a ratings file; it encodes nothing."""
    raise AssertionError(f"no model for {len(answers)} answers")


@dataclass(frozen=True)
class VoteTable:
    """V votes by L labelers on P pairs of answers.

    A ranking's votes weigh 1 / C(K, 2) each, as in training; a tie is half a vote for each side. Strengths do not
    count, as with `reward.margin: 0`, the default.
    """

    x: Array
    """Features of the first answer minus those of the second, (P, D)."""
    items: Counts
    """Id of each pair's item, (P,)."""
    groups: Counts
    """Number of each pair's prompt, (P,)."""
    held_out: NDArray[np.bool_]
    """Whether the prompt is held out, (P,)."""
    pair: Counts
    """The pair of each vote, (V,)."""
    labeler: Counts
    """The labeler of each vote, (V,), an index in `labelers`."""
    target: Array
    """1 for the first answer, 0 for the second, (V,)."""
    weight: Array
    """(V,)"""
    labelers: tuple[str, ...]
    slices: tuple[str, ...]
    """The value of each pair in a column of its item's metadata, (P,); all the same without a column."""

    def pooled(self, counting: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
        """Target and weight of each pair, (P,), from the votes that count, (V,); None: all."""
        weight = self.weight if counting is None else self.weight * counting
        total = np.asarray(np.bincount(self.pair, weight, len(self.x)), dtype=np.float64)
        towards = np.bincount(self.pair, weight * self.target, len(self.x))
        return np.divide(towards, total, out=np.full(len(self.x), 0.5), where=total > 0), total

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Pairs that are not held out, (P,)."""
        return np.asarray(~self.held_out)


@dataclass(frozen=True)
class Refit:
    """A head fitted to the votes on the prompts that are not held out."""

    table: VoteTable
    l2: float
    head: Array
    model: str
    answers: Array
    """Features of the held-out answers, (A, D)."""
    left_out: dict[str, int]
    """Number of ratings that cannot be used, by reason."""
    features_of: FeaturesOf = _no_model
    """Features of other answers."""

    @property
    def num_items(self) -> int:
        """Number of voted training items."""
        return len(np.unique(self._voted()[0]))

    @property
    def num_prompts(self) -> int:
        """Number of voted training prompts."""
        return len(np.unique(self.table.groups[self.table.pair[self.table.trained[self.table.pair]]]))

    @property
    def num_ratings(self) -> int:
        """Number of ratings of them; a ranking's votes on its pairs are one rating."""
        return np.unique(self._voted(), axis=1).shape[1]

    def _voted(self) -> Counts:
        """Item and labeler of each training vote, (2, n)."""
        own = self.table.trained[self.table.pair]
        return np.stack([self.table.items[self.table.pair[own]], self.table.labeler[own]])

    def without(self, counting: NDArray[np.bool_]) -> Array:
        """The head fitted to these votes alone, (V,)."""
        target, weight = self.table.pooled(counting)
        own = self.table.trained
        return fit_head(self.table.x[own], target[own], weight[own], self.l2, self.head)


def refit(
    table: VoteTable, model: str, answers: Array, left_out: dict[str, int], features_of: FeaturesOf = _no_model
) -> Refit:
    """Fit a table's votes; the penalty is chosen on left-out fifths of the prompts."""
    target, weight = table.pooled()
    own = table.trained & (weight > 0)
    l2 = choose_l2(table.x[own], target[own], weight[own], table.groups[own])
    head = fit_head(table.x[own], target[own], weight[own], l2)
    return Refit(table, l2, head, model, answers, left_out, features_of)


def log_loss(table: VoteTable, head: Array, target: Array, weight: Array, where: NDArray[np.bool_]) -> float:
    """Mean loss of the votes on some pairs, in nats."""
    value = losses(table.x[where] @ head, target[where])
    return float(weight[where] @ value / weight[where].sum())


def load_refit(
    db: str, model: str, registry_path: str | None = None, slice_by: str | None = None, trained: bool = True
) -> Refit:
    """Refit the last layer of a reward model on the votes of a ratings file.

    The prompts held out are those that the model's own config holds out, so that it has not learned from them; without
    one a fifth.

    Args:
        slice_by: a column of the items' metadata.
        trained: as `hidden_states`.

    Raises:
        UserError: the file has too few votes on either side; no item has that column.
    """
    registry = Registry(registry_path)
    source = find_model(model, registry, role="reward" if trained else ("reward", "policy"))
    manifest = registry.resolve(source.ref).manifest if source.ref else None
    with RatingsStore(db) as store:
        items, ratings = store.items(), _learned_from(store, manifest)
    share, seed = _held_out(manifest.config if manifest else None)
    texts = pair_texts(items)
    hidden = hidden_states(source, texts, db, trained)
    votes = _Votes(items, ratings, hidden)
    directions = projection(votes.differences(), DIMENSIONS)
    table = votes.table(directions, share, seed, slice_by)
    if slice_by is not None and set(table.slices) == {NONE}:
        names = sorted({name for item in items for name in item.metadata})
        raise UserError(f"--slice {slice_by}: no item of {db} has it; expected one of {', '.join(names) or 'none'}")
    for what, pairs in (("training", table.trained), ("held-out", table.held_out)):
        decided = len(set(table.groups[pairs].tolist()))
        if decided < LEAST_PROMPTS:
            raise UserError(
                f"{db}: votes on {decided} {what} prompts, and a refit needs {LEAST_PROMPTS} or more; rate more pairs"
            )

    def features_of(answers: Sequence[Answer]) -> Array:
        found = directions(hidden_states(source, answers, db, trained))
        return found[~np.isnan(found).any(1)]

    ranked = votes.held_out_answers(directions, share, seed)
    return refit(table, source.label, ranked, votes.left_out, features_of)


def _learned_from(store: RatingsStore, manifest: Manifest | None) -> list[Rating]:
    """Ratings of the labelers that the model learned from, where it learned from this file; else everybody's."""
    ratings, database = store.ratings(for_training=True), store.fingerprint([])["database"]
    data = manifest.data if manifest else ()
    hashes = {hashed for each in data if each.database == database for hashed in each.labeler_hashes}
    if not hashes:
        return ratings
    known = {name for name in store.labelers() if store.people.labeler_hash(name) in hashes}
    return [rating for rating in ratings if rating.labeler in known]


def _held_out(config: Any) -> tuple[float, int]:
    """`data.eval_share` and `data.split_seed` of a published model."""
    data = (config or {}).get("data") or {}
    share = data.get("eval_share") if data.get("eval") is None else None
    return (float(share) if share else EVAL_SHARE), int(data.get("split_seed") or 0)


class _Votes:
    """Votes by pair, and the hidden states of what they compare."""

    def __init__(self, items: Sequence[Item], ratings: Sequence[Rating], hidden: Hidden) -> None:
        self._hidden = hidden
        sizes = [len(item.completions) if len(item.completions) > 1 else 0 for item in items]
        starts = dict(zip((item.id for item in items), itertools.accumulate([0, *sizes]), strict=False))
        by_item: dict[int, list[Rating]] = {}
        for rating in ratings:
            by_item.setdefault(rating.item, []).append(rating)
        self.items = [item for item in items if len(item.completions) > 1]
        self.rows = {item.id: range(starts[item.id], starts[item.id] + len(item.completions)) for item in self.items}
        self.left_out = {
            "single answers": sum(len(by_item.get(item.id, ())) for item in items),
            "answers that cannot be encoded": 0,
        }
        self.pairs: list[tuple[Item, int, int]] = []
        self.votes: list[tuple[int, str, float, float]] = []
        for item in self.items:
            given = by_item.get(item.id, [])
            self.left_out["single answers"] -= len(given)
            if np.isnan(hidden[self.rows[item.id]]).any():
                self.left_out["answers that cannot be encoded"] += len(given)
                continue
            self._add(item, given)
        if not self.votes:
            raise UserError("no pair and no ranking has a vote that can be used; rate some, or name another --db")

    def _add(self, item: Item, given: Collection[Rating]) -> None:
        weight = 1 / math.comb(len(item.completions), 2)
        for first, second in itertools.combinations(range(len(item.completions)), 2):
            if item.completions[first].text == item.completions[second].text:
                continue
            cast = [(rating.labeler, choice) for rating in given if (choice := choice_of(rating, first, second))]
            if cast:
                self.pairs.append((item, self.rows[item.id][first], self.rows[item.id][second]))
                place = len(self.pairs) - 1
                self.votes += [(place, labeler, TARGETS[choice], weight) for labeler, choice in cast]

    def differences(self) -> Hidden:
        """(P, H)"""
        return self._hidden[[first for _, first, _ in self.pairs]] - self._hidden[[other for _, _, other in self.pairs]]

    def table(self, directions: Projection, share: float, seed: int, slice_by: str | None) -> VoteTable:
        """All votes."""
        pair, names, target, weight = zip(*self.votes, strict=True)
        labelers = tuple(dict.fromkeys(sorted(names)))
        index = {name: place for place, name in enumerate(labelers)}
        groups = [_group(item) for item, _, _ in self.pairs]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        return VoteTable(
            x=directions(self.differences()),
            items=np.array([item.id for item, _, _ in self.pairs]),
            groups=np.array([numbers[group] for group in groups]),
            held_out=np.array([_is_held_out(item, share, seed) for item, _, _ in self.pairs]),
            pair=np.array(pair),
            labeler=np.array([index[name] for name in names]),
            target=np.array(target),
            weight=np.array(weight),
            labelers=labelers,
            slices=_slices([item for item, _, _ in self.pairs], slice_by),
        )

    def held_out_answers(self, directions: Projection, share: float, seed: int) -> Array:
        """Features of all answers to held-out prompts that can be encoded, (A, D)."""
        rows = [row for item in self.items if _is_held_out(item, share, seed) for row in self.rows[item.id]]
        found = directions(self._hidden[rows])
        return found[~np.isnan(found).any(1)]


def _group(item: Item) -> str:
    return prompt_group(_messages(item))


def _messages(item: Item) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in item.prompt)


def _is_held_out(item: Item, share: float, seed: int) -> bool:
    return is_held_out(Prompt(_messages(item)), share, seed)


def _slices(items: Sequence[Item], column: str | None) -> tuple[str, ...]:
    """The value of each item in a column of its metadata; those beyond the most frequent are one slice."""
    values = [item.metadata.get(column) if column else None for item in items]
    names = [NONE if value is None or value == "" else str(value) for value in values]
    counts = Counter(names)
    kept = {name for name, _ in counts.most_common(MOST_SLICES if len(counts) <= MOST_SLICES else MOST_SLICES - 1)}
    return tuple(name if name in kept else OTHER for name in names)
