"""Metrics of a reward model on held-out ratings, with baselines that expose shortcuts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from alignment.data.records import CHOICES
from alignment.intervals import bootstrap_mean, bootstrap_sums
from alignment.ratings.reachable import agreement_shares
from reward.evaluation import calibration
from reward.evaluation.calibration import Array
from reward.evaluation.judged import RESAMPLES, ScoredPair, accuracy, order, scored_pairs, sides
from reward.evaluation.shortcuts import Score, length, near_duplicates, ties, without_eos
from reward.evaluation.slices import slices
from reward.questions import Question

_HISTOGRAM_BINS = 24
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PROMPT_CHARACTERS, _ANSWER_CHARACTERS = 1000, 2000


def evaluate(
    questions: Sequence[Question],
    scores: Sequence[Sequence[float]],
    score: Score,
    *,
    members: Sequence[Sequence[Sequence[float]]] = (),
    rating_offset: float = 0.0,
) -> dict[str, Any]:
    """The metrics on held-out questions, each with its number of values (`n`).

    Intervals resample prompts. Accuracies count votes without ties. `log_loss` weights pairs as training does, by
    votes / C(K,2), so that chance is ln 2 and the metric equals the training loss (without margins).

    Args:
        scores: the published model's scores of the completions of each question.
        score: the same model, which also scores answers without EOS.
        members: for an ensemble, the scores of each member, as `scores`.
        rating_offset: added to a score before it is compared with a rating (`Question.ratings`).
    """
    pairs = scored_pairs(questions, scores)
    groups = [pair.comparison.group for pair in pairs]
    report: dict[str, Any] = {
        "questions": len(questions),
        "prompts": len(set(groups)),
        "pairs": len(pairs),
        "votes": {choice: sum(pair.comparison.count(choice) for pair in pairs) for choice in CHOICES},
        "accuracy": accuracy(pairs),
    }
    if not pairs:
        return report | {"ratings": _ratings(questions, scores, rating_offset)}
    delta = np.array([pair.delta for pair in pairs])
    target = np.array([pair.comparison.target for pair in pairs])
    votes = np.array([len(pair.comparison.votes) for pair in pairs], dtype=np.float64)
    sure, agreed = calibration.confidence(delta), calibration.agreement(delta, target)
    weights = [pair.comparison.weight for pair in pairs]
    return report | {
        "shared": _shared(pairs, groups),
        "log_loss": bootstrap_mean(calibration.log_loss(delta, target), groups, weights),
        "ece": {"value": calibration.ece(sure, agreed, votes), "n": len(pairs)},
        "ece_if_calibrated": calibration.calibrated_ece(scores, [pair.place for pair in pairs], votes),
        "confidence": bootstrap_mean(sure, groups, votes, num_resamples=RESAMPLES),
        "agreement": bootstrap_mean(agreed, groups, votes, num_resamples=RESAMPLES),
        "reliability": calibration.reliability(sure, agreed, votes, groups),
        "length": length(pairs, groups),
        "by": slices(pairs),
        "ties": ties(pairs),
        "near_duplicates": near_duplicates(pairs),
        "scores": _histogram(pairs),
        "without_eos": without_eos(questions, scores, score),
        "ensemble": _ensemble(questions, pairs, members) if len(members) > 1 else None,
        "ratings": _ratings(questions, scores, rating_offset),
        "samples": _samples(pairs),
    }


def _shared(pairs: Sequence[ScoredPair], groups: Sequence[Hashable]) -> dict[str, Any] | None:
    """Agreement on pairs that two or more people decided, on the same votes: the model, one person, and the best
    possible model. None if there is no such pair."""
    votes = [[vote.choice for vote in pair.comparison.cast] for pair in pairs]
    labelers = [[vote.labeler for vote in pair.comparison.cast] for pair in pairs]
    shares = agreement_shares(votes, groups, [order(*pair.scores) for pair in pairs], labelers=labelers)
    return None if shares is None else shares._asdict()


def _histogram(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Histograms of the scores of preferred and other completions with common bins; the outer bins hold outliers."""
    preferred, other = sides(pairs)
    values = np.array(preferred + other)
    if not len(values):
        return {"n": 0}
    low, high = np.quantile(values, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), _HISTOGRAM_BINS + 1)
    histogram: dict[str, Any] = {"n": len(values) // 2, "edges": edges.tolist()}
    for name, side in (("preferred", preferred), ("other", other)):
        counts = np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0]
        quantiles = {f"{q:.0%}": float(np.quantile(side, q)) for q in _QUANTILES}
        histogram[name] = {
            "counts": counts.tolist(),
            "mean": float(np.mean(side)),
            "sd": float(np.std(side)),
            "quantiles": quantiles,
        }
    return histogram


