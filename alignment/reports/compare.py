"""Compare runs of one stage: the differences in their configs, metrics and verdicts."""

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
"""Metrics with a better direction; others, such as KL or length, have none."""
FREE = ("name", "tracking", "registry")
"""Config keys whose difference does not affect training."""


@dataclass(frozen=True)
class Figure:
    """One metric of one run; all fields are None if the run has no finite value."""

    last: float | None = None
    step: int | None = None
    ci: tuple[float, float] | None = None
    best: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class MetricRow:
    """A metric of all runs, in their order."""

    name: str
    unit: str
    meaning: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class RunComparison:
    """The comparison; lists are in the order of the runs.

    Args:
        config: values by dotted key that differ; None if a run has no such key.
        verdicts: outcomes by check, if one is not a pass; None if a run was not checked.
        titles: the names of these checks for people.
        judges: the judge of each run's win rate; None without one.
    """

    names: tuple[str, ...]
    config: dict[str, list[Any]]
    figures: list[MetricRow]
    verdicts: dict[str, list[str | None]]
    titles: dict[str, str]
    judges: list[str | None]


def compare(records: Sequence[RunRecord]) -> RunComparison:
    """Compare runs.

    Raises:
        UserError: there are fewer than two runs, or they are of different stages.
    """
    if len(records) < 2:
        raise UserError("runs compare: give two runs or more")
    stages = list(dict.fromkeys(record.stage for record in records))
    if len(stages) > 1:
        stage_list = ", ".join(f"{record.name} is {record.stage}" for record in records)
        raise UserError(f"runs compare: runs must be of one stage, but {stage_list}; compare each stage separately")
    first, *others = (record.config for record in records)
    keys = dict.fromkeys(key for other in others for key in changed_keys(first, other, FREE))
    config = {key: [value_at(record.config, key) for record in records] for key in keys}
    outcomes, titles = _outcomes(records)
    judges = [judge.short_text if (judge := judge_of(record.config)) else None for record in records]
    return RunComparison(_labels(records), config, _rows(records), outcomes, titles, judges)


def figure(record: RunRecord, name: str) -> Figure:
    """The last value of a metric and its best one."""
    series = record.metrics.get(name, Series())
    if (newest := series.last_point) is None:
        return Figure()
    plain = "/".join(name.split("/")[-2:])  # without an ensemble member's prefix
    best_step, best = None, None
    if plain in LOWER_IS_BETTER:
        best_step, best = min(series.finite(), key=lambda pair: pair[1])
    elif plain in HIGHER_IS_BETTER:
        best_step, best = max(series.finite(), key=lambda pair: pair[1])
    step, last = newest
    return Figure(last, step, interval(record, name), best, best_step)


def in_order(record: RunRecord) -> list[str]:
    """Names of a run's metrics without the ends of intervals: the main ones, then in the order of their declaration,
    then the rest."""
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
    verdicts_by_run = [{verdict.name: verdict for verdict in verdicts_now(record)} for record in records]
    titles = {
        name: verdict.title
        for by_name in verdicts_by_run
        for name, verdict in by_name.items()
        if verdict.outcome != "pass"
    }
    outcomes: dict[str, list[str | None]] = {}
    outcomes |= {
        name: [by_name[name].outcome if name in by_name else None for by_name in verdicts_by_run] for name in titles
    }
    return outcomes, titles


def _labels(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """The runs' names, or their paths if two runs have the same name."""
    names = [record.name for record in records]
    return tuple(str(record.path) if names.count(record.name) > 1 else record.name for record in records)
