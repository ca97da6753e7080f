"""TRL's PPOTrainer on the work of `ppo.prepare`; imported in the peer's own Python."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl.experimental.utils import get_reward
from trl.trainer.utils import selective_log_softmax

from benchmarks.ppo_measures import Stopwatch, matmul_rate, rollout_stats, through_end
from benchmarks.ppo_work import Work

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
"""As `model.method=lora` of ours."""


class Contestant:
    """TRL's contestant.

    Args:
        settings: overrides of PPOConfig's arguments; `checkpointed_by_hand`, activation checkpointing of policy and
            critic, which the trainer itself never enables; and `lora`, PEFT's LoRA with our defaults on the policy,
            whose bare base is then the reference.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.checkpointed = self.settings.pop("checkpointed_by_hand", False)
        self.lora = self.settings.pop("lora", False)
        self.work = Work.read(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
        self.rounds = 0

    def check(self) -> dict[str, Any]:
        """The size of an iteration, and the models' outputs on the given responses, by the trainer's functions."""
        trainer, work = self._trainer(0, []), self.work
        width, pad = max(map(len, work.prompts)), self.tokenizer.pad_token_id
        left = [[pad] * (width - len(prompt)) + prompt for prompt in work.prompts]
        longest = max(map(len, work.responses))
        right = [response + [pad] * (longest - len(response)) for response in work.responses]
        ids, responses = torch.tensor([a + b for a, b in zip(left, right, strict=True)]), torch.tensor(right)
        kept = responses != pad
        with torch.no_grad():
            logits = ppo_trainer.forward(trainer.policy_model, ids, pad).logits[:, width - 1 : -1]
            logprobs = selective_log_softmax(logits, responses)
            _, scores, _ = get_reward(trainer.reward_model, ids, pad, width)
            values = get_reward(trainer.value_model, ids, pad, width)[0][:, width - 1 : -1].squeeze(-1)
        return {
            "samples": work.episodes * work.iterations,
            "tokens": int((ids != pad).sum()),
            "loss": -float(logprobs[kept].double().mean()),
            "score": float(scores.mean()),
            "value": float(values[kept].double().mean()),
        }

    def run(self) -> dict[str, Any]:
        """Run all iterations; loading the models is not timed."""
        self.rounds += 1
        phases, sampling = _Phases(), Stopwatch(lambda result: result[0].tolist())  # not the logits
        trainer = self._trainer(self.rounds, [phases])
        config = trainer.policy_model.config
        rate = matmul_rate(config)
        originals = ppo_trainer.batch_generation, ppo_trainer.forward
        ppo_trainer.batch_generation = sampling.around(originals[0])
        ppo_trainer.forward = phases.watch(originals[1], trainer.model)
        try:
            started, worked = time.perf_counter(), time.process_time()
            phases.ended = started
            trainer.train()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        finally:
            ppo_trainer.batch_generation, ppo_trainer.forward = originals
        eos = self.tokenizer.eos_token_id
        indices = self.work.prompts_of(self.rounds)
        prompts = [self.work.prompts[index] for index in indices]
        responses = []
        for index, rows in enumerate(sampling.kept):
            part = prompts[index * self.work.episodes : (index + 1) * self.work.episodes]
            responses += [through_end(row[max(map(len, part)) :], eos) for row in rows]
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "generate": sampling.seconds,
            "score": phases.rollout - sampling.seconds,
            "train": phases.train,
            "train_loss": trainer.state.log_history[-1]["loss/policy_avg"],
            "matmul_rate": rate,
            **rollout_stats(config, prompts, responses, eos, self.work.num_epochs, trunks=2),
        }

    def learn(self, seed: int) -> dict[str, Any]:
        """The mean training score of each iteration's responses."""
        trainer = self._trainer(seed, [])
        started = time.perf_counter()
        trainer.train()
        rewards = [line["objective/scores"] for line in trainer.state.log_history if "objective/scores" in line]
        return {"rewards": rewards, "seconds": time.perf_counter() - started}

    def _trainer(self, seed: int, callbacks: list[TrainerCallback]) -> PPOTrainer:
        work = self.work
        values = {
            "per_device_train_batch_size": work.microbatch_rows,
            "gradient_accumulation_steps": work.episodes // work.microbatch_rows,
            "num_mini_batches": 1,
            "total_episodes": work.episodes * work.iterations,
            "local_rollout_forward_batch_size": work.rollout_rows,
            "num_sample_generations": 0,
            "response_length": work.max_new_tokens,
            "stop_token": "eos",
            "temperature": 1.0,
            "missing_eos_penalty": work.missing_eos_penalty,
            "num_ppo_epochs": work.num_epochs,
            "kl_coef": work.kl_coef,
            "learning_rate": work.learning_rate,
            "adam_epsilon": work.adam_epsilon,
            "seed": seed,
            "bf16": False,
            "gradient_checkpointing": False,  # the default is True, but it is not applied
            "use_cpu": not torch.cuda.is_available(),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        rows = [{"input_ids": work.prompts[index]} for index in work.prompts_of(seed)]
        trainer = PPOTrainer(
            args=PPOConfig(tempfile.mkdtemp(), **values | self.settings),
            processing_class=self.tokenizer,
            model=self._load(AutoModelForCausalLM, "policy"),
            ref_model=None if self.lora else self._load(AutoModelForCausalLM, "policy"),
            peft_config=LoraConfig(**LORA) if self.lora else None,
            reward_model=self._load(AutoModelForSequenceClassification, "reward"),
            value_model=self._load(AutoModelForSequenceClassification, "reward"),
            train_dataset=datasets.Dataset.from_list(rows),
            callbacks=callbacks,
        )
        if self.checkpointed:
            for model in (trainer.policy_model, trainer.value_model):
                model.gradient_checkpointing_enable()
        # The trainer's own loader would shuffle, but all contestants need the same prompts in each iteration.
        in_order: Any = DataLoader(
            datasets.Dataset.from_list(rows), work.episodes, collate_fn=trainer.data_collator, drop_last=True
        )
        trainer.dataloader = trainer.accelerator.prepare(in_order)
        return trainer

    def _load(self, kind: Any, name: str) -> Any:
        return kind.from_pretrained(self.folder / name, dtype=torch.float32)


class _Phases(TrainerCallback):
    """Separates rollout from training, which begins with the first joint forward pass of policy and critic."""

    def __init__(self) -> None:
        self.rollout = self.train = 0.0
        self.ended = 0.0
        self._began: float | None = None

    def watch(self, forward: Any, trained: Any) -> Any:
        def watched(model: Any, *arguments: Any) -> Any:
            if model is trained and self._began is None:
                self._began = time.perf_counter()
                self.rollout += self._began - self.ended
            return forward(model, *arguments)

        return watched

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self._began is not None
        self.ended = time.perf_counter()
        self.train += self.ended - self._began
        self._began = None
