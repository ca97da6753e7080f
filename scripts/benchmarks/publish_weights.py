"""Write the model of `load.prepare`: as a new version, or with `how: transformers` by `save_pretrained` alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from alignment.models.policies import load_policy
from alignment.registry import Registry


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.only_saved = settings.get("how") == "transformers"
        self.model, self.registry = load_policy(str(folder / "model")), Registry(folder / "registry")
        self.folder = folder

    def check(self) -> dict[str, Any]:
        return {"parameters": self.model.num_parameters()}

    def run(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as saved:
            started, worked = time.perf_counter(), time.process_time()
            self.model.save_pretrained(saved)
            if not self.only_saved:
                self.registry.publish("again", saved, stage="base", role="policy")
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "train_loss": 0.0}
