"""Three iterations of the real loop, whose episodes do not depend on the number of processes.

    [accelerate launch ...] ppo_worker.py OUT [section.key=value ...]

The main process writes the weights to OUT/weights.safetensors and what it saw to OUT/report.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.digits import CONTENTS, build_models, prompts_of
from safetensors.torch import save_file

from alignment.distributed import processes, zero3
from alignment.errors import ModelError
from alignment.runs.journal import Journal
from alignment.runs.metrics import find
from alignment.training.stage import exit_process
from ppo.config import PPOStageConfig
from ppo.loading import finalize_models
from ppo.loop import Loop
from ppo.prompts import encode_prompts, make_tasks, prompt_limit, share_of_process
from ppo.rows import Row

PTX_ROWS = [Row([2, 3], [4] * length + [1]) for length in (1, 3, 12)]
"""Demonstrations of unlike length, so that the processes have unlike numbers of batches of them."""


def main(out: Path, *overrides: str) -> None:
    values = {
        "name": "worker",
        "model": {"policy": "p", "reward": "r"},
        "data": {"train": "none", "max_length": 20},
        "rollout": {"batch_size": 8, "max_new_tokens": 9},
        "ppo": {"num_epochs": 2, "num_minibatches": 2},
        "training": {"max_steps": 3, "learning_rate": 1e-3, "warmup_steps": 0, "microbatch_tokens": 24},
        "registry": {"name": "worker"},
    }
    critic, spoiled = "separate", None
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "critic":
            critic = None if value == "none" else value
            continue
        if key == "spoil":  # the process whose gradient is no number
            spoiled = int(value)
            continue
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = json.loads(value)
    config = PPOStageConfig.model_validate(values)
    processes.start_processes()
    accelerator = processes.make_accelerator(bf16=bool(config.training.bf16))
    with zero3.unpartitioned_loading():
        models = build_models(ref_seed=1, critic=critic)
    finalize_models(models, config)
    prompts, _ = encode_prompts(prompts_of(*CONTENTS), models.tokenizer, prompt_limit(config), config.data.too_long)
    ptx_rows = PTX_ROWS if config.ptx.train else ()
    loop = Loop(config, models, accelerator, Journal(out, enabled=False), prompts, ptx_rows=ptx_rows)
    report = {
        **processes.backend(accelerator, loop.engine.wrapped),
        "rates": [],
        "stats": [],
        "own": [],
    }
    if spoiled is not None:
        report |= spoil(loop, spoiled)
        if accelerator.is_main_process:
            save_file({"none": torch.zeros(1)}, out / "weights.safetensors")
            (out / "report.json").write_text(json.dumps(report))
        processes.wait_for_everyone()
        return
    count = config.rollout.batch_size // config.rollout.num_generations
    for _ in range(3):
        tasks = make_tasks(loop.prompts, range(count), config.rollout.num_generations)
        report["own"].append(
            processes.gather_lists([task.prompt_index for task in share_of_process(tasks, accelerator)])
        )
        stats = loop.iterate(list(range(count)))
        clocks = [name for name in stats if (metric := find("ppo", name)) and metric.is_clock]
        report["stats"].append({name: value for name, value in stats.items() if name not in clocks})
        report["rates"].append([group["lr"] for group in loop.engine.optimizer.param_groups])
    report["training_mode"] = any(module.training for module in models.trained.modules())
    weights = loop.engine.full_state_dict()
    if accelerator.is_main_process:
        save_file({name: value.float().clone() for name, value in weights.items()}, out / "weights.safetensors")
        (out / "report.json").write_text(json.dumps(report))
    processes.wait_for_everyone()


def spoil(loop: Loop, rank: int) -> dict[str, Any]:
    """What each process says of an iteration in which one has a gradient that is no number, and whether its weights
    are as they were."""
    before = [zero3.local_shard(parameter).clone() for parameter in loop.engine.parameters]
    if loop.accelerator.process_index == rank:
        real = loop.updater._loss
        loop.updater._loss = lambda *args: real(*args) * float("nan")
    try:
        loop.iterate(list(range(8)))
        message = "nothing"
    except ModelError as error:
        message = str(error).partition(":")[0]
    after = [zero3.local_shard(parameter) for parameter in loop.engine.parameters]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    shares = processes.gather_lists([(message, same)])
    return {"refused": [share[0][0] for share in shares], "unchanged": [share[0][1] for share in shares]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    exit_process(0)
