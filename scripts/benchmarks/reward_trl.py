"""TRL's RewardTrainer on the pairs of `reward.prepare`; imported in the peer's own Python."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from benchmarks.sft_trl import COMMON, run


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.model = folder / "scalar"
        self.settings = settings
        rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self.rows = datasets.Dataset.from_list(rows)

    def check(self) -> dict[str, Any]:
        """The size of an epoch by the trainer's batches: pairs, tokens, and the initial mean loss."""
        trainer = self._trainer()
        model = trainer.model.eval()
        pairs, tokens, total = 0, 0, 0.0
        with torch.no_grad():
            for batch in trainer.get_train_dataloader():
                count = len(batch["input_ids"]) // 2
                pairs += count
                tokens += int(batch["attention_mask"].sum())
                total += float(trainer.compute_loss(model, batch)) * count
        return {"pairs": pairs, "tokens": tokens, "loss": total / pairs}

    def run(self) -> dict[str, Any]:
        return run(self._trainer())

    def _trainer(self) -> Trainer:
        owned = {"save_strategy": "no", "report_to": "none", "use_cpu": not torch.cuda.is_available()}
        arguments = trl.RewardConfig(tempfile.mkdtemp(), disable_tqdm=True, **owned, **COMMON | self.settings)
        return trl.RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(self.model, dtype=torch.float32),
            args=arguments,
            train_dataset=self.rows,
            processing_class=AutoTokenizer.from_pretrained(self.model),
        )
