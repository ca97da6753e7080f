"""When to stop: what more ratings would do to the held-out log-loss of a refitted last layer.

The head is refitted on random shares of the voted training prompts. Their mean losses follow a power law with an
offset, a + b n^-c (Hestness et al. 2017), which is extrapolated. Pure functions on the arrays of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment.labeling.refit.head import Array, fit_head, losses
from alignment.labeling.refit.table import Refit

SHARES = (0.15, 0.22, 0.32, 0.46, 0.68, 1.0)
"""Shares of the training prompts that the head is refitted on."""
REPEATS = 12
"""Random orders of the prompts; the shares of an order are nested."""
EXPONENTS = np.geomspace(0.2, 2.0, 40)
"""Candidates for c."""
RESAMPLES = 400
LEAST_PROMPTS = 30
"""Fewer voted prompts give no curve."""


@dataclass(frozen=True)
class Curve:
    """Held-out log-losses of refits on random shares of the prompts, for one slice of the held-out ones.

    `sizes`: number of prompts, (S,), ascending, the last one all; `losses`: (R, S), by random order; the last of each
    order is that of all prompts. `ratings`: number of ratings of all.
    """

    name: str
    sizes: Array
    losses: Array
    ratings: int
    held_out: int
    """Number of held-out votes."""

    @property
    def now(self) -> float:
        return float(self.losses[0, -1])


@dataclass(frozen=True)
class Forecast:
    """The log-loss on the same held-out votes after `more` ratings on new prompts, with its 95% interval."""

    name: str
    ratings: int
    more: int
    now: float
    then: float
    ci: tuple[float, float]
    held_out: int

    @property
    def sentence(self) -> str:
        low, high = self.ci
        return f"{self.more} more ratings: {self.now:.3f} to {self.then:.3f} ({low:.3f} to {high:.3f})"


def curves(fitted: Refit, seed: int = 0) -> list[Curve]:
    """The curve of all held-out prompts, and of each slice of the table.

    Whole prompts are drawn, because more ratings will be on new prompts, each rated as often as these.
    """
    table, rng = fitted.table, np.random.default_rng(seed)
    target, weight = table.pooled()
    own = np.flatnonzero(table.trained & (weight > 0))
    prompts, member = np.unique(table.groups[own], return_inverse=True)
    sizes = np.unique(np.maximum(2, np.round(np.array(SHARES) * len(prompts)).astype(int)))
    names = ["", *(name for name in dict.fromkeys(table.slices) if len(set(table.slices)) > 1)]
    parts = [table.held_out & (weight > 0) & _in_slice(fitted, name) for name in names]
    found = np.zeros((len(names), REPEATS, len(sizes)))
    for repeat in range(REPEATS):
        place = np.empty(len(prompts), int)
        place[rng.permutation(len(prompts))] = np.arange(len(prompts))
        head: Array | None = None
        for column, size in enumerate(sizes):
            inside = own[place[member] < size]
            head = fit_head(table.x[inside], target[inside], weight[inside], fitted.l2, head)
            values = weight * losses(table.x @ head, target)
            found[:, repeat, column] = [values[part].sum() / max(weight[part].sum(), 1e-12) for part in parts]
    counts = [int(part[table.pair].sum()) for part in parts]
    return [
        Curve(name, sizes.astype(float), part, fitted.num_ratings, count)
        for name, part, count in zip(names, found, counts, strict=True)
        if count
    ]


def _in_slice(fitted: Refit, name: str) -> NDArray[np.bool_]:
    slices = fitted.table.slices
    return np.array([not name or each == name for each in slices])


def forecast(curve: Curve, more: int, seed: int = 0) -> Forecast:
    """Extrapolate a curve to `more` further ratings.

    The value is the current loss less the saving of the best exponent. The interval holds three doubts: the exponent,
    for which each that fits the mean losses about as well as the best counts; the random orders, by a bootstrap; and
    which prompts will be rated. For the last, the losses of n of the N prompts vary around that of all with variance
    v(n) (1/n - 1/N), where they are about linear in the prompts, and the loss after N' with v (1/N - 1/N'); v grows
    as the penalty holds the head less, and is extrapolated too.
    """
    end = curve.sizes[-1] * (1 + more / curve.ratings)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(curve.losses), size=(RESAMPLES, len(curve.losses)))
    resampled = curve.losses[draws].mean(1)
    mean = curve.losses.mean(0)
    errors = [_misfit(curve, mean, exponent) for exponent in EXPONENTS]
    best = int(np.argmin(errors))
    then = float(_extrapolated(curve, mean[None], EXPONENTS[best], end)[0])
    plausible = [c for c, error in zip(EXPONENTS, errors, strict=True) if error <= errors[best] + QUANTILE**2]
    reach = QUANTILE * np.sqrt(_spread(curve, np.sqrt(curve.sizes[-1] * end)) * (1 / curve.sizes[-1] - 1 / end))
    ends = np.stack([_extrapolated(curve, resampled, exponent, end) for exponent in plausible])
    low, high = np.quantile(ends, 0.025, axis=1).min(), np.quantile(ends, 0.975, axis=1).max()
    ci = (then - float(np.hypot(then - low, reach)), then + float(np.hypot(high - then, reach)))
    return Forecast(curve.name, curve.ratings, more, curve.now, then, ci, curve.held_out)


QUANTILE = 2.201
"""Student's t, 97.5%, for 11 degrees of freedom: `REPEATS` orders."""


