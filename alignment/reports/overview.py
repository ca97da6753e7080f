"""Overview of a run: its state, progress, speed and main metrics; also finds runs by name."""

from __future__ import annotations

import difflib
import math
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from alignment.errors import UserError
from alignment.files import host_name, is_alive
from alignment.reports.verdicts import ENDED, Verdict, verdicts
from alignment.runs import metrics as declared
from alignment.runs.record import RunRecord, Series, find_runs

State = Literal["running", "done", "failed", "preempted", "killed"]
SILENT_SECONDS = 6 * 3600
"""Seconds without output after which a run counts as killed, if its process cannot be checked."""
RECENT_STEPS = 20
"""Number of steps over which the speed is measured."""
MAIN: dict[str, tuple[str, ...]] = {
    "sft": ("eval/loss", "train/loss", "eval/mean_token_accuracy", "train/mean_token_accuracy", "train/grad_norm",
            "train/tokens_per_second", "train/entropy", "train/learning_rate"),
    "reward": ("eval/accuracy", "eval/loss", "train/loss", "train/accuracy", "eval/ece", "train/mean_reward",
               "train/grad_norm", "train/learning_rate"),
    "ppo": ("eval/win_rate", "eval/score", "eval/held_out_score", "rollout/score", "rollout/kl", "policy/entropy",
            "rollout/length", "rollout/ended", "value/explained_variance", "policy/clip_fraction"),
}  # fmt: skip
"""Main metrics for reviewers by stage, the most important first."""


def find_run(name: str, runs: Path) -> Path:
    """The folder of a run, given its name or path.

    Raises:
        UserError: there is no such run; the message names similar ones.
    """
    for path in (runs / name, Path(name)):
        if (path / "config.json").is_file():
            return path
    known = sorted(path.name for path in find_runs(runs))
    if close := difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.5):
        hint = f"did you mean {', '.join(close)}?"
    else:
        hint = f"it has {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "it has none"
    raise UserError(f"no run {name!r} in {runs} ({hint}); give its name, its folder, or --runs FOLDER")


def state_of(record: RunRecord, now: float | None = None) -> State:
    """The state of a run. Without exit.json, it is killed if its process on this host has ended, or if it has been
    silent for SILENT_SECONDS."""
    if record.exit is not None:
        code = record.exit.get("code")
        return "done" if code == 0 else "preempted" if code == 75 else "failed"
    attempt = record.run.attempts[-1] if record.run.attempts else None
    if attempt and attempt.pid is not None and attempt.host == host_name() and not is_alive(attempt.pid):
        return "killed"
    return "running" if age(record, now) < SILENT_SECONDS else "killed"


def verdicts_now(record: RunRecord, now: float | None = None) -> list[Verdict]:
    """All verdicts; a running run has none on its end."""
    running = state_of(record, now) == "running"
    return [verdict for verdict in verdicts(record) if not (running and verdict.name == ENDED)]


def age(record: RunRecord, now: float | None = None) -> float:
    """Seconds since the run's last output."""
    times = [when for event in record.events[-1:] if isinstance(when := event.get("time"), int | float)]
    if record.times:
        times.append(record.times[record.last_step])
    times += [attempt.started_at.timestamp() for attempt in record.run.attempts[-1:]]
    if not times:
        times = [(record.path / "config.json").stat().st_mtime]
    return max(0.0, (time.time() if now is None else now) - max(times))


def total_steps(record: RunRecord) -> int | None:
    """The planned number of steps; None if unknown, for example before the length of an epoch is known."""
    training: dict[str, Any] = record.config.get("training") or {}
    steps, epochs = training.get("max_steps"), training.get("num_train_epochs")
    members = training.get("members") or 1
    if isinstance(steps, int) and steps > 0:
        return steps * members
    series = record.metrics.get("train/epoch")
    if not isinstance(epochs, int | float) or series is None or not series.last or members != 1:
        return None
    return round(series.steps[-1] * epochs / series.last)


def step_seconds(record: RunRecord) -> float | None:
    """Seconds per step over the last RECENT_STEPS lines of this attempt; None if there are too few."""
    started = record.run.attempts[-1].started_at.timestamp() if record.run.attempts else 0.0
    started = math.floor(1000 * started) / 1000  # rounded like the times in the journal
    steps = [step for step in record.times.recent(RECENT_STEPS + 1) if record.times[step] >= started]
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return (record.times[steps[-1]] - record.times[steps[0]]) / (steps[-1] - steps[0])


def seconds_left(record: RunRecord) -> float | None:
    """Seconds to the last step at the current speed; None if unknown."""
    total, seconds = total_steps(record), step_seconds(record)
    return None if total is None or seconds is None else seconds * max(0, total - record.last_step)


def series_of(record: RunRecord, name: str) -> tuple[str, Series] | None:
    """A metric and its name in the journal. In an ensemble, the first member has the plain name; otherwise it is the
    newest member's metric."""
    if name in record.metrics:
        members = [name]
    else:
        pattern = re.compile(rf"member-\d+/{re.escape(name)}")
        members = [key for key in record.metrics if pattern.fullmatch(key)]
    newest = max(members, key=lambda key: record.metrics[key].steps[-1], default=None)
    return None if newest is None else (newest, record.metrics[newest])


def main_series(record: RunRecord) -> list[tuple[str, Series]]:
    """The stage's main metrics that the run has."""
    candidates = (series_of(record, name) for name in MAIN[record.stage])
    return [metric for metric in candidates if metric is not None and metric[1].last is not None]


def interval(record: RunRecord, name: str) -> tuple[float, float] | None:
    """The 95% interval of a metric's last value, if it was journaled."""
    low, high = (record.metrics.get(f"{name}_{end}", Series()).last for end in ("low", "high"))
    if low is not None and high is not None:
        return low, high
    published = record.of_kind("published")
    estimate = published[-1].get(name.removeprefix("eval/")) if published else None
    if not name.startswith("eval/") or not isinstance(estimate, dict):
        return None
    ends = estimate.get("ci")
    shown = record.figure(name)
    same = shown is not None and estimate.get("value") == shown[1]
    return (ends[0], ends[1]) if same and isinstance(ends, list) and len(ends) == 2 else None


def published_as(record: RunRecord) -> str:
    """The published model, with its step if the best one was kept."""
    if record.published is None:
        return "nothing"
    return record.published + (f", of step {record.published_step}" if record.published_step is not None else "")


def number(value: float | None, unit: str = "") -> str:
    """A value with its unit, or "not finite"."""
    return "not finite" if value is None else f"{value:.4g}" + (f" {unit}" if unit not in ("", "share") else "")


def unit_of(record: RunRecord, name: str) -> str:
    metric = declared.find(record.stage, name)
    return metric.unit if metric else ""


def span(seconds: float) -> str:
    """A duration for people: 42 s, 7 min, 3.5 h, 12 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
