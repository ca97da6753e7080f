"""The evaluation of a reward model with several heads: each head on the pairs that were judged on its attribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.data.check import Finding
from alignment.data.check.report import LEVELS
from reward.evaluation.findings import findings, unmeasured
from reward.evaluation.metrics import evaluate
from reward.questions import Question

Reports = Mapping[str, Mapping[str, Any]]
"""The report of each head by the name of its attribute; that of a single score has the name ``."""
Scores = Sequence[Sequence[Sequence[float]]]
"""Each head's scores of the completions of each question."""


def of_head(questions: Sequence[Question], head: int) -> tuple[list[Question], list[int]]:
    """The questions with pairs on a head, with those pairs alone, and their places among all."""
    judged = [
        (replace(question, pairs=tuple(pair for pair in question.pairs if pair.head == head)), place)
        for place, question in enumerate(questions)
        if any(pair.head == head for pair in question.pairs)
    ]
    return [question for question, _ in judged], [place for _, place in judged]


def evaluate_heads(
    names: Sequence[str], questions: Sequence[Question], scores: Scores, score: Callable[[Sequence[Question]], Scores]
) -> dict[str, dict[str, Any]]:
    """`evaluate` of each head.

    Args:
        score: gives the scores of other questions.
    """
    reports = {}
    for head, name in enumerate(names):
        judged, places = of_head(questions, head)

        def score_head(others: Sequence[Question], head: int = head) -> Sequence[Sequence[float]]:
            return score(others)[head] if others else []

        reports[name] = evaluate(judged, [scores[head][place] for place in places], score_head)
    return reports


def all_findings(reports: Reports) -> list[Finding]:
    """The findings about all heads, one for each kind, the worst first; each head is named."""
    by_kind: dict[str, list[tuple[str, Finding]]] = {}
    for name, report in reports.items():
        for finding in findings(report):
            by_kind.setdefault(finding.kind, []).append((name, finding))
    joined = []
    for kind, found in by_kind.items():
        first = min((finding for _, finding in found), key=lambda finding: LEVELS.index(finding.level))
        text = "; ".join(f"{name}: {finding.text}" if name else finding.text for name, finding in found)
        joined.append(replace(first, kind=kind, count=sum(finding.count for _, finding in found), text=text))
    return sorted(joined, key=lambda finding: LEVELS.index(finding.level))


def all_unmeasured(reports: Reports) -> dict[str, str]:
    """The kinds of findings that no head can show, each with the reason of the first."""
    missing = [unmeasured(report) for report in reports.values()]
    return {kind: why for kind, why in missing[0].items() if all(kind in other for other in missing)}
