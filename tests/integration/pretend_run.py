"""What the stages compute on the pretended device, and where they wait for it: `pretend_run.py NAME`, one of `RUNS`.

It writes JSON: {"host": numbers, "device": the same, "waits": {place: count}}. It needs a process of its own, in which
the device is known before the first backward pass.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from helpers.digits import CONTENTS, build_models, llama, prompts_of, scalar
from helpers.pretend_device import device, pretended
from torch import Tensor, nn

from alignment.data.records import Comparison
from alignment.distributed import processes
from alignment.models.packing import attend_by_group
from alignment.runs.journal import Journal
from alignment.training.throughput import TokenCount
from ppo.config import PPOStageConfig
from ppo.loading import finalize_models
from ppo.loop import Loop
from ppo.prompts import encode_prompts, prompt_limit
from ppo.rows import Row
from reward.batches import QuestionCollator, score_batch
from reward.loss import pair_loss
from reward.questions import JudgedPair, Question
from sft.loss import next_token_sums
from sft.packing import PackingCollator

Found = dict[str, float]


def ppo(on: torch.device, **sections: Any) -> Callable[[], Found]:
    """Two iterations and an evaluation; models and self-checks come before."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"policy": "p", "reward": "r"},
        "data": {"train": "none", "max_length": 20},
        "rollout": {"batch_size": 8, "max_new_tokens": 9},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        # Adam makes a whole step of a gradient's rounding where eps is small beside it.
        "training": {"max_steps": 4, "learning_rate": 1e-3, "adam_epsilon": 1e-4, "ema_decay": 0.5},
        "registry": {"name": "tiny"},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    config = PPOStageConfig.model_validate(values)
    models = build_models(ref_seed=7)
    finalize_models(models, config)
    models.trained.to(on)  # a GPU takes the parameters themselves; here others stand in their place
    accelerator = processes.make_accelerator()
    type(accelerator).device = property(lambda self: on)  # type: ignore[assignment]
    prompts, _ = encode_prompts(prompts_of(*CONTENTS), models.tokenizer, prompt_limit(config), config.data.too_long)
    journal = Journal(Path(tempfile.mkdtemp()), enabled=False)
    loop = Loop(config, models, accelerator, journal, prompts, prompts[:2], [Row([2, 3], [4, 5, 1])] * 3)

    def work() -> Found:
        iterations = [loop.iterate(list(range(8))) for _ in range(2)]
        return {f"{n} {name}": value for n, stats in enumerate(iterations) for name, value in stats.items()
                if not name.startswith("time/") and "per_second" not in name}  # fmt: skip

    return work


def moved(batch: dict[str, Any], on: torch.device) -> dict[str, Any]:
    return {name: x.to(on) if isinstance(x, Tensor) else x for name, x in batch.items()}


def gradients(model: nn.Module, loss: Tensor) -> Found:
    loss.backward()
    return {"loss": loss, **{name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}}


def numbers(found: dict[str, Any]) -> Found:
    return {name: float(value) for name, value in found.items()}


def sft(on: torch.device) -> Callable[[], dict[str, Any]]:
    """One packed batch."""
    model = llama(transformers.LlamaForCausalLM, 1)
    attend_by_group(model)
    model.to(on)
    rows = [{"input_ids": list(range(2, 2 + n)), "labels": [-100, *range(3, 2 + n)]} for n in (4, 9, 6)]
    batch = moved(PackingCollator()(rows), on)

    def work() -> dict[str, Any]:
        TokenCount().add(batch)
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        sums = next_token_sums(model.lm_head, hidden, batch["labels"], 12)
        return gradients(model, sums.loss) | {"correct": sums.correct, "tokens": sums.tokens}

    return work


def reward(on: torch.device) -> Callable[[], dict[str, Any]]:
    """One packed batch of pairs."""
    model = scalar(1).model
    attend_by_group(model)
    model.to(on)
    pair = JudgedPair(0, 1, 1.0, 1.0, 0.0, Comparison.__new__(Comparison))
    questions = [Question([2, 3, 4], [[5, 6, 1], [7, 1]], (pair,)), Question([8], [[9, 1], [4, 4, 4, 1]], (pair,))]
    batch = moved(QuestionCollator("packed", 0)(questions), on)

    def work() -> dict[str, Any]:
        TokenCount().add(batch)
        scores = score_batch(model, batch)
        total = batch["weight"].sum()
        first, second = scores[batch["first"]], scores[batch["second"]]
        return gradients(model, pair_loss(first, second, batch["target"], batch["weight"], total, batch["margin"]))

    return work


RUNS: dict[str, Callable[[torch.device], Callable[[], dict[str, Any]]]] = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "ppo in many passes": lambda on: ppo(on, training={"microbatch_tokens": 24}),
    "ppo of longer answers": lambda on: ppo(on, rollout={"max_new_tokens": 12}, data={"max_length": 24}),
    "ppo of padded rows": lambda on: ppo(on, ptx={"train": "x"}, ppo={"kl_in": "loss"}, training={"packing": False}),
}


def main(name: str) -> None:
    device()
    with pretended() as waits:
        host = numbers(RUNS[name](torch.device("cpu"))())
        work = RUNS[name](device())
        waits.clear()
        found = work()
        counted = dict(waits)
        print(json.dumps({"host": host, "device": numbers(found), "waits": counted}))


if __name__ == "__main__":
    main(sys.argv[1])
