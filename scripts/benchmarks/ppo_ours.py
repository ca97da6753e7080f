"""Our PPO stage's loop, built like `python -m ppo`, on the work of `ppo.prepare`."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from alignment.config.loading import validate
from alignment.data.parsing import to_prompts
from alignment.data.reading import read_records
from alignment.distributed import processes
from alignment.models.onednn import linear_layers
from alignment.runs.journal import Journal
from alignment.training import opening
from benchmarks.ppo_measures import Stopwatch, matmul_rate, rollout_stats
from benchmarks.ppo_work import Work, upper_half
from ppo.config import PPOStageConfig
from ppo.loading import load_models
from ppo.loop import Loop
from ppo.prompts import encode_prompts, prompt_limit
from ppo.rows import Row
from ppo.sequences import lay_out, split_by_tokens
from ppo.sources import find_models


class Contestant:
    """Our contestant.

    Args:
        settings: overrides of the `model` section; the default is four separate models. With `upper` the adapters of
            all roles are on the upper half of the layers.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.work = Work.read(folder)
        shared, reward = settings.get("mode") == "shared", "reward"
        if settings.pop("upper", False):
            settings, reward = settings | {"adapter": upper_half(folder)}, "reward-upper"
        work, runs = self.work, tempfile.mkdtemp()
        values = {
            "name": "bench",
            "model": {
                "policy": "policy" if shared else str(folder / "policy"),
                "reward": reward if shared else str(folder / "reward"),
                **settings,
            },
            "data": {
                "train": str(folder / "prompts.jsonl"),
                "eval_share": 0.0,
                "max_length": work.prompt_tokens + work.max_new_tokens,
            },
            "rewards": {"missing_eos_penalty": work.missing_eos_penalty},
            "rollout": {"batch_size": work.episodes, "max_new_tokens": work.max_new_tokens},
            "ppo": {"kl_coef": work.kl_coef, "num_epochs": work.num_epochs},
            "training": {
                "max_steps": work.iterations,
                "learning_rate": work.learning_rate,
                "value_learning_rate": work.learning_rate,
                "adam_epsilon": work.adam_epsilon,
                "microbatch_tokens": work.microbatch_tokens,
                "gradient_checkpointing": work.gradient_checkpointing,
                "bf16": "BENCH_BF16" in os.environ,
            },
            "registry": {"name": "bench", "path": str(folder / "registry")},
            "tracking": {"runs": runs, "wandb": "disabled"},
        }
        self.config = validate(PPOStageConfig, values, "bench")
        self.prompts = read_records(folder / "prompts.jsonl", to_prompts, self.config.data).items
        self.rounds = 0

    def check(self) -> dict[str, Any]:
        """The size of an iteration, and the models' outputs on the given responses: the mean loss per token (nats), the
        mean score and, for a critic initialized from the reward model, the mean value."""
        loop = self._loop(0)
        models, work = loop.models, self.work
        rows = [Row(*pair) for pair in zip(work.prompts, work.responses, strict=True)]
        totals = torch.zeros(2, dtype=torch.float64)
        pad, device = models.tokenizer.pad_token_id, loop.accelerator.device
        with torch.no_grad():
            for part in split_by_tokens(rows, range(len(rows)), work.microbatch_tokens, models.packed):
                batch = lay_out([rows[index] for index in part], part, models.packed, pad, device)
                outputs = models.trained(batch, "both", 1.0)
                critic = models.critic
                assert critic is not None
                scale = critic.head_scale or 1.0
                totals += torch.stack([-outputs.logprobs.sum(), scale * outputs.values.sum()]).double().cpu()
            assert models.reward is not None
            scores, _ = models.reward.combined(models.reward.member_scores(rows, [], device))
        tokens = sum(map(len, work.responses))
        loss, value = (totals / tokens).tolist()
        work_stats = {
            "samples": work.episodes * work.iterations,
            "tokens": sum(row.num_tokens for row in rows),
            "loss": loss,
            "score": float(scores.mean()),
        }
        return work_stats if models.trained.on_trunk else work_stats | {"value": value}

    def run(self) -> dict[str, Any]:
        """Run all iterations; loading the models is not timed."""
        with linear_layers():  # as a stage runs
            return self._run()

    def _run(self) -> dict[str, Any]:
        self.rounds += 1
        loop = self._loop(self.rounds)
        sampling = Stopwatch(lambda sampled: sampled.responses)
        loop.collector.sampler.generate = sampling.around(loop.collector.sampler.generate)  # type: ignore[method-assign]
        config = loop.models.policy.base.config
        rate = matmul_rate(config)
        started, worked = time.perf_counter(), time.process_time()
        stats = self._iterate(loop, self.rounds)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        responses = [response for part in sampling.kept for response in part]
        prompts = [self.work.prompts[index] for index in self.work.prompts_of(self.rounds)]
        trunks = 1 if loop.models.trained.on_trunk else 2
        eos = loop.models.tokenizer.eos_token_id
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "generate": sampling.seconds,
            "score": sum(step["time/rollout"] for step in stats) - sampling.seconds,
            "train": sum(step["time/optimize"] for step in stats),
            "train_loss": stats[-1]["policy/loss"],
            "matmul_rate": rate,
            **rollout_stats(config, prompts, responses, eos, self.work.num_epochs, trunks),
        }

    def learn(self, seed: int) -> dict[str, Any]:
        """The mean training score of each iteration's responses."""
        loop = self._loop(seed)
        started = time.perf_counter()
        stats = self._iterate(loop, seed)
        penalty = self.work.missing_eos_penalty  # in score units, as in TRL, so that both metrics are comparable
        rewards = [step["reward/model"] - penalty * (1 - step["rollout/ended"]) for step in stats]
        return {"rewards": rewards, "seconds": time.perf_counter() - started}

    def _iterate(self, loop: Loop, seed: int) -> list[dict[str, float]]:
        indices, size = self.work.prompts_of(seed), self.work.episodes
        return [loop.iterate(indices[start : start + size]) for start in range(0, len(indices), size)]

    def _loop(self, seed: int) -> Loop:
        training = self.config.training.model_copy(update={"seed": seed})
        config = self.config.model_copy(update={"training": training})
        accelerator = processes.make_accelerator()
        torch.manual_seed(seed)
        models = load_models(config, find_models(config, opening.open_registry(config)))
        limit, too_long = prompt_limit(config), config.data.too_long
        prompts, _ = encode_prompts(self.prompts, models.tokenizer, limit, too_long)
        loop = Loop(config, models, accelerator, Journal(config.run_dir, enabled=True), prompts)
        assert [ids for _, ids in loop.prompts] == self.work.prompts
        return loop
