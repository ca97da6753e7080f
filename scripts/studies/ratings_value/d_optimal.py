"""Which items to rate next: those that tell most about the head. Pure functions on arrays."""

from __future__ import annotations

import numpy as np

from alignment.labeling.refit.head import Array


def greedy_order(x: Array, information: Array, start: Array, count: int) -> list[int]:
    """The items in the order in which each adds most to the determinant of the head's information matrix.

    That is D-optimal design, greedily (Fedorov 1972; for ratings: Zhu, Jordan & Jiao 2023). A vote on a pair with
    features x and probability p adds p (1 - p) x x^T, so with A the information so far the gain is
    log(1 + p (1 - p) x^T A^-1 x). After each choice A^-1 is updated (Sherman & Morrison), and the lengths
    x^T A^-1 x of all with it: O(P D) a choice.

    Args:
        x: features of the candidate pairs, (P, D).
        information: p (1 - p) times the votes that each would get, (P,).
        start: information so far with the penalty, (D, D), as `hessian` of the rated pairs.
        count: number of items to order.

    Returns:
        Indices of candidates, at most `count` of them.
    """
    inverse = np.linalg.inv(start)
    towards = x @ inverse
    lengths = np.einsum("pd,pd->p", towards, x)
    left = np.ones(len(x), bool)
    order: list[int] = []
    for _ in range(min(count, len(x))):
        chosen = int(np.argmax(np.where(left, information * lengths, -1.0)))
        order.append(chosen)
        left[chosen] = False
        scale = information[chosen] / (1 + information[chosen] * lengths[chosen])
        along = x @ towards[chosen]
        lengths = np.maximum(lengths - scale * along**2, 0.0)
        towards = towards - scale * np.outer(along, towards[chosen])
    return order
