"""Our sampling engine on the work of `generate.prepare`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import Sampling
from alignment.models.onednn import linear_layers
from alignment.models.packing import attend_by_group, why_not_packed
from alignment.models.policies import load_policy
from alignment.models.tokenizers import load_tokenizer
from alignment.seeds import stream_seed
from benchmarks.generate import NEW_TOKENS
from benchmarks.ppo_measures import product_seconds


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        self.tokenizer, self.policy = load_tokenizer(str(folder / "model")), load_policy(str(folder / "model")).eval()
        if why_not_packed(self.policy, max(map(len, self.prompts)) + NEW_TOKENS) is None:
            attend_by_group(self.policy)  # as PPO does
        self.rounds = 0

    def check(self) -> dict[str, Any]:
        return work(self.policy, self.prompts)

    def run(self) -> dict[str, Any]:
        self.rounds += 1
        sampling = Sampling(NEW_TOKENS, 1.0, (), self.tokenizer.pad_token_id, batch_size=len(self.prompts))
        seeds = [stream_seed(f"round {self.rounds}", index) for index in range(len(self.prompts))]
        with linear_layers():  # as a stage runs
            limit = product_seconds(self.policy.config, self.prompts, NEW_TOKENS)
            started, worked = time.perf_counter(), time.process_time()
            responses = (
                TransformersEngine(self.policy, self.tokenizer).generate(self.prompts, seeds, sampling).responses
            )
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        assert all(len(response) == NEW_TOKENS for response in responses)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "train_loss": 0.0, "product_seconds": limit}


@torch.no_grad()
def work(policy: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """The tokens to sample, and the mean loss of the longest prompt's tokens."""
    ids = torch.tensor([max(prompts, key=len)])
    loss = policy(input_ids=ids, labels=ids).loss
    return {"tokens": NEW_TOKENS * len(prompts), "loss": float(loss)}
