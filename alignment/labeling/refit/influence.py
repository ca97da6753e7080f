"""Whose ratings made a reward model so: its last layer refitted without each labeler, and without each item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.intervals import Estimate, bootstrap_mean, spearman
from alignment.labeling.refit.head import Array, fit_head, hessian, losses, probabilities
from alignment.labeling.refit.table import Refit, VoteTable

SCALE_PENALTY = 1e-3
"""The penalty on the squared scale; it keeps the scale finite where votes are separated."""
TOP_SHARE = 0.1
"""Share of the answers, by score, that are the top ones."""


@dataclass(frozen=True)
class LabelerInfluence:
    """What the refitted head is without a labeler's ratings.

    Changes are without them less with them, so a positive change of the log-loss means that the ratings help. They are
    on the held-out votes of the other labelers, whose votes count in both. None: there are no such votes. The log-loss
    is of scores at their best scale, since how sure a head is depends on the penalty more than on a labeler.
    """

    labeler: str
    ratings: int
    log_loss: Estimate | None
    accuracy: Estimate | None
    turned: float
    """Share of the held-out pairs whose order turns."""
    top_kept: float
    """Share of the top tenth of the answers that still are in it."""
    rank_correlation: float
    """Spearman's, between the scores of the answers with and without the labeler."""


@dataclass(frozen=True)
class ItemInfluence:
    """As `LabelerInfluence.log_loss`, for the votes on one item, on all held-out votes at the scale best for all."""

    item: int
    log_loss: float


def labeler_influences(fitted: Refit, answers: Array | None = None) -> list[LabelerInfluence]:
    """One for each labeler with votes on training prompts, by an exact refit; the most helpful first.

    Args:
        answers: features of the answers that are ranked, (A, D); None: the held-out ones.
    """
    table, ranked = fitted.table, fitted.answers if answers is None else answers
    voted = np.unique(table.labeler[table.trained[table.pair]])
    found = [_without(fitted, int(index), ranked) for index in voted]
    return sorted(found, key=lambda each: -(each.log_loss["value"] if each.log_loss else 0.0))


def labeler_influence(fitted: Refit, labeler: str, answers: Array | None = None) -> LabelerInfluence | None:
    """What forgetting one labeler would change; None without votes of theirs on training prompts."""
    table = fitted.table
    if labeler not in table.labelers:
        return None
    index = table.labelers.index(labeler)
    if not (table.trained[table.pair] & (table.labeler == index)).any():
        return None
    return _without(fitted, index, fitted.answers if answers is None else answers)


def _without(fitted: Refit, index: int, answers: Array) -> LabelerInfluence:
    table, others = fitted.table, fitted.table.labeler != index
    head = fitted.without(others)
    before, after = (at_best_scale(table, table.x @ each, others) for each in (fitted.head, head))
    held_out = table.held_out
    turned = np.sign(table.x[held_out] @ fitted.head) != np.sign(table.x[held_out] @ head)
    first, second = answers @ fitted.head, answers @ head
    return LabelerInfluence(
        labeler=table.labelers[index],
        ratings=len(np.unique(table.items[table.pair[~others]])),
        log_loss=_change(table, others, losses, before, after),
        accuracy=_change(table, others, agreement, before, after, decided=True),
        turned=float(turned.mean()),
        top_kept=top_kept(first, second),
        rank_correlation=spearman(first, second),
    )


def at_best_scale(table: VoteTable, logits: Array, counting: NDArray[np.bool_]) -> Array:
    """Logits of the pairs, (P,), times the number from 0 on at which the held-out votes that count fit them best."""
    target, weight = table.pooled(counting)
    judging = table.held_out & (weight > 0)
    scale = fit_head(logits[judging, None], target[judging], weight[judging], SCALE_PENALTY)
    return np.asarray(logits * max(0.0, float(scale[0])))


def _change(
    table: VoteTable,
    counting: NDArray[np.bool_],
    value: Callable[[Array, Array], Array],
    before: Array,
    after: Array,
    decided: bool = False,
) -> Estimate | None:
    """Mean change over the counting held-out votes, with an interval over prompts."""
    votes = counting & table.held_out[table.pair]
    if decided:
        votes &= table.target != 0.5
    if not votes.any():
        return None
    pair, target = table.pair[votes], table.target[votes]
    changes = value(after[pair], target) - value(before[pair], target)
    return bootstrap_mean(changes, table.groups[pair].tolist(), table.weight[votes])


def agreement(logits: Array, targets: Array) -> Array:
    """1 where the sign agrees with the vote, 1/2 where the scores are equal."""
    return np.asarray(0.5 * (1 + np.sign(logits) * np.sign(targets - 0.5)))


def item_influences(fitted: Refit) -> list[ItemInfluence]:
    """One for each voted training item, the most harmful first, by one Newton step.

    Without the pairs of an item, the head moves by H_i^-1 g_i, where H_i is the second derivative of the others' losses
    and g_i the gradient of the item's (Koh & Liang 2017, with the item taken out of the second derivative as well). It
    is exact where losses are quadratic, and the tests compare it with exact refits.
    """
    table = fitted.table
    target, weight = table.pooled()
    own = np.flatnonzero(table.trained & (weight > 0))
    inverse = np.asarray(np.linalg.inv(hessian(table.x[own], weight[own], fitted.head, fitted.l2)), dtype=np.float64)
    p = probabilities(table.x @ fitted.head)
    by_item: dict[int, list[int]] = {}
    for place in own.tolist():
        by_item.setdefault(int(table.items[place]), []).append(place)
    steps = np.stack([_step(table.x[each], inverse, p[each], target[each], weight[each]) for each in by_item.values()])
    held_out = table.held_out & (weight > 0)
    logits = table.x @ fitted.head
    scaled = at_best_scale(table, logits, np.ones(len(table.pair), bool))
    scale = float(scaled @ logits / max(float(logits @ logits), 1e-12))
    x, votes, share = scale * table.x[held_out], target[held_out, None], weight[held_out] / weight[held_out].sum()
    with_all = share @ losses(x @ fitted.head[:, None], votes)
    changes = np.concatenate(
        [share @ losses(x @ (fitted.head[:, None] + part.T), votes) - with_all for part in _blocks(steps)]
    )
    found = [ItemInfluence(item, float(change)) for item, change in zip(by_item, changes, strict=True)]
    return sorted(found, key=lambda each: each.log_loss)


def _step(x: Array, inverse: Array, p: Array, target: Array, weight: Array) -> Array:
    """The change of the head without some pairs, by Woodbury's identity: x (k, D), others (k,) -> (D,)."""
    towards = x @ inverse
    curvature = weight * p * (1 - p)
    small = np.eye(len(x)) - curvature[:, None] * (towards @ x.T)
    return np.asarray(towards.T @ np.linalg.solve(small, weight * (p - target)))


def _blocks(steps: Array, size: int = 256) -> list[Array]:
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def top_kept(before: Array, after: Array) -> float:
    """Share of the top tenth of `before` that is in the top tenth of `after`; equal scores keep their order."""
    count = max(1, round(TOP_SHARE * len(before)))
    top = [set(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in (before, after)]
    return len(top[0] & top[1]) / count
