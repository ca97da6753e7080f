"""Run folders for tests, written by the journal that writes real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.runs.journal import Journal
from alignment.runs.run import Run

CONFIGS: dict[str, dict[str, Any]] = {
    "sft": {"model": {"name": "m"}, "training": {"num_train_epochs": 4}},
    "reward": {"model": {"name": "m"}, "training": {"num_train_epochs": 2}, "reward": {}},
    "ppo": {"model": {"policy": "m"}, "ppo": {"kl_coef": 0.05}, "training": {"max_steps": 10}},
}


def make_run(
    path: Path,
    stage: str = "ppo",
    rows: Mapping[int, Mapping[str, float]] | None = None,
    *,
    samples: Sequence[Mapping[str, Any]] = (),
    events: Sequence[tuple[str, Mapping[str, Any]]] = (),
    exit_code: int | None = 0,
    **config: Any,
) -> Run:
    """A run that has written this; `exit_code` None leaves it without an end."""
    path.mkdir(parents=True)
    known = {"name": path.name, "registry": {"name": "m", "path": None}, **CONFIGS[stage], **config}
    (path / "config.json").write_text(json.dumps(known))
    run = Run().started(None).write(path)
    with Journal(path) as journal:
        for step, metrics in (rows or {}).items():
            journal.log(step, metrics)
        journal.samples(max(rows or [0]), samples)
        for kind, fields in events:
            journal.event(kind, **fields)
    if exit_code is not None:
        (path / "exit.json").write_text(json.dumps({"code": exit_code, "reason": "because"}))
    return run
