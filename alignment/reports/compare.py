"""Runs of one stage side by side: what was set otherwise, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.errors import UserError
from alignment.reports.judges import judge_of
from alignment.reports.overview import MAIN, interval, verdicts_now
from alignment.runs import metrics as declared
from alignment.runs.record import RunRecord, Series
from alignment.runs.resume import changed_keys, value_at

LOWER_IS_BETTER = frozenset(["train/loss", "eval/loss", "eval/log_loss", "eval/ece", "value/loss", "ptx/loss"])
HIGHER_IS_BETTER = frozenset([
    "train/accuracy", "eval/accuracy", "train/mean_token_accuracy", "eval/mean_token_accuracy", "eval/score",
    "eval/held_out_score", "eval/win_rate", "eval/ended", "rollout/score", "rollout/ended", "value/explained_variance",
    "train/tokens_per_second", "rollout/tokens_per_second",
])  # fmt: skip
"""Of the others, such as the KL or the length, no end is the better one."""
FREE = ("name", "tracking", "registry")
"""Keys in which two runs differ without a difference in what they do."""


@dataclass(frozen=True)
class Figure:
    """One metric of one run; None in all where the run has no finite value of it."""

    last: float | None = None
    step: int | None = None
    ci: tuple[float, float] | None = None
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class MetricRow:
    """A metric over the runs, in their order."""

    name: str
    unit: str
    meaning: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class RunComparison:
    """Everything in the order of the runs.

    Args:
        config: by dotted key, where not all agree; None where a run has no such key.
        verdicts: outcomes by check, where one of them is no pass; None where a run was not checked for it.
        titles: what people call these checks.
        judges: who decides each run's win rate; None where it has none.
    """

    names: tuple[str, ...]
    config: dict[str, list[Any]]
    figures: list[MetricRow]
    verdicts: dict[str, list[str | None]]
    titles: dict[str, str]
    judges: list[str | None]


def compare(records: Sequence[RunRecord]) -> RunComparison:
    """Put runs side by side.

    Raises:
        UserError: they are fewer than two, or of several stages, whose figures have nothing to do with each other.
    """
    if len(records) < 2:
        raise UserError("runs compare: give two runs or more")
    stages = list(dict.fromkeys(record.stage for record in records))
    if len(stages) > 1:
        said = ", ".join(f"{record.name} is {record.stage}" for record in records)
        raise UserError(f"runs compare: runs of one stage have figures in common, and {said}; compare each stage apart")
    first, *others = (record.config for record in records)
    keys = dict.fromkeys(key for other in others for key in changed_keys(first, other, FREE))
    config = {key: [value_at(record.config, key) for record in records] for key in keys}
    outcomes, titles = _outcomes(records)
    judges = [judge.shortly if (judge := judge_of(record.config)) else None for record in records]
    return RunComparison(_labels(records), config, _rows(records), outcomes, titles, judges)


def figure(record: RunRecord, name: str) -> Figure:
    """The last value of a metric and its best one."""
    series = record.metrics.get(name, Series())
    known = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    if not known:
        return Figure()
    plain = "/".join(name.split("/")[-2:])  # of an ensemble's member as of a single model
    best_step, best = None, None
    if plain in LOWER_IS_BETTER:
        best_step, best = min(known, key=lambda pair: pair[1])
    elif plain in HIGHER_IS_BETTER:
        best_step, best = max(known, key=lambda pair: pair[1])
    step, last = known[-1]
    return Figure(last, step, interval(record, name), best, best_step)


def in_order(record: RunRecord) -> list[str]:
    """Names of a run's metrics: the main ones, then as they are declared, then the rest. The ends of an interval are
    no figures of their own."""
    rank = [*MAIN[record.stage], *(metric.name for metric in declared.STAGES[record.stage])]

    def place(name: str) -> int:
        metric = declared.find(record.stage, name)
        return rank.index(name if name in rank else metric.name) if metric else len(rank)

    ends = {f"{name}_{end}" for name in record.metrics for end in ("low", "high")}
    return sorted(record.metrics.keys() - ends, key=lambda name: (place(name), name))


def _rows(records: Sequence[RunRecord]) -> list[MetricRow]:
    rows = []
    for name in dict.fromkeys(name for record in records for name in in_order(record)):
        metric = declared.find(records[0].stage, name)
        figures = tuple(figure(record, name) for record in records)
        rows.append(MetricRow(name, metric.unit if metric else "", metric.meaning if metric else "", figures))
    return rows


def _outcomes(records: Sequence[RunRecord]) -> tuple[dict[str, list[str | None]], dict[str, str]]:
    found = [{verdict.name: verdict for verdict in verdicts_now(record)} for record in records]
    titles = {name: verdict.title for each in found for name, verdict in each.items() if verdict.outcome != "pass"}
    outcomes: dict[str, list[str | None]] = {}
    outcomes |= {name: [each[name].outcome if name in each else None for each in found] for name in titles}
    return outcomes, titles


def _labels(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Names; paths where two runs have one name."""
    names = [record.name for record in records]
    return tuple(str(record.path) if names.count(record.name) > 1 else record.name for record in records)
