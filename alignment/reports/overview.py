"""A run at a glance: where it stands, how far it came, the figures that say most about it, and which run is meant."""

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
SILENT = 6 * 3600
"""Seconds without a line after which a run whose process cannot be asked for counts as killed."""
RECENT = 20
"""Steps over which the speed is taken."""
MAIN: dict[str, tuple[str, ...]] = {
    "sft": ("eval/loss", "train/loss", "eval/mean_token_accuracy", "train/mean_token_accuracy", "train/grad_norm",
            "train/tokens_per_second", "train/entropy", "train/learning_rate"),
    "reward": ("eval/accuracy", "eval/loss", "train/loss", "train/accuracy", "eval/ece", "train/mean_reward",
               "train/grad_norm", "train/learning_rate"),
    "ppo": ("eval/win_rate", "eval/score", "eval/held_out_score", "rollout/score", "rollout/kl", "policy/entropy",
            "rollout/length", "rollout/ended", "value/explained_variance", "policy/clip_fraction"),
}  # fmt: skip
"""What a reviewer looks at first, by stage, the most telling first."""


def find_run(name: str, runs: Path) -> Path:
    """The folder of a run that is named, or given by its path.

    Raises:
        UserError: there is none; names the nearest.
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
    """What became of a run. One without an end on record is killed if its process is gone from this host, or if it has
    been silent for SILENT seconds."""
    if record.exit is not None:
        code = record.exit.get("code")
        return "done" if code == 0 else "preempted" if code == 75 else "failed"
    attempt = record.run.attempts[-1] if record.run.attempts else None
    if attempt and attempt.pid is not None and attempt.host == host_name() and not is_alive(attempt.pid):
        return "killed"
    return "running" if age(record, now) < SILENT else "killed"


def verdicts_now(record: RunRecord, now: float | None = None) -> list[Verdict]:
    """All verdicts; of a run that goes on, none on how it ended."""
    running = state_of(record, now) == "running"
    return [verdict for verdict in verdicts(record) if not (running and verdict.name == ENDED)]


def age(record: RunRecord, now: float | None = None) -> float:
    """Seconds since the run last wrote something down."""
    said = [when for event in record.events[-1:] if isinstance(when := event.get("time"), int | float)]
    if record.times:
        said.append(record.times[record.last_step])
    said += [attempt.started_at.timestamp() for attempt in record.run.attempts[-1:]]
    if not said:
        said = [(record.path / "config.json").stat().st_mtime]
    return max(0.0, (time.time() if now is None else now) - max(said))


def total_steps(record: RunRecord) -> int | None:
    """Steps that the run is to have; None where its config does not say, as for epochs before the first is known."""
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
    """Seconds a step over the last RECENT lines of this attempt; None where too few are written."""
    begun = record.run.attempts[-1].started_at.timestamp() if record.run.attempts else 0.0
    begun = math.floor(1000 * begun) / 1000  # as the times in the journal are
    steps = [step for step in list(record.times)[-RECENT - 1 :] if record.times[step] >= begun]
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return (record.times[steps[-1]] - record.times[steps[0]]) / (steps[-1] - steps[0])


def seconds_left(record: RunRecord) -> float | None:
    """Seconds to the last step at the present speed; None where that is not known."""
    total, each = total_steps(record), step_seconds(record)
    return None if total is None or each is None else each * max(0, total - record.last_step)


def series_of(record: RunRecord, name: str) -> tuple[str, Series] | None:
    """A metric with the name that it is journalled by: of an ensemble's members that of the newest one that has it,
    unless the first has it, which bears the plain name."""
    if name in record.metrics:
        members = [name]
    else:
        pattern = re.compile(rf"member-\d+/{re.escape(name)}")
        members = [key for key in record.metrics if pattern.fullmatch(key)]
    found = max(members, key=lambda key: record.metrics[key].steps[-1], default=None)
    return None if found is None else (found, record.metrics[found])


def main_series(record: RunRecord) -> list[tuple[str, Series]]:
    """The stage's main metrics that the run has."""
    found = (series_of(record, name) for name in MAIN[record.stage])
    return [each for each in found if each is not None and each[1].last is not None]


def interval(record: RunRecord, name: str) -> tuple[float, float] | None:
    """The 95% interval of a metric's last value, where the run has written one down."""
    low, high = (record.metrics.get(f"{name}_{end}", Series()).last for end in ("low", "high"))
    if low is not None and high is not None:
        return low, high
    published = record.of_kind("published")
    figure = published[-1].get(name.removeprefix("eval/")) if published else None
    if not name.startswith("eval/") or not isinstance(figure, dict):
        return None
    ends = figure.get("ci")
    shown = record.figure(name)
    same = shown is not None and figure.get("value") == shown[1]
    return (ends[0], ends[1]) if same and isinstance(ends, list) and len(ends) == 2 else None


def published_as(record: RunRecord) -> str:
    """What the run published, and of which step that is where the best one was kept."""
    if record.published is None:
        return "nothing"
    return record.published + (f", of step {record.published_step}" if record.published_step is not None else "")


def number(value: float | None, unit: str = "") -> str:
    """A figure as it is shown; one that was not finite has no number."""
    return "not finite" if value is None else f"{value:.4g}" + (f" {unit}" if unit not in ("", "share") else "")


def unit_of(record: RunRecord, name: str) -> str:
    metric = declared.find(record.stage, name)
    return metric.unit if metric else ""


def span(seconds: float) -> str:
    """A length of time as people say it: 42 s, 7 min, 3.5 h, 12 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
