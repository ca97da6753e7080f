"""Load the model of `load.prepare`: as a stage does, or with `how: transformers` by `from_pretrained`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment.models.sources import find_model
from alignment.registry import Registry


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.by_transformers = folder, settings.get("how") == "transformers"

    def _load(self) -> Any:
        if self.by_transformers:
            return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)
        from alignment.models.policies import load_policy

        return load_policy(find_model("model", Registry(self.folder / "registry"), role="policy"))

    @torch.no_grad()
    def check(self) -> dict[str, Any]:
        model = self._load()
        return {"parameters": model.num_parameters(), "norm": sum(float(p.norm()) for p in model.parameters())}

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        started, worked = time.perf_counter(), time.process_time()
        model = self._load()
        for parameter in model.parameters():
            parameter.sum()  # a mapped file is read on first use
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "train_loss": 0.0}
