"""What optimizer steps communicate, written to `$ROWS/RANK.jsonl`: how many sums over the processes there were, and how
many backward passes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity

import ppo.update
from alignment.distributed import processes
from alignment.distributed.engine import TrainingEngine

NAMES = ("allreduce_", "reduce_", "_reduce_scatter_base_", "reduce_scatter_")
"""Those that sum; DeepSpeed sends gradients with the first where gloo lacks the others."""


def counting(original, calls):
    def counted(*args, **kwargs):
        before = dict(calls)
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
            result = original(*args, **kwargs)
        sums = sum(event.count for event in profile.key_averages() if event.key.removeprefix("c10d::") in NAMES)
        # One number a pass tells whether memory ran out on any process.
        sums -= calls["flags"] - before["flags"]
        path = Path(os.environ["ROWS"]) / f"{os.environ['RANK']}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"sums": sums, "passes": calls["passes"] - before["passes"]}) + "\n")
        return result

    return counted


def install():
    calls = {"passes": 0, "flags": 0}

    def with_count(original, name="passes"):
        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    processes.all_reduce_max_on_host = with_count(processes.all_reduce_max_on_host, "flags")
    TrainingEngine.backward = with_count(TrainingEngine.backward)
    transformers.Trainer.training_step = with_count(transformers.Trainer.training_step)
    ppo.update.Updater._optimizer_step = counting(ppo.update.Updater._optimizer_step, calls)
    transformers.Trainer._inner_training_loop = counting(transformers.Trainer._inner_training_loop, calls)
