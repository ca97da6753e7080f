"""transformers' `generate`, on a padded batch or by continuous batching, on the work of `generate.prepare`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.generate import NEW_TOKENS
from benchmarks.generate_ours import work
from benchmarks.ppo_measures import product_seconds


class Contestant:
    """Settings: `continuous`, continuous batching (`generate_batch`)."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.continuous = settings.get("continuous", False)
        self.prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        self.model.generation_config = GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, eos_token_id=-1 if self.continuous else None,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        self.rounds = 0

    def check(self) -> dict[str, Any]:
        return work(self.model, self.prompts)

    def run(self) -> dict[str, Any]:
        self.rounds += 1
        torch.manual_seed(self.rounds)
        limit = product_seconds(self.model.config, self.prompts, NEW_TOKENS)
        started, worked = time.perf_counter(), time.process_time()
        count = self._batched() if self.continuous else self._padded()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        assert count == NEW_TOKENS * len(self.prompts), count
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "train_loss": 0.0, "product_seconds": limit}

    def _padded(self) -> int:
        batch = self.tokenizer.pad({"input_ids": self.prompts}, return_tensors="pt")
        out = self.model.generate(**batch)
        return int(out[:, batch["input_ids"].shape[1] :].numel())

    def _batched(self) -> int:
        found = self.model.generate_batch(self.prompts, generation_config=self.model.generation_config)
        return sum(len(each.generated_tokens) for each in found.values())
