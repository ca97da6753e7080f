"""What a reward model might go by in place of what people said: length, the end of an answer, a few words."""

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
from reward.evaluation.judged import RESAMPLES, ScoredPair, accuracy, agreed_share, judged_pairs, order, vote_accuracy
from reward.questions import Question

Score = Callable[[Sequence[Question]], Sequence[Sequence[float]]]
"""Scores of each completion of each question, in order."""

_MOST_WITHOUT_EOS = 1000


def length(pairs: Sequence[ScoredPair], groups: Sequence[Hashable]) -> dict[str, Any]:
    """What preferring the longer answer would reach, and how the scores go with length.

    `ahead` is the accuracy of the model less that of the better of the two rules "longer" and "shorter", on the same
    votes: its interval is narrower than the difference of two that are drawn apart.
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

    Each pair counts both ways round, since which side comes first means nothing: both means are then 0, whatever the
    order. Ranks are kept through the resampling. None where one of the two does not vary.
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
    """Ranks of the values among themselves and their negatives, ties sharing the mean rank, less the overall mean."""
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
    """What becomes of the scores when answers do not end: where PPO cuts a rollout off, it meets such.

    `moved` is the mean change of a score, to be read beside `spread`, the scores' standard deviation.
    """
    kept = [number for number, question in enumerate(questions) if cut_eos([question])]
    kept = kept[:: math.ceil(len(kept) / _MOST_WITHOUT_EOS) or 1]
    if not kept:
        return {"questions": 0}
    before = [list(map(float, scores[number])) for number in kept]
    after = [list(map(float, row)) for row in score(cut_eos([questions[number] for number in kept]))]
    whole, cut = (judged_pairs([questions[number] for number in kept], rows) for rows in (before, after))
    moves = [b - a for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True)]
    owners = [number for number, row in zip(kept, before, strict=True) for _ in row]
    flips = [float(np.sign(a.delta) != np.sign(b.delta)) for a, b in zip(whole, cut, strict=True)]
    return {
        "questions": len(kept),
        "moved": bootstrap_mean(moves, owners, num_resamples=RESAMPLES),
        "largest": max(map(abs, moves)),
        "spread": float(np.std([value for row in before for value in row])),
        "flips": bootstrap_mean(flips, [pair.comparison.group for pair in whole], num_resamples=RESAMPLES),
        "accuracy": accuracy(cut, RESAMPLES),
    }


def near_duplicates(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Pairs whose texts share four fifths of their words: their scores should lie closer than those of other pairs."""

    def alike(row: Comparison) -> bool:
        one, other = (set(re.findall(r"\w+", text.casefold())) for text in (row.first, row.second))
        return len(one & other) >= 0.8 * len(one | other)

    near = np.array([alike(pair.comparison) for pair in pairs])
    sizes = np.array([abs(pair.delta) for pair in pairs])
    return {
        "n": int(near.sum()),
        "median_difference": _median(sizes[near]),
        "others": {"n": int((~near).sum()), "median_difference": _median(sizes[~near])},
    }


def ties(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Score differences where most votes are ties, beside the others': people who cannot tell should find the model
    less sure."""
    tied = np.array([2 * pair.comparison.count("tie") > len(pair.comparison.votes) for pair in pairs])
    sizes = np.array([abs(pair.delta) for pair in pairs])
    return {
        "n": int(tied.sum()),
        "median_difference": _median(sizes[tied]),
        "others": {"n": int((~tied).sum()), "median_difference": _median(sizes[~tied])},
    }


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None
