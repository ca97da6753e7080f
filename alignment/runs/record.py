"""Reading a run folder: for the report, the terminal, W&B's replay and the reviewer's commands.

The last line of a file may be cut, since the run may be writing it or may have been killed meanwhile.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from alignment.errors import UserError
from alignment.files import read_file
from alignment.runs.journal import FILES
from alignment.runs.run import Run, read_exit
from alignment.runs.series import MAX_MAGNITUDE, Series, SeriesTable, Times

_FIELDS: dict[str, dict[str, type]] = {
    "watching": {"names": list},
    "finding": {"name": str, "step": int, "level": str, "text": str},
    "cleared": {"name": str, "step": int},
    "not_measured": {"name": str, "step": int, "text": str},
    "not_finite": {"step": int, "names": list},
    "published": {"model": str},
    "histogram": {"name": str, "step": int, "edges": list, "counts": list},
}


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
    times: Times
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
        table = SeriesTable(read_rows(path / "metrics.jsonl"))
        events = list(known_events(read_rows(path / "events.jsonl")))
        samples = list(read_rows(path / "samples.jsonl"))
        return cls(
            path, stage_of(config), config, Run.read(path) or Run(), table.series(), table.times(), samples, events,
            read_exit(path),
        )  # fmt: skip

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.path.name))

    @property
    def last_step(self) -> int:
        return self.times.last_step

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
        chosen = self.published_step if name.startswith("eval/") else None
        if chosen is not None and (value := series.at(chosen)) is not None:
            published = self.of_kind("published")
            reported = published[-1].get(name.replace("/", "_", 1)) if published else None
            return chosen, float(reported) if isinstance(reported, int | float) else value
        return series.last_point


def add_metrics(row: Mapping[str, Any], metrics: dict[str, Series], times: MutableMapping[int, float]) -> None:
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
    with open_rows(path) as file:
        yield from parse_rows(file)


@contextmanager
def open_rows(path: Path) -> Iterator[BinaryIO]:
    """A file of JSON lines, to be read line by line; an empty one if there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            yield file
    except FileNotFoundError:
        yield BytesIO()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects in JSON lines; other lines are skipped."""
    for line in lines:
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
