"""A run folder as it is read: by the report, the terminal, W&B's replay and the reviewer's commands.

Any line may be missing its end, since the run may be writing it or have been killed while it did.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.runs import Run
from alignment.tracking.journal import FILES


@dataclass(frozen=True)
class Series:
    """A metric over the steps that have it; a value that was not finite is None."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @property
    def last(self) -> float | None:
        """The last finite value."""
        return next((value for value in reversed(self.values) if value is not None), None)


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
        events = list(read_rows(path / "events.jsonl"))
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
        return str(events[-1]["model"]) if events else None


def add_metrics(row: Mapping[str, Any], metrics: dict[str, Series], times: dict[int, float]) -> None:
    """Add a row of metrics.jsonl to what was read before it; what is no number was written by no run of ours."""
    step, time = row.get("step"), row.get("time")
    if not isinstance(step, int):
        return
    times[step] = float(time) if isinstance(time, int | float) else 0.0
    for name, value in row.items():
        if name not in ("step", "time") and (value is None or isinstance(value, int | float)):
            series = metrics.setdefault(name, Series())
            series.steps.append(step)
            series.values.append(value if value is None or math.isfinite(value) else None)


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
        except ValueError:
            continue
        if isinstance(row, dict):
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
