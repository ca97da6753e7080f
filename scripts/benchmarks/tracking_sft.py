"""The SFT stage's trainer with its journal, and the time spent in the journal and in W&B."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignment.config.loading import validate
from alignment.runs.journal import Journal
from alignment.tracking.wandb_sink import WandbSink
from alignment.training import callbacks, opening
from benchmarks.sft import DATA
from benchmarks.sft_trl import COMMON, check, run
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.prepare import prepare

SAMPLES = [
    {"id": n, "prompt": [{"role": "user", "content": "a question " * 20}], "response": "an answer " * 50, "score": 0.5}
    for n in range(16)
]


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        values = {
            "name": "bench",
            "model": {"name": str(folder / "model")},
            "data": {"train": str(folder / "train.jsonl"), **DATA},
            "training": COMMON | {"logging_steps": 1},
            "registry": {"name": "bench"},
            "tracking": {"runs": tempfile.mkdtemp(), "wandb": "offline", **settings},
        }
        self.config = validate(SFTStageConfig, values, "bench")
        self.prepared = prepare(self.config)

    def check(self) -> dict[str, Any]:
        return check(build_trainer(self.config, self.prepared))

    def run(self) -> dict[str, Any]:
        trainer = build_trainer(self.config, self.prepared)
        with opening.open_journal(self.config, "sft") as journal:
            callbacks.attach(trainer, journal, "bench")
            trainer.add_callback(_Evaluating(journal))
            sink = journal._sink
            assert sink is None or (isinstance(sink, WandbSink) and sink.is_open)
            waited = [0.0]
            for name in ("log", "samples", "event"):
                setattr(journal, name, _timed(getattr(journal, name), waited))
            cpu_before = _wandb_cpu_seconds()
            result = run(trainer)
            return result | {"journal": waited[0], "wandb_cpu_seconds": _wandb_cpu_seconds() - cpu_before}


class _Evaluating(TrainerCallback):
    """Journals samples like an evaluation, at every tenth step."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 10 == 0:
            self.journal.samples(state.global_step, SAMPLES)


def _timed(call: Callable[..., None], waited: list[float]) -> Callable[..., None]:
    def timed(*arguments: Any, **named: Any) -> None:
        started = time.perf_counter()
        call(*arguments, **named)
        waited[0] += time.perf_counter() - started

    return timed


def _wandb_cpu_seconds() -> float:
    """CPU seconds of W&B's process and threads; 0 without W&B."""
    if "wandb" not in sys.modules:
        return 0.0
    connection = sys.modules["wandb"].sdk.wandb_setup.singleton()._connection
    if connection is None:
        return 0.0
    threads = [
        Path(f"/proc/self/task/{thread.native_id}/stat")
        for thread in threading.enumerate()
        if thread.name.startswith("wandb")
    ]
    ticks = 0
    for stat in (Path(f"/proc/{connection._proc._process.pid}/stat"), *threads):
        fields = stat.read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
