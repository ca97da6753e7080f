"""Best-of-n sampling: what the best of n answers scores, and how far it is from the policy that they are drawn from.

A reward model needs no training to improve answers: draw n and take the one that it likes best (Stiennon et al. 2020,
"Learning to summarize from human feedback"; Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization"). That is
what a trained policy must beat, at the same distance from where it started.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.intervals import bootstrap_mean

Array = NDArray[np.float64]
MOST = 64


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n in nats: an upper bound of the KL from the sampled policy to its best-of-n.

    Stiennon et al. 2020, appendix G.3, for scores without ties. That it is only a bound where one answer can be drawn
    twice: Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy".
    """
    return math.log(n) - (n - 1) / n


def sizes_of(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def expected_best(scores: Array, n: int, values: Array | None = None) -> Array:
    """The expected value of the best of n of each prompt's N answers, from all N: (P, N) -> (P,).

    The mean over all subsets of n answers, which is unbiased for a best-of-n of fresh draws: the answer that ranks i-th
    from below is the best of C(i-1, n-1) of the C(N, n) subsets (Nakano et al. 2021, "WebGPT", appendix I). The
    average over disjoint groups of n is unbiased too, and noisier.

    Args:
        scores: what the best is chosen by; among equal ones by chance.
        values: what is averaged of the chosen, such as another judge's scores; None: the scores.
    """
    count = scores.shape[1]
    assert 1 <= n <= count, (n, count)
    values = scores if values is None else values
    weights = np.array([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])
    found = np.empty(len(scores))
    for prompt, (row, value) in enumerate(zip(scores, values, strict=True)):
        _, places, sizes = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(sizes)
        shared = [weights[end - size : end].mean() for end, size in zip(ends, sizes, strict=True)]
        found[prompt] = float(np.dot(np.asarray(shared)[places], value))
    return found


def best_of_n_table(
    scores: Sequence[Sequence[float]],
    groups: Sequence[Hashable] | None = None,
    held_out_scores: Sequence[Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """For n = 1, 2, 4, ... up to N: the bound of the KL, and the mean score with a 95% interval over prompts.

    Args:
        scores: (P, N), by what chooses.
        held_out_scores: (P, N), by a judge that does not.
    """
    chosen_by = np.asarray(scores, dtype=np.float64)
    judged = None if held_out_scores is None else np.asarray(held_out_scores, dtype=np.float64)
    rows = []
    for n in sizes_of(chosen_by.shape[1]):
        row: dict[str, Any] = {"n": n, "kl_bound": kl_bound(n)}
        for name, values in (("score", chosen_by), ("held_out_score", judged)):
            if values is not None:
                found = bootstrap_mean(expected_best(chosen_by, n, values), groups)
                row |= {name: found["value"], f"{name}_ci": list(found["ci"])}
        rows.append(row)
    return rows