def _ensemble(
    questions: Sequence[Question], pairs: Sequence[ScoredPair], members: Sequence[Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Agreement of the members, and the accuracy on the pairs with most and least agreement."""
    pairs_by_member = [scored_pairs(questions, scores) for scores in members]
    deltas = np.array([[pair.delta for pair in row] for row in pairs_by_member])
    groups = [pair.comparison.group for pair in pairs]
    split = np.abs(np.sign(deltas).sum(0)) < len(members)
    spread = deltas.std(0)
    by_spread = np.argsort(spread, kind="stable")
    half = len(pairs) // 2
    return {
        "members": len(members),
        "accuracy": [accuracy(row, RESAMPLES) for row in pairs_by_member],
        "spread": bootstrap_mean(spread, groups, num_resamples=RESAMPLES),
        "split": bootstrap_mean(split.astype(float), groups, num_resamples=RESAMPLES),
        "most_agreed": accuracy([pairs[index] for index in by_spread[:half]], RESAMPLES),
        "least_agreed": accuracy([pairs[index] for index in by_spread[half:]], RESAMPLES),
    }


def _ratings(questions: Sequence[Question], scores: Sequence[Sequence[float]], offset: float) -> dict[str, Any] | None:
    """For a regression model: squared error, the squared error of a constant prediction, and correlation."""
    rows = [
        (float(score) + offset, float(rating), index)
        for index, (question, row) in enumerate(zip(questions, scores, strict=True))
        for score, rating in zip(row, question.ratings, strict=False)
        if rating is not None
    ]
    if not rows:
        return None
    predictions, rated, owners = (list(column) for column in zip(*rows, strict=True))
    x, y = np.array(predictions), np.array(rated)
    metrics: dict[str, Any] = {
        "squared_error": bootstrap_mean(((x - y) ** 2), owners, num_resamples=RESAMPLES),
        "squared_error_of_the_mean": float(y.var()),
        "correlation": None,
    }
    if x.std() and y.std():
        a, b = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
        metrics["correlation"] = bootstrap_sums(
            (a, b, a * b, a * a, b * b, np.ones_like(a)), _pearson, owners, num_resamples=RESAMPLES
        )
    return metrics


def _pearson(a: Array, b: Array, ab: Array, aa: Array, bb: Array, n: Array) -> Array:
    covariance, variances = ab - a * b / n, (aa - a * a / n) * (bb - b * b / n)
    result: Array = covariance / np.sqrt(np.maximum(variances, 1e-12))
    return result


def _samples(pairs: Sequence[ScoredPair]) -> dict[str, list[dict[str, Any]]]:
    """The most confident errors and the closest calls, one pair per question."""
    decided = [pair for pair in pairs if pair.comparison.count("first") != pair.comparison.count("second")]
    wrong = [p for p in decided if p.delta * (p.comparison.count("first") - p.comparison.count("second")) < 0]
    return {
        "wrong": _one_each(sorted(wrong, key=lambda pair: -abs(pair.delta)), 8),
        "close": _one_each(sorted(decided, key=lambda pair: abs(pair.delta)), 4),
    }


def _one_each(pairs: Sequence[ScoredPair], count: int) -> list[dict[str, Any]]:
    by_question: dict[int, ScoredPair] = {}
    for pair in pairs:
        by_question.setdefault(pair.place[0], pair)
    return [_sample(pair) for pair in list(by_question.values())[:count]]


def _sample(pair: ScoredPair) -> dict[str, Any]:
    """A pair as a sample for the page, the model's preferred answer first."""
    row = pair.comparison
    sides = [(pair.scores[0], row.first, row.count("first")), (pair.scores[1], row.second, row.count("second"))]
    return {
        "place": row.place,
        "prompt": [{"role": turn["role"], "content": _end_of(turn["content"])} for turn in row.prompt[-3:]],
        "earlier_turns": max(0, len(row.prompt) - 3),
        "probability": float(calibration.confidence(np.array(pair.delta))),
        "ties": row.count("tie"),
        "answers": [
            {"score": score, "votes": votes, "text": _start_of(text)}
            for score, text, votes in sorted(sides, key=lambda side: -side[0])
        ],
    }


def _start_of(text: str) -> str:
    return text if len(text) <= _ANSWER_CHARACTERS else text[:_ANSWER_CHARACTERS] + " …"


def _end_of(text: str) -> str:
    """The end of a long text: a prompt may have passages above the question."""
    return text if len(text) <= _PROMPT_CHARACTERS else "… " + text[-_PROMPT_CHARACTERS:]
