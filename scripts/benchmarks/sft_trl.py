"""TRL's SFTTrainer on the rows of `sft.prepare`; imported in the peer's own Python."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

BF16 = "BENCH_BF16" in os.environ
"""TRL's default, but fifty times slower on most CPUs."""
# Common arguments of all contestants.
COMMON = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "logging_steps": 10,
    "seed": 0,
    "bf16": BF16,
}


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.model = folder / "model"
        self.settings = settings
        self.rows = datasets.Dataset.from_dict(json.loads((folder / "rows.json").read_text(encoding="utf-8")))

    def check(self) -> dict[str, Any]:
        return check(self._trainer())

    def run(self) -> dict[str, Any]:
        return run(self._trainer())

    def _trainer(self) -> Trainer:
        owned = {"save_strategy": "no", "report_to": "none", "use_cpu": not torch.cuda.is_available()}
        arguments = trl.SFTConfig(tempfile.mkdtemp(), disable_tqdm=True, **owned, **COMMON | self.settings)
        return trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32),
            args=arguments,
            train_dataset=self.rows,
            processing_class=AutoTokenizer.from_pretrained(self.model),
        )


def check(trainer: Trainer) -> dict[str, Any]:
    """The size of an epoch by the trainer's batches: tokens, labelled tokens, and their initial mean loss."""
    tokens, trained, total = 0, 0, 0.0
    model = trainer.model.eval()
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            labelled = int((batch["labels"][:, 1:] != -100).sum())
            packed = "position_ids" in batch
            tokens += batch["input_ids"].numel() if packed else int(batch["attention_mask"].sum())
            trained += labelled
            total += float(trainer.compute_loss(model, batch)) * labelled
    return {"tokens": tokens, "trained": trained, "loss": total / trained}


def run(trainer: Trainer) -> dict[str, Any]:
    """Train one epoch; building the trainer is not timed."""
    started, worked = time.perf_counter(), time.process_time()
    outcome = trainer.train()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "train_loss": outcome.training_loss}
