"""A run folder as it is read: by the report, the terminal, W&B's replay and the reviewer's commands.

Any line may be missing its end, since the run may be writing it or have been killed while it did.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.runs.journal import FILES
from alignment.runs.run import Run

HUGE = 1e300
"""What is beyond is as good as not finite: the span of an axis would not be."""
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

    def put(self, step: int, value: float | None) -> None:
        """Add a value in the order of steps: the judgement of the best model comes last and is of an earlier one. Of
        two values of a step the later one stands."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)
            return
        place = bisect.bisect_left(self.steps, step)
        if self.steps[place : place + 1] == [step]:
            self.values[place] = value
        else:
            self.steps.insert(place, step)
            self.values.insert(place, value)


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run has written down.

    Args:
        stage: `sft`, `reward` or `ppo`.
        metrics: by name; `times` are seconds since the epoch of the rows of metrics.jsonl, by step.
        exit: what `exit.json` says; None while the run goes on, or where it was killed.
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
            UserError: it is none, or its config cannot be read.
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
        """The step that the published model is of, where the best one was kept."""
        events = self.of_kind("published")
        step = events[-1].get("best_step") if events else None
        return step if isinstance(step, int) else None

    def figure(self, name: str) -> tuple[int, float] | None:
        """Step and value of a metric: of an evaluation the published model's, of anything else the last finite one.

        The published model was chosen on some of the held-out prompts. What was published with it is of the others, and
        goes before what its evaluation said of all."""
        series = self.metrics.get(name, Series())
        known = {step: value for step, value in zip(series.steps, series.values, strict=True) if value is not None}
        if not known:
            return None
        of_published = self.published_step in known and name.startswith("eval/")
        step = self.published_step if of_published and self.published_step is not None else max(known)
        published = self.of_kind("published")
        reported = published[-1].get(name.replace("/", "_", 1)) if of_published and published else None
        return step, float(reported) if isinstance(reported, int | float) else known[step]


def add_metrics(row: Mapping[str, Any], metrics: dict[str, Series], times: dict[int, float]) -> None:
    """Add a row of metrics.jsonl to what was read before it; what is no number was written by no run of ours."""
    step, time = row.get("step"), row.get("time")
    if not isinstance(step, int):
        return
    times[step] = float(time) if isinstance(time, int | float) else 0.0
    for name, value in row.items():
        if name not in ("step", "time") and (value is None or isinstance(value, int | float)):
            known = value is not None and abs(value) < HUGE
            metrics.setdefault(name, Series()).put(step, value if known else None)


def read_config(path: Path) -> dict[str, Any]:
    """A run's resolved config.

    Raises:
        UserError: the folder has none, or it cannot be read.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is no run folder: it has no config.json; see `alignment runs list`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read ({error}); the run has to be started again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'} holds no config; the run has to be started again")
    return config


def read_exit(path: Path) -> dict[str, Any] | None:
    """What a run left in exit.json; None while it goes on, or where it was killed."""
    try:
        ended = json.loads((path / "exit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ended if isinstance(ended, dict) else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON lines file, in order; none where there is no file."""
    try:
        yield from parse_rows(path.read_bytes())
    except FileNotFoundError:
        return


def parse_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines; what is none is passed over."""
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def known_events(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events without those that lack a field that is read everywhere: they were written by no run of ours."""
    for row in rows:
        fields = _FIELDS.get(str(row.get("event")), {})
        if all(isinstance(row.get(name), kind) for name, kind in fields.items()):
            yield row


def find_runs(folder: Path) -> list[Path]:
    """Run folders in a folder, the newest first."""
    found = [path.parent for path in folder.glob("*/config.json")]
    return sorted(found, key=lambda path: max((p.stat().st_mtime for p in _journals(path)), default=0.0), reverse=True)


def _journals(path: Path) -> list[Path]:
    return [file for name in (*(f"{name}.jsonl" for name in FILES), "config.json") if (file := path / name).exists()]


def stage_of(config: dict[str, Any]) -> str:
    """Each stage's config has a section that no other has."""
    return next((stage for stage in ("ppo", "reward") if isinstance(config.get(stage), dict)), "sft")