def _design(curve: Curve, exponent: float) -> Array:
    """Powers of the sizes as shares, less that of all items, so that the curve goes through the current loss."""
    return np.asarray((curve.sizes / curve.sizes[-1]) ** -exponent - 1)


def _slope(curve: Curve, means: Array, exponent: float) -> Array:
    """b of each mean curve, (n, S) -> (n,), by least squares weighted by the losses' precision; at least 0."""
    design, precision = _design(curve, exponent)[:-1], 1 / _variances(curve)
    slope = ((means[:, :-1] - means[:, -1:]) * precision) @ design / (precision * design @ design)
    return np.asarray(np.maximum(slope, 0.0))


def _extrapolated(curve: Curve, means: Array, exponent: float, end: float) -> Array:
    change = (end / curve.sizes[-1]) ** -exponent - 1
    return np.asarray(np.maximum(means[:, -1] + _slope(curve, means, exponent) * change, 0.0))


def _misfit(curve: Curve, mean: Array, exponent: float) -> float:
    """Squared residuals of the mean losses, in units of their variances."""
    residual = mean[:-1] - mean[-1] - _slope(curve, mean[None], exponent) * _design(curve, exponent)[:-1]
    return float(np.sum(residual**2 / _variances(curve)))


def _variances(curve: Curve) -> Array:
    """Variances of the mean losses at each size but the last, (S - 1,)."""
    sizes = curve.sizes[:-1]
    return np.asarray(np.maximum(_spread(curve, sizes) * (1 / sizes - 1 / curve.sizes[-1]) / len(curve.losses), 1e-12))


def _spread(curve: Curve, sizes: Array) -> Array:
    """The variance v(n) of `forecast` at some sizes: a power of n, fitted to the variances over the orders; beyond the
    largest share at least what it is there."""
    own = curve.sizes[:-1]
    found = curve.losses[:, :-1].var(0, ddof=1) / (1 / own - 1 / curve.sizes[-1])
    logs = np.log(np.maximum(found, 1e-12))
    slope, _ = np.polyfit(np.log(own), logs, 1)
    slope = float(np.clip(slope, 0.0, 2.0))
    level = float(np.mean(logs - slope * np.log(own)))
    fitted = np.exp(level + slope * np.log(sizes))
    return np.asarray(np.where(sizes > own[-1], np.maximum(fitted, found[-1]), fitted))
