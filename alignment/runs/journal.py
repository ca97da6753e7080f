"""The journal: append-only JSON lines in the run folder, written by the main process and flushed line by line.

`metrics.jsonl` has one object per step, `samples.jsonl` prompts with answers, and `events.jsonl` everything else worth
a line (the backend, skipped rows, published versions, findings, histograms). `record.py` reads them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from alignment.errors import DiskError, Preempted, UserError
from alignment.redaction import without_secrets
from alignment.runs import metrics as declared
from alignment.runs.lines import LineFiles, no_room

FILES = ("metrics", "samples", "events")
Level = Literal["error", "warning", "note"]
BINS = 40
NUM_SAMPLES = 16
"""Held-out prompts whose answers are written to `samples.jsonl` at each evaluation, always the same ones."""


@dataclass(frozen=True)
class MirroredModel:
    """A published version as the mirror shows it."""

    name: str
    folder: Path
    aliases: tuple[str, ...]
    metadata: Mapping[str, Any]
    """Reference, digest, stage, role, lineage and metrics."""


class Sink(Protocol):
    """A mirror of the journal (`tracking/wandb_sink.py`). A call that fails must not stop the run."""

    @property
    def url(self) -> str | None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None: ...
    def mirror(self, model: MirroredModel) -> bool: ...
    def summary(self, fields: Callable[[], Mapping[str, str]]) -> None: ...
    def finish(self, failed: bool = False) -> None: ...


class Recorder(Protocol):
    """The part of a journal that trainers write to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def finding(self, step: int, name: str, level: Level, text: str) -> None: ...
    def cleared(self, step: int, name: str) -> None: ...
    def event(self, kind: str, **fields: Any) -> None: ...


