"""Replay a run folder into one new W&B run, independent of the W&B runs of its attempts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from alignment.errors import UserError
from alignment.registry import Registry, RegistryError
from alignment.reports.verdicts import summary_of
from alignment.runs.record import RunRecord, read_rows
from alignment.tracking.mirror import mirrored_model
from alignment.tracking.wandb_names import project_of
from alignment.tracking.wandb_sink import WandbSink

FOLDER = "replay"


@dataclass(frozen=True)
class Replayed:
    """The replayed run. `where` is a folder for `wandb sync`, or the run's URL."""

    where: str
    steps: int
    tables: int
    histograms: int
    models: tuple[str, ...]
    missing: tuple[str, ...]
    """Published models that are no longer in the registry."""


def replay(run_dir: Path, mode: Literal["offline", "online"] = "offline", registry: Path | None = None) -> Replayed:
    """Write the journal of a run to a new W&B run: a row of metrics per step, a table of samples per evaluation,
    histograms, and the published models. Offline, it replaces `RUN/replay`.

    Args:
        registry: the registry of the models; the default is the one in the run's config.

    Raises:
        UserError: the folder is not a run, W&B cannot be started, or some calls failed.
    """
    record = RunRecord.read(run_dir)
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    tracking = record.config.get("tracking", {})
    sink = WandbSink(
        folder,
        mode=mode,
        project=project_of(tracking.get("project")),
        name=record.name,
        stage=record.stage,
        config=record.config,
        text=bool(tracking.get("wandb_text")),
        patient=True,
    )
    if not sink.is_open:
        raise UserError(f"{run_dir}: W&B cannot be started; log in with `wandb login`, or leave --online out")
    url = sink.url
    steps = list(_steps(run_dir))
    for step, metrics in steps:
        sink.log(step, metrics)
    samples = [row for row in record.samples if isinstance(row.get("step"), int)]
    tables = [(step, list(rows)) for step, rows in groupby(samples, key=lambda row: row["step"])]
    for step, rows in tables:
        sink.samples(step, [{name: value for name, value in row.items() if name != "step"} for row in rows])
    histograms = record.of_kind("histogram")
    for event in histograms:
        sink.histogram(event["step"], event["name"], event["counts"], event["edges"])
    models, missing = _mirror_models(record, sink, registry)
    sink.summary(lambda: summary_of(run_dir))
    sink.finish(failed=bool(record.exit and record.exit.get("code")))
    if sink.lost:
        raise UserError(
            f"{run_dir}: {sink.lost} calls to W&B failed ({sink.last_error}), so its copy of this run is incomplete; "
            "fix that and replay the run again"
        )
    where = url or str(next(iter(sorted(folder.glob("wandb/offline-run-*"))), folder))
    return Replayed(where, len(steps), len(tables), len(histograms), models, missing)


def _steps(run_dir: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the rows of metrics.jsonl merged by step, in order, without values that are not finite."""
    steps: dict[int, dict[str, float]] = {}
    for row in read_rows(run_dir / "metrics.jsonl"):
        step = row.pop("step", None)
        row.pop("time", None)
        if not isinstance(step, int):
            continue
        steps.setdefault(step, {}).update({name: value for name, value in row.items() if value is not None})
    yield from sorted(steps.items())


def _mirror_models(record: RunRecord, sink: WandbSink, path: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    config: dict[str, Any] = record.config.get("registry", {})
    registry = Registry(path or config.get("path"))
    mirrored: list[str] = []
    missing: list[str] = []
    for event in record.of_kind("published"):
        try:
            model = mirrored_model(registry.resolve(event["model"]), registry)
        except RegistryError:
            missing.append(str(event["model"]))
            continue
        (mirrored if sink.mirror(model) else missing).append(str(event["model"]))
    return tuple(mirrored), tuple(missing)
