"""Reading a run folder: for the report, the terminal, W&B's replay and the reviewer's commands.

The last line of a file may be cut, since the run may be writing it or may have been killed meanwhile.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.files import read_file
from alignment.runs.journal import FILES
from alignment.runs.run import Run, read_exit

MAX_MAGNITUDE = 1e300
"""Larger values count as not finite: the span of a chart's axis would overflow."""
_FIELDS: dict[str, dict[str, type]] = {
    "watching": {"names": list},
    "finding": {"name": str, "step": int, "level": str, "text": str},
    "cleared": {"name": str, "step": int},
    "not_measured": {"name": str, "step": int, "text": str},
    "published": {"model": str},
    "histogram": {"name": str, "step": int, "edges": list, "counts": list},
}


@dataclass(frozen=True)
class Series:
    """A metric over the steps that have it; a value that was not finite is None."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for value in reversed(self.values) if value is not None), None)

    def insert(self, step: int, value: float | None) -> None:
        """Insert a value in step order; a second value for a step replaces the first.

        The evaluation of the best model is written last and belongs to an earlier step.
        """
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)
            return
        index = bisect.bisect_left(self.steps, step)
        if self.steps[index : index + 1] == [step]:
            self.values[index] = value
        else:
            self.steps.insert(index, step)
            self.values.insert(index, value)


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run has written.

    Args:
        stage: `sft`, `reward` or `ppo`.
        metrics: by name.
        times: seconds since the epoch of each row of metrics.jsonl, by step.
        exit: contents of `exit.json`; None while the run is in progress, or if it was killed.
    """

    path: Path
    stage: str
    config: dict[str, Any]
    run: Run
    metrics: dict[str, Series]
    times: dict[int, float]
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    exit: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a run folder.

        Raises:
            UserError: it is not a run folder, or its config cannot be read.
        """
        config = read_config(path)
        metrics: dict[str, Series] = {}
        times: dict[int, float] = {}
        for row in read_rows(path / "metrics.jsonl"):
            add_metrics(row, metrics, times)
        events = list(known_events(read_rows(path / "events.jsonl")))
        samples = list(read_rows(path / "samples.jsonl"))
        return cls(
            path, stage_of(config), config, Run.read(path) or Run(), metrics, times, samples, events, read_exit(path)
        )

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.path.name))

    @property
    def last_step(self) -> int:
        return max(self.times, default=0)

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds, in order."""
        return [event for event in self.events if event.get("event") in kinds]

    @property
    def published(self) -> str | None:
        """Reference of the model that the run published."""
        events = self.of_kind("published")
        return events[-1]["model"] if events else None

    @property
    def published_step(self) -> int | None:
        """The step of the published model, if the best one was kept."""
        events = self.of_kind("published")
        step = events[-1].get("best_step") if events else None
        return step if isinstance(step, int) else None

    def figure(self, name: str) -> tuple[int, float] | None:
        """Step and value of a metric: for `eval/` metrics the published model's, for others the last finite one.

        The published model was chosen on some of the held-out prompts. The value published with it is measured on the
        others, and takes precedence over its evaluation on all prompts.
        """
        series = self.metrics.get(name, Series())
        values = {step: value for step, value in zip(series.steps, series.values, strict=True) if value is not None}
        if not values:
            return None
        is_published = self.published_step in values and name.startswith("eval/")
        step = self.published_step if is_published and self.published_step is not None else max(values)
        published = self.of_kind("published")
        reported = published[-1].get(name.replace("/", "_", 1)) if is_published and published else None
        return step, float(reported) if isinstance(reported, int | float) else values[step]


def add_metrics(row: Mapping[str, Any], metrics: dict[str, Series], times: dict[int, float]) -> None:
    """Add a row of metrics.jsonl to the series; fields that are not numbers are ignored."""
    step, time = row.get("step"), row.get("time")
    if not isinstance(step, int):
        return
    times[step] = float(time) if isinstance(time, int | float) else 0.0
    for name, value in row.items():
        if name not in ("step", "time") and (value is None or isinstance(value, int | float)):
            is_usable = value is not None and abs(value) < MAX_MAGNITUDE
            metrics.setdefault(name, Series()).insert(step, value if is_usable else None)


def read_config(path: Path) -> dict[str, Any]:
    """A run's resolved config.

    Raises:
        UserError: the folder has no config, or it cannot be read.
    """
    try:
        config = json.loads(read_file(path / "config.json"))
    except FileNotFoundError:
        raise UserError(f"{path} is no run folder: it has no config.json; see `alignment runs list`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read ({error}); the run has to be started again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'} holds no config; the run has to be started again")
    return config


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a JSON lines file, in order; none if there is no file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    yield from parse_rows(data)


def parse_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects in JSON lines; other lines are skipped."""
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def known_events(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events that have the fields which every reader needs; events of other programs may not."""
    for row in rows:
        fields = _FIELDS.get(str(row.get("event")), {})
        if all(isinstance(row.get(name), kind) for name, kind in fields.items()):
            yield row


def find_runs(folder: Path) -> list[Path]:
    """Run folders in a folder, the newest first."""
    runs = [path.parent for path in folder.glob("*/config.json")]
    return sorted(runs, key=lambda path: max((p.stat().st_mtime for p in _journals(path)), default=0.0), reverse=True)


def _journals(path: Path) -> list[Path]:
    return [file for name in (*(f"{name}.jsonl" for name in FILES), "config.json") if (file := path / name).exists()]


def stage_of(config: dict[str, Any]) -> str:
    """The stage of a config, told by a section that only its stage has."""
    return next((stage for stage in ("ppo", "reward") if isinstance(config.get(stage), dict)), "sft")
