"""Three iterations' worth of optimizer steps on a rollout that does not depend on the number of processes.

    [accelerate launch ...] ppo_worker.py OUT [key=value of the training section ...]

The main process writes the weights to OUT/weights.safetensors and what it saw to OUT/report.json.
"""

import json
import sys
from pathlib import Path

import torch
from digits import CONTENTS, build_models, prompts_of
from safetensors.torch import save_file

from alignment import distributed
from alignment.stage import leave
from alignment.tensors import whiten
from alignment.tracking import Journal
from ppo.algorithm import estimate_advantages, shape_rewards
from ppo.config import PPOStageConfig, batch_plan
from ppo.rollout import collect_rollout, select
from ppo.train import _Loop, prepare


def main(out: Path, *overrides: str) -> None:
    training = dict(text.split("=") for text in overrides)
    config = PPOStageConfig.model_validate(
        {
            "name": "worker",
            "model": {"policy": "p", "reward": "r"},
            "data": {"train": "none", "max_length": 20},
            "rollout": {"batch_size": 8, "max_new_tokens": 9},
            "ppo": {"num_epochs": 2},
            "training": {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2, **training},
            "registry": {"name": "worker"},
        }
    )
    distributed.start_processes()
    sizes = batch_plan(config, distributed.world_size())
    accelerator = distributed.make_accelerator(
        accumulation=sizes.accumulation,
        microbatch=sizes.microbatch,
        max_grad_norm=config.training.max_grad_norm,
        bf16=config.training.bf16,
    )
    models = build_models(ref_seed=1)
    # Before the engine is made: every process samples the same eight episodes and keeps its share of them.
    rollout = collect_rollout(models, models.trained, accelerator, prompts_of(*CONTENTS), config.rollout, 20, 3)
    rewards = shape_rewards(rollout.scores, rollout.kl, rollout.response_mask, config.ppo.kl_coef)
    advantages, returns = estimate_advantages(rewards, rollout.old_values, rollout.response_mask, 1.0, 0.95)
    whole = whiten(advantages, rollout.response_mask)
    own = torch.arange(8)[accelerator.process_index :: accelerator.num_processes]
    part = select(rollout, own)
    kept = part.num_response
    engine, optimizer, schedule = prepare(models, accelerator, config.training)
    loop = _Loop(config, sizes, models, engine, accelerator, optimizer, schedule, Journal(out, enabled=False))
    mine = whiten(advantages[own], rollout.response_mask[own], reduce=distributed.all_reduce_sum)
    fresh = loop.collect(prompts_of(*CONTENTS), 3, 0)
    report = {
        **distributed.backend(accelerator, engine),
        "accumulation": sizes.accumulation,
        "whitening_difference": float((mine - whole[own]).abs().max()),
        "training_mode": any(module.training for module in models.trained.modules()),
        "first_kl": float(fresh.kl.abs().max()),
        "rates": [],
        "stats": [],
    }
    for step in range(3):
        report["stats"].append(loop.optimize(step, part, mine[:, :kept], returns[own, :kept]))
        report["rates"].append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    weights = distributed.full_state_dict(accelerator, engine)
    if accelerator.is_main_process:
        save_file({name: value.float().clone() for name, value in weights.items()}, out / "weights.safetensors")
        (out / "report.json").write_text(json.dumps(report))
    distributed.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    leave(0)
