"""Intervals for few prompts: whole prompts are resampled, and quantiles are Student's. They know no model.

The percentile bootstrap is too narrow where prompts are few: it divides by n where n - 1 is right, takes the normal
quantile where the variance itself is uncertain, and is empty where all outcomes are equal. So the bootstrap gives the
variance alone, and a rate gets Wilson's score interval with Student's quantile (`score_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_RESAMPLES = 2000
_Z = 1.959963984540054
_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""97.5% quantiles of Student's t with 1, 2, ... degrees of freedom."""


def prompt_index(prompts: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """The number of each row's prompt, (N,), in the order of their first rows, and the count of prompts G."""
    index = {key: position for position, key in enumerate(dict.fromkeys(prompts))}
    return np.array([index[key] for key in prompts], dtype=np.int64), len(index)


def prompt_draws(num_prompts: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Floats:
    """How often each prompt is in each resample: (num_resamples, G), each row sums to G."""
    rng = np.random.default_rng(seed)
    odds = np.full(num_prompts, 1 / num_prompts)
    return rng.multinomial(num_prompts, odds, size=num_resamples).astype(np.float64)


def effective_prompts(sizes: Floats) -> float:
    """Kish's effective number of prompts, (sum m)^2 / sum m^2 of their rows m: few large prompts decide a mean."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def t_quantile(freedom: float) -> float:
    """97.5% quantile of Student's t; `freedom` below 1 counts as 1 (Cornish-Fisher expansion from 10 on)."""
    if freedom < 10:
        low = max(1, math.floor(freedom))
        if low <= len(_T_975):
            return _T_975[low - 1]
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def score_interval(rate: float, variance: float, effective: float) -> tuple[float, float]:
    """Wilson's score interval of a rate whose variance is estimated over prompts.

    The rate counts as one of `rate * (1 - rate) / variance` independent outcomes, with Student's quantile in place of
    the normal one (Wilson 1927; Korn & Graubard 1998 for the effective number). A variance of 0 (all outcomes are
    equal) says nothing, so then each prompt counts as one outcome.

    Args:
        rate: in [0, 1].
        variance: of the rate, unbiased.
        effective: number of prompts; below 2 nothing is known, and the interval is (0, 1).
    """
    if effective < 2:
        return 0.0, 1.0
    spread = rate * (1 - rate)
    silent = variance < 1e-9 or spread < 1e-9
    outcomes = effective if silent else spread / variance
    t = t_quantile(effective - 1)
    middle = (rate + t**2 / (2 * outcomes)) / (1 + t**2 / outcomes)
    half = t / (1 + t**2 / outcomes) * math.sqrt(spread / outcomes + t**2 / (4 * outcomes**2))
    return max(0.0, min(middle - half, rate)), min(1.0, max(middle + half, rate))
