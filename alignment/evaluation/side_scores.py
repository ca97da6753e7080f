"""Each side's own scores: means and paired differences with intervals over prompts, and gaps between slices.

A win rate says who is better and not how good; a scorer's mean says both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from alignment.evaluation.clusters import score_interval, t_quantile
from alignment.evaluation.judgments import AnsweredPrompts, Measure
from alignment.evaluation.slices import by_slice
from alignment.intervals import Estimate

LEAST_IN_SLICE = 10
"""Prompts of a slice from which a gap can be told."""


def mean_score(values: Sequence[float], *, is_share: bool) -> Estimate | None:
    """The mean with its 95% interval; each value is of one prompt. None where one value or none tells no interval.

    The bootstrap's variance of a mean of independent prompts is known, var / n, so nothing is drawn. A share gets
    Wilson's interval with it, which is not empty where all are 0 or 1 (`clusters.score_interval`); others Student's.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < (1 if is_share else 2):
        return None
    n, mean = len(x), float(x.mean())
    variance = float(x.var(ddof=1)) / n if n > 1 else 0.0
    if is_share:
        return Estimate(value=mean, ci=score_interval(mean, variance, n), n=n)
    half = t_quantile(n - 1) * math.sqrt(variance)
    return Estimate(value=mean, ci=(mean - half, mean + half), n=n)


def score_difference(values: Sequence[float], *, is_share: bool) -> Estimate | None:
    """The mean of paired differences with its 95% interval (Student's).

    Shares that hardly ever differ have a variance near 0 that says little: half of the interval is at least the share
    of prompts that may differ where none of n did (Wilson's bound, t^2 / (n + t^2)).
    """
    found = mean_score(values, is_share=False)
    if found is not None and is_share:
        value, n = found["value"], found["n"]
        t = t_quantile(n - 1)
        half = max(found["ci"][1] - value, t**2 / (n + t**2))
        found["ci"] = max(-1.0, value - half), min(1.0, value + half)
    return found


def scores_of(contest: AnsweredPrompts, measures: Sequence[Measure], slices: Sequence[str]) -> list[dict[str, Any]]:
    """A judge's measures by side, with the paired differences; slices are compared by the first measure."""
    found = []
    for measure in measures:
        figures: dict[str, Any] = {
            "measure": measure.name,
            "is_share": measure.is_share,
            "sides": {
                side: mean_score(list(values.values()), is_share=measure.is_share)
                for side, values in measure.values.items()
            },
            "differences": [_difference(measure, a, b) for a, b in contest.pairs],
            "gaps": {},
        }
        if measure is measures[0]:
            figures["gaps"] = {column: _gaps(contest, measure, column) for column in slices}
        found.append(figures)
    return found


def _difference(measure: Measure, a: str, b: str) -> dict[str, Any]:
    ours, theirs = measure.values[a], measure.values[b]
    both = [ours[key] - theirs[key] for key in ours if key in theirs]
    return {"a": a, "b": b, "estimate": score_difference(both, is_share=measure.is_share)}


def _gaps(contest: AnsweredPrompts, measure: Measure, column: str) -> dict[str, dict[str, Any]]:
    """For each side and slice: its mean, and its gap, which is that mean less the mean of the other slices."""
    found: dict[str, dict[str, Any]] = {}
    for side, values in measure.values.items():
        parts = by_slice(contest, list(values), column)
        lists = {name: [values[key] for key in keys] for name, keys in parts.items()}
        found[side] = {
            name: {
                "n": len(inside),
                "mean": mean_score(inside, is_share=measure.is_share),
                "gap": _gap(lists, name, is_share=measure.is_share),
            }
            for name, inside in lists.items()
        }
    return found


def _gap(parts: Mapping[str, Sequence[float]], name: str, *, is_share: bool) -> Estimate | None:
    """The mean of a slice less that of all others, with an interval that holds for all slices of a column at once.

    The two are of different prompts. Newcombe 1998 joins their intervals; its halves are widened from 95% to
    1 - 5% / slices (Bonferroni), since the greatest of several gaps is the one that is looked at.
    """
    inside = parts[name]
    outside = [value for other, values in parts.items() if other != name for value in values]
    if min(len(inside), len(outside)) < LEAST_IN_SLICE:
        return None
    one, two = mean_score(inside, is_share=is_share), mean_score(outside, is_share=is_share)
    assert one is not None and two is not None
    comparisons = 1 if len(parts) == 2 else len(parts)
    wider = NormalDist().inv_cdf(1 - 0.025 / comparisons) / NormalDist().inv_cdf(0.975)
    gap = one["value"] - two["value"]
    low = gap - wider * math.hypot(one["value"] - one["ci"][0], two["ci"][1] - two["value"])
    high = gap + wider * math.hypot(one["ci"][1] - one["value"], two["value"] - two["ci"][0])
    if is_share:
        low, high = max(-1.0, low), min(1.0, high)
    return Estimate(value=gap, ci=(low, high), n=len(inside))
