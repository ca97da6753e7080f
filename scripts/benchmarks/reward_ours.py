"""Our reward stage's trainer, built like `python -m reward`, on the pairs of `reward.prepare`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import Trainer

from alignment.config.loading import validate
from alignment.models.onednn import linear_layers
from alignment.runs.journal import Journal
from benchmarks.reward import DATA, SEED
from benchmarks.sft_trl import COMMON, run
from reward.batches import score_batch
from reward.building import build_trainer
from reward.config import RewardStageConfig
from reward.train import prepare


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        values = {
            "name": "bench",
            "model": {"name": str(folder / "model")},
            "data": {"train": str(folder / "train.jsonl"), **DATA},
            "training": COMMON | settings | {"seed": SEED},
            "registry": {"name": "bench"},
            "tracking": {"runs": tempfile.mkdtemp(), "wandb": "disabled"},
        }
        self.config = validate(RewardStageConfig, values, "bench")
        self.prepared = prepare(self.config)

    def check(self) -> dict[str, Any]:
        """The size of an epoch by the trainer's batches: pairs, tokens of both sides, and the initial loss."""
        trainer = self._trainer()
        model = trainer.model.eval()
        pairs, tokens, total = 0, 0, 0.0
        with torch.no_grad():
            for batch in trainer.get_train_dataloader():
                scores = score_batch(model, batch)
                ahead = (scores[batch["first"]] - scores[batch["second"]]) * (2 * batch["target"] - 1)
                pairs += len(ahead)
                tokens += sum(prefix + branch for prefix, *branches in batch["packed_groups"] for branch in branches)
                total -= float(logsigmoid(ahead).sum())
        return {"pairs": pairs, "tokens": tokens, "loss": total / pairs}

    def run(self) -> dict[str, Any]:
        with linear_layers():  # as a stage runs
            return run(self._trainer())

    def _trainer(self) -> Trainer:
        return build_trainer(self.config, self.prepared, Journal(self.config.run_dir, enabled=False))
