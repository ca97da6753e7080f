"""Held-out pairs with a model's scores, and their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment.data.records import Comparison
from alignment.intervals import Estimate, bootstrap_mean
from reward.questions import Question

RESAMPLES = 1000  # for secondary metrics


@dataclass(frozen=True)
class ScoredPair:
    """A held-out pair: its votes, and the scores and lengths in tokens of its two completions."""

    comparison: Comparison
    scores: tuple[float, float]
    lengths: tuple[int, int]
    place: tuple[int, int, int]
    """The index of its question, and the indices of its completions in the question."""

    @property
    def delta(self) -> float:
        return self.scores[0] - self.scores[1]


def scored_pairs(questions: Sequence[Question], scores: Sequence[Sequence[float]]) -> list[ScoredPair]:
    """All pairs with the model's scores."""
    return [
        ScoredPair(
            pair.comparison,
            (float(row[pair.first]), float(row[pair.second])),
            (len(question.completion_ids[pair.first]), len(question.completion_ids[pair.second])),
            (index, pair.first, pair.second),
        )
        for index, (question, row) in enumerate(zip(questions, scores, strict=True))
        for pair in question.pairs
    ]


def sides(pairs: Sequence[ScoredPair]) -> tuple[list[float], list[float]]:
    """Scores of the completions preferred by the majority, and of the others; pairs with equal votes are left out."""
    decided = [(pair, pair.comparison.count("first") - pair.comparison.count("second")) for pair in pairs]
    both = [pair.scores if lead > 0 else pair.scores[::-1] for pair, lead in decided if lead]
    return [better for better, _ in both], [worse for _, worse in both]


def order(a: float, b: float) -> float:
    """1 if a is larger, 0 if b is, 1/2 if they are equal."""
    return 1.0 if a > b else 0.0 if a < b else 0.5


def vote_accuracy(
    comparisons: Sequence[Comparison], first_is_better: Callable[[int], float], num_resamples: int = 2000
) -> Estimate | None:
    """Fraction of the votes without ties that an ordering agrees with, with an interval over prompt groups.

    Args:
        first_is_better: maps the index of a comparison to 1.0, 0.0, or 0.5 if the ordering has a tie.

    Returns:
        None if every vote is a tie. `n` counts votes.
    """
    values, groups, weights = [], [], []
    for index, row in enumerate(comparisons):
        votes = row.count("first") + row.count("second")
        if votes:
            values.append(agreed_share(row, first_is_better(index)))
            groups.append(row.group)
            weights.append(votes)
    if not values:
        return None
    return Estimate(**{**bootstrap_mean(values, groups, weights, num_resamples=num_resamples), "n": int(sum(weights))})


def agreed_share(row: Comparison, better: float) -> float:
    """Fraction of the decided votes that agree with an ordering (1 first, 0 second, 1/2 neither)."""
    share = row.count("first") / (row.count("first") + row.count("second"))
    return better * share + (1 - better) * (1 - share)


def accuracy(pairs: Sequence[ScoredPair], num_resamples: int = 2000) -> Estimate | None:
    """`vote_accuracy` of the model's scores."""
    return vote_accuracy([pair.comparison for pair in pairs], lambda i: order(*pairs[i].scores), num_resamples)
