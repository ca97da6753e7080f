"""Our SFT stage's trainer, built like `python -m sft`, on the transcripts of `sft.prepare`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import Trainer

from alignment.config.loading import validate
from alignment.models.onednn import linear_layers
from benchmarks.sft import DATA
from benchmarks.sft_trl import COMMON, check, run
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.prepare import prepare


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        values = {
            "name": "bench",
            "model": {"name": str(folder / "model")},
            "data": {"train": str(folder / "train.jsonl"), **DATA},
            "training": COMMON | settings,
            "registry": {"name": "bench"},
            "tracking": {"runs": tempfile.mkdtemp(), "wandb": "disabled"},
        }
        self.config = validate(SFTStageConfig, values, "bench")
        self.prepared = prepare(self.config)

    def check(self) -> dict[str, Any]:
        return check(self._trainer())

    def run(self) -> dict[str, Any]:
        with linear_layers():  # as a stage runs
            return run(self._trainer())

    def _trainer(self) -> Trainer:
        return build_trainer(self.config, self.prepared)
