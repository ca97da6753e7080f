"""A score head on frozen features: pure functions on arrays of P pairs with D features.

The features of a pair are those of its first answer minus those of its second; the head is one weight for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

L2 = (1.0, 3.0, 10.0, 30.0)
"""Candidates for the penalty. Features are scaled (`Projection`), so 1 expects score differences of about 1; of weaker
ones a few dozen prompts chose some that overfitted."""
FOLDS = 5
MOST_STEPS = 50
TOLERANCE = 1e-7
"""The largest gradient at which a fit has converged, for each unit of weight."""


class Projection(NamedTuple):
    """Maps hidden states to the directions in which answers of one item differ most: (..., H) -> (..., D)."""

    directions: Array
    """(H, D), orthogonal columns, scaled so that the mean squared length of a projected difference is 1."""

    def __call__(self, hidden: NDArray[np.floating]) -> Array:
        return np.asarray(hidden @ self.directions, dtype=np.float64)


def projection(differences: NDArray[np.floating], dimensions: int, seed: int = 0) -> Projection:
    """The first principal directions of differences of hidden states, (P, H), uncentred; no votes are used.

    A randomized range finder with power iterations (Halko, Martinsson & Tropp 2011, SIAM Review 53(2), algorithm 4.4),
    since a full decomposition takes minutes at H = 4096.
    """
    x = np.asarray(differences, dtype=np.float64)
    size = min(dimensions, *x.shape)
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((x.shape[1], min(size + 16, *x.shape)))
    for _ in range(4):
        basis, _ = np.linalg.qr(x.T @ (x @ basis))
    _, _, rows = np.linalg.svd(x @ basis, full_matrices=False)
    directions = (basis @ rows.T)[:, :size]
    power = float(np.mean(np.sum((x @ directions) ** 2, axis=1))) if len(x) else 0.0
    return Projection(directions / np.sqrt(power) if power > 0 else directions)


def probabilities(logits: Array) -> Array:
    """The sigmoid, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def losses(logits: Array, targets: Array) -> Array:
    """Cross entropy in nats between targets in [0, 1] and the sigmoid of the logits, as `reward.loss.pair_loss`."""
    return np.asarray(np.logaddexp(0, logits) - targets * logits)


def fit_head(x: Array, targets: Array, weights: Array, l2: float, start: Array | None = None) -> Array:
    """The head (D,) with the least sum of weights * losses(x @ head, targets) + l2 / 2 * |head|^2.

    Newton's method with halved steps; the objective is strictly convex, so there is one minimum.

    Args:
        x: (P, D); targets, weights: (P,), the weights at least 0.
        l2: above 0.
        start: of the search, such as a fit on nearly the same pairs.
    """
    used = weights > 0
    x, targets, weights = x[used], targets[used], weights[used]
    head = np.zeros(x.shape[1]) if start is None else start.copy()

    def objective(at: Array) -> float:
        return float(weights @ losses(x @ at, targets) + l2 / 2 * at @ at)

    value = objective(head)
    for _ in range(MOST_STEPS):
        gradient = x.T @ (weights * (probabilities(x @ head) - targets)) + l2 * head
        if float(np.abs(gradient).max(initial=0.0)) <= TOLERANCE * max(1.0, float(weights.sum())):
            break
        step = np.linalg.solve(hessian(x, weights, head, l2), gradient)
        share = 1.0
        while (new := objective(head - share * step)) > value and share > 1e-6:
            share /= 2
        if new >= value:  # rounding is all that is left
            break
        head, value = head - share * step, new
    return head


def hessian(x: Array, weights: Array, head: Array, l2: float) -> Array:
    """The second derivative of the objective of `fit_head`, (D, D)."""
    p = probabilities(x @ head)
    return np.asarray((x.T * (weights * p * (1 - p))) @ x + l2 * np.eye(x.shape[1]))


def choose_l2(x: Array, targets: Array, weights: Array, groups: Sequence[int] | NDArray[np.int64]) -> float:
    """The candidate of `L2` with the least log-loss on left-out fifths of the prompts.

    Args:
        groups: the prompt of each pair, a whole number.
    """
    keys = np.unique(groups)
    fold_of = dict(zip(keys.tolist(), np.random.default_rng(0).permutation(len(keys)) % FOLDS, strict=True))
    folds = np.array([fold_of[int(group)] for group in groups])
    totals = np.zeros(len(L2))
    for fold in range(FOLDS):
        inside, head = folds != fold, None
        for place in reversed(range(len(L2))):  # from the strongest, each fit starts at the one before
            head = fit_head(x[inside], targets[inside], weights[inside], L2[place], head)
            totals[place] += weights[~inside] @ losses(x[~inside] @ head, targets[~inside])
    return L2[int(totals.argmin())]
