"""A whole run of a stage for `gpu_check.py`, like `python -m STAGE`: its speed, and its peak memory beside the plan."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

import ppo.train
import ppo.workload
import reward.train
import reward.workload
import sft.train
import sft.workload
from alignment.config.loading import validate
from alignment.memory.plan import DDP, Workload, estimate
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

KINDS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTStageConfig, sft),
    "reward": (RewardStageConfig, reward),
    "ppo": (PPOStageConfig, ppo),
}


class Contestant:
    """`settings` has the `stage`, its `config`, and for PPO `prompt_tokens`, their mean."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.name = folder, settings["stage"]
        kind, self.stage = KINDS[self.name]
        self.config = validate(kind, settings["config"], "check")
        self.prompt_tokens = settings.get("prompt_tokens", 0.0)

    def run(self) -> dict[str, Any]:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        self.config.run_dir.mkdir(parents=True)
        self.stage.train.train(self.config)
        seconds = time.perf_counter() - started
        shape = AutoConfig.from_pretrained(self.folder / "base")
        planned = estimate(self._workload(shape, on_gpu), DDP, 1, on_gpu=on_gpu).peak
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        events = self._lines("events")
        (models,) = [event for event in events if event["event"] == "models"] or [{}]
        return {
            "seconds": seconds,
            "planned": planned,
            "peak": peak,
            "packed": models.get("packed"),
            **self._speed(shape),
        }

    def _workload(self, shape: Any, on_gpu: bool) -> Workload:
        if self.stage is ppo:
            return ppo.workload.workload(self.config, dict.fromkeys(("init", "reference", "reward", "value"), shape), 1)
        return self.stage.plan.workload(self.config, shape, bf16=on_gpu)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.config.run_dir / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def _speed(self, shape: Any) -> dict[str, float]:
        """Tokens and FLOPs a second, medians over the lines of the log without the first, which warms up.

        FLOPs are 6 for each weight of a linear layer and token that is trained on, without attention and recomputation.
        """
        rows = self._lines("metrics")
        layers = shape.num_hidden_layers * (4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size)
        head = shape.hidden_size * shape.vocab_size if self.name == "sft" else 0
        if self.stage is not ppo:
            rates = [row["train/tokens_per_second"] for row in rows if "train/tokens_per_second" in row]
            rate = statistics.median(rates[1:] or rates)
            return {"tokens_per_second": rate, "flops": 6 * (layers + head) * rate}
        steps = [row for row in rows if "time/optimize" in row]
        steps = steps[1:] or steps
        size, epochs = self.config.rollout.batch_size, self.config.ppo.num_epochs
        rates, flops = [], []
        for step in steps:
            answers = step["rollout/length"] * size
            tokens = answers + self.prompt_tokens * size
            rates.append(epochs * tokens / step["time/optimize"])
            work = 2 * layers * tokens + shape.hidden_size * shape.vocab_size * answers  # policy and critic; the head
            flops.append(6 * epochs * work / step["time/optimize"])
        return {
            "tokens_per_second": statistics.median(rates),
            "sampled_per_second": statistics.median(step["rollout/tokens_per_second"] for step in steps),
            "flops": statistics.median(flops),
        }
