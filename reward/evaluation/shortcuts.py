"""Shortcuts that a reward model may use instead of quality: length, the end of an answer, a few words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alignment.data.records import Comparison
from alignment.intervals import Estimate, bootstrap_mean, bootstrap_sums
from reward.evaluation.calibration import Array
from reward.evaluation.judged import RESAMPLES, ScoredPair, accuracy, agreed_share, order, scored_pairs, vote_accuracy
from reward.questions import Question

Score = Callable[[Sequence[Question]], Sequence[Sequence[float]]]
"""Scores of each completion of each question, in order."""

_MOST_WITHOUT_EOS = 1000


def length(pairs: Sequence[ScoredPair], groups: Sequence[Hashable]) -> dict[str, Any]:
    """The accuracy of preferring the longer answer, and the correlation of scores with length.

    `ahead` is the accuracy of the model minus that of the better of the rules "longer" and "shorter". It is paired on
    the same votes, so its interval is narrower than that of two separate accuracies.
    """
    comparisons = [pair.comparison for pair in pairs]
    baseline = vote_accuracy(comparisons, lambda index: order(*pairs[index].lengths))
    rule, ahead = "longer", None
    if baseline is not None:
        rule = "longer" if baseline["value"] >= 0.5 else "shorter"
        sign = 1 if rule == "longer" else -1
        decided = [pair for pair in pairs if pair.comparison.count("tie") < len(pair.comparison.votes)]
        weights = [len(pair.comparison.votes) - pair.comparison.count("tie") for pair in decided]
        differences = [
            agreed_share(pair.comparison, order(*pair.scores))
            - agreed_share(pair.comparison, order(sign * pair.lengths[0], sign * pair.lengths[1]))
            for pair in decided
        ]
        ahead = bootstrap_mean(differences, [pair.comparison.group for pair in decided], weights) | {"n": sum(weights)}
    return {
        "baseline": baseline,
        "rule": rule,
        "ahead": ahead,
        "correlation": rank_correlation(
            [pair.delta for pair in pairs], [pair.lengths[0] - pair.lengths[1] for pair in pairs], groups
        ),
    }


def rank_correlation(
    differences: Sequence[float], others: Sequence[float], groups: Sequence[Hashable]
) -> Estimate | None:
    """Spearman's correlation of two differences between the sides of pairs, with an interval over prompts.

    Each pair counts in both orders, because the order is arbitrary; both means are then 0. Ranks are kept through the
    resampling. None if one of the two does not vary.
    """
    a, b = _signed_ranks(np.asarray(differences, dtype=np.float64)), _signed_ranks(np.asarray(others, dtype=np.float64))
    if not a.any() or not b.any():
        return None
    return bootstrap_sums(
        (a * b, a * a, b * b),
        lambda ab, aa, bb: ab / np.sqrt(np.maximum(aa * bb, 1e-12)),
        groups,
        num_resamples=RESAMPLES,
    )


def _signed_ranks(values: Array) -> Array:
    """Centered ranks of the values among themselves and their negatives; ties have their mean rank."""
    doubled = np.concatenate([values, -values])
    _, inverse, counts = np.unique(doubled, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[inverse] - (len(doubled) + 1) / 2
    return ranks[: len(values)]


def cut_eos(questions: Sequence[Question]) -> list[Question]:
    """The questions without the last token of each completion; those with an empty completion are left out."""
    return [
        replace(question, completion_ids=[ids[:-1] for ids in question.completion_ids])
        for question in questions
        if all(len(ids) > 1 for ids in question.completion_ids)
    ]


def without_eos(questions: Sequence[Question], scores: Sequence[Sequence[float]], score: Score) -> dict[str, Any]:
    """The scores of answers without EOS, as PPO sees them in truncated rollouts.

    `moved` is the mean change of a score, to be compared with `spread`, the scores' standard deviation.
    """
    indices = [index for index, question in enumerate(questions) if cut_eos([question])]
    indices = indices[:: math.ceil(len(indices) / _MOST_WITHOUT_EOS) or 1]
    if not indices:
        return {"questions": 0}
    before = [list(map(float, scores[index])) for index in indices]
    after = [list(map(float, row)) for row in score(cut_eos([questions[index] for index in indices]))]
    whole, cut = (scored_pairs([questions[index] for index in indices], rows) for rows in (before, after))
    moves = [
        b - a
        for before_row, after_row in zip(before, after, strict=True)
        for a, b in zip(before_row, after_row, strict=True)
    ]
    owners = [index for index, row in zip(indices, before, strict=True) for _ in row]
    flips = [float(np.sign(a.delta) != np.sign(b.delta)) for a, b in zip(whole, cut, strict=True)]
    return {
        "questions": len(indices),
        "moved": bootstrap_mean(moves, owners, num_resamples=RESAMPLES),
        "largest": max(map(abs, moves)),
        "spread": float(np.std([value for row in before for value in row])),
        "flips": bootstrap_mean(flips, [pair.comparison.group for pair in whole], num_resamples=RESAMPLES),
        "accuracy": accuracy(cut, RESAMPLES),
    }


def near_duplicates(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Score differences of pairs that share four fifths of their words; they should be smaller than those of others."""

    def alike(row: Comparison) -> bool:
        first_words, second_words = (set(re.findall(r"\w+", text.casefold())) for text in (row.first, row.second))
        return len(first_words & second_words) >= 0.8 * len(first_words | second_words)

    is_near = np.array([alike(pair.comparison) for pair in pairs])
    sizes = np.array([abs(pair.delta) for pair in pairs])
    return {
        "n": int(is_near.sum()),
        "median_difference": _median(sizes[is_near]),
        "others": {"n": int((~is_near).sum()), "median_difference": _median(sizes[~is_near])},
    }


def ties(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Score differences of pairs with mostly tie votes; they should be smaller than those of other pairs."""
    tied = np.array([2 * pair.comparison.count("tie") > len(pair.comparison.votes) for pair in pairs])
    sizes = np.array([abs(pair.delta) for pair in pairs])
    return {
        "n": int(tied.sum()),
        "median_difference": _median(sizes[tied]),
        "others": {"n": int((~tied).sum()), "median_difference": _median(sizes[~tied])},
    }


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
