"""Our SFT stage's trainer, as `python -m sft` builds it, on the rows of `sft.prepare`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer, Trainer

from alignment.config import validate
from alignment.data import Records
from alignment.models import ModelSource
from alignment.registry import Registry
from alignment.trainers import Start
from benchmarks.sft_trl import COMMON, check, run
from sft.config import SFTStageConfig
from sft.train import Prepared, build_trainer, training_arguments


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.model = str(folder / "model")
        rows = datasets.Dataset.from_dict(json.loads((folder / "rows.json").read_text(encoding="utf-8")))
        values = {
            "name": "bench",
            "model": {"name": self.model},
            "data": {"train": "rows.json", "max_length": 512},
            "training": COMMON | settings,
            "registry": {"name": "bench"},
            "tracking": {"runs": tempfile.mkdtemp(), "wandb": "disabled"},
        }
        self.config = validate(SFTStageConfig, values, "bench")
        none: Records[Any] = Records([], [], {})
        start = Start(ModelSource(self.model), AutoTokenizer.from_pretrained(self.model))
        self.prepared = Prepared(
            seed=0,
            registry=Registry(tempfile.mkdtemp()),
            start=start,
            train_set=none,
            eval_set=none,
            train_rows=rows,
            eval_rows=rows.select([]),
            left_out=0,
            arguments=training_arguments(self.config, no_eval=True),
        )

    def check(self) -> dict[str, Any]:
        return check(self._trainer())

    def run(self) -> dict[str, Any]:
        return run(self._trainer())

    def _trainer(self) -> Trainer:
        return build_trainer(self.config, self.prepared)