class Journal:
    """Writes a run's files and mirrors the metrics to a sink.

    Args:
        run_dir: the run folder; made if it is missing.
        sink: mirror of the metrics, or None.
        stage: the stage whose metrics `metrics.py` declares; None for a journal outside of a stage.
        enabled: False on every process but the main one; all calls then do nothing.
        resume: size in bytes of each file at the checkpoint. Later lines are from steps that will be repeated;
            `mark_resumed` truncates them. Nothing is written before it, since it is in the files already.
        summary: maps the exit code to extra fields of the sink's summary.
    """

    def __init__(
        self,
        run_dir: Path,
        sink: Sink | None = None,
        stage: str | None = None,
        enabled: bool = True,
        resume: Mapping[str, int] | None = None,
        summary: Callable[[int], Mapping[str, str]] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.stage = stage
        self._sink, self._summary = sink, summary
        self._strict = stage is not None and os.environ.get(declared.STRICT) == "1"
        self._lines: LineFiles | None = None
        self._resume, self._silent = resume, resume is not None
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            paths = [run_dir / f"{name}.jsonl" for name in reversed(FILES)]  # at the end, events come first
            for path in paths:
                if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
                    raise UserError(f"{path} is not a regular file; remove it, or start again with --overwrite")
            self._lines = LineFiles(paths)
            for path in paths:
                if resume is not None and path.stat().st_size < resume[path.stem]:
                    raise UserError(
                        f"{path} has {path.stat().st_size} bytes and had {resume[path.stem]} when the checkpoint was "
                        "saved: it was changed since, and resuming would leave a gap in it; put it back, or "
                        "start again with --overwrite"
                    )

    def mark_resumed(self, **fields: Any) -> None:
        """Record that the run has reached its checkpoint, and write everything from here on.

        Later lines of the attempt before are truncated now, when nothing can refuse this one any more.
        """
        if self._resume is not None and self._lines is not None:
            for name, size in self._resume.items():
                self._lines[name].cut(size)
        self._silent = False
        self.event("resumed", **fields)

    def offsets(self) -> dict[str, int]:
        """Flush the files to disk; returns the size in bytes of each.

        Raises:
            OSError: there is no room.
        """
        return {} if self._lines is None else self._lines.sync()

    @property
    def is_overdue(self) -> bool:
        """Whether lines have waited for room on the disk for too long, so that the run must end."""
        return self._lines is not None and self._lines.is_overdue

    def check_written(self) -> None:
        """Call before something is published, which a resumed run would not do again.

        Raises:
            DiskError: lines still wait for room.
        """
        try:
            self.offsets()
        except OSError as error:
            assert self._lines is not None
            raise no_room(self.run_dir, self._lines.num_bytes_waiting, error) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        preempted = kind is not None and issubclass(kind, Preempted)
        problem = self.close(failed=kind is not None and not preempted, preempted=preempted)
        if problem is not None and kind is None:  # an error in the block says more than this one
            raise problem

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step. A value that is not finite becomes null, since JSON has no NaN."""
        if self._strict:
            for name in metrics:
                declared.check(str(self.stage), name)
        self._write("metrics", {"step": step, "time": round(time.time(), 3), **metrics})
        if names := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self.event("not_finite", step=step, names=names)  # for readers that skip most of a long journal
        if self._sink is not None and not self._silent:
            self._sink.log(step, {name: value for name, value in metrics.items() if math.isfinite(value)})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write answers to the same prompts at each call.

        A row has the prompt's `id`, `prompt` (messages), `response`, and numbers about it (`score`, `kl`, `length`,
        `ended`). A reward model's rows have `first` and `second` in place of a response; SFT's have the `reference`
        that people wrote.
        """
        for row in rows:
            self._write("samples", {"step": step, **row})
        if self._sink is not None and not self._silent:
            self._sink.samples(step, rows)

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        """Write counts in bins of equal width; values that are not finite are counted separately."""
        import numpy as np  # imported late, since `python -m STAGE --help` imports this module

        if self._strict:
            declared.check(str(self.stage), name, histogram=True)
        all_values = np.asarray(values, dtype=np.float64)
        finite_values = all_values[np.isfinite(all_values)]
        if not len(finite_values):
            return
        low, high = finite_values.min(), finite_values.max()
        if high - low < 1e-9 * max(abs(low), abs(high)):  # numpy rejects a range of nearly equal values
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(finite_values, bins=BINS, range=(low, high))
        edges = np.array([float(f"{edge:.9g}") for edge in edges])
        row = {"name": name, "step": step, "edges": edges.tolist(), "counts": counts.tolist()}
        self.event("histogram", **row, not_finite=len(all_values) - len(finite_values))
        if self._sink is not None and not self._silent:
            self._sink.histogram(step, name, counts, edges)

    def watching(self, names: Sequence[str]) -> None:
        """Record the checks of this run (`alignment/reports/checks.py`); one without a finding has passed."""
        self.event("watching", names=list(names), not_finite_events=True)

    def finding(self, step: int, name: str, level: Level, text: str) -> None:
        """Record, in words, something that a reviewer should know. It holds until it is `cleared`."""
        self.event("finding", step=step, name=name, level=level, text=text)

    def not_measured(self, step: int, name: str, text: str) -> None:
        """Record that a check could not be made because its input is missing."""
        self.event("not_measured", step=step, name=name, text=text)

    def cleared(self, step: int, name: str) -> None:
        """Record that a finding no longer holds."""
        self.event("cleared", step=step, name=name)

    def event(self, kind: str, **fields: Any) -> None:
        """Record something that happened once; a text may be an error's, which may quote a secret."""
        shown = {name: without_secrets(value) if isinstance(value, str) else value for name, value in fields.items()}
        self._write("events", {"time": round(time.time(), 3), "event": kind, **shown})

    @property
    def wandb_url(self) -> str | None:
        """The address of the mirror's run; None without one, or offline."""
        return self._sink.url if self._sink is not None else None

    def mirror(self, model: MirroredModel) -> None:
        """Tell the mirror of a published model."""
        if self._sink is not None:
            self._sink.mirror(model)

    def close(self, failed: bool = False, preempted: bool = False) -> DiskError | None:
        """Flush all files to disk and end the mirror's run, with the verdict in its summary.

        Returns:
            What to say if the last lines found no room.
        """
        problem = None
        if (lines := self._lines) is not None:
            self._lines = None
            if (error := lines.close(self.run_dir)) is not None:
                problem = no_room(self.run_dir, lines.num_bytes_waiting, error)
        if self._sink is not None:
            code = 75 if preempted else 1 if failed else 0
            if (summary := self._summary) is not None:
                self._sink.summary(lambda: summary(code))
            self._sink.finish(failed or problem is not None)
        return problem

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if self._lines is not None and not self._silent:
            self._lines.write(name, (json.dumps(finite(row), ensure_ascii=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The value with None for each float that is not finite, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
