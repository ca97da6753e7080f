"""The optimizer of policy and critic, and its schedule over iterations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import transformers

from ppo.config import PPOStageConfig, TrainingConfig
from ppo.models import Models


def make_optimizer(models: Models, config: PPOStageConfig) -> torch.optim.AdamW:
    """AdamW with the policy and the critic as two groups, each with its own learning rate."""
    training = config.training
    rate = training.learning_rate or (1e-6 if models.base is None else 1e-5)
    rates = {"policy": rate, "value": training.value_learning_rate or 5 * rate}
    groups = [
        {"params": [p for _, p in models.trained.trained_parameters(of)], "lr": rates[of]} for of in ("policy", "value")
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, eps=training.adam_epsilon, weight_decay=0.0)


def make_schedule(optimizer: Any, config: PPOStageConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The named schedule over iterations.

    Made of the prepared optimizer: DeepSpeed's offload puts another in its place, whose learning rate would never move.
    """
    factor = _factor(config.training, config.training.max_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor] * len(optimizer.param_groups))


def _factor(training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """The learning rate over the configured one, by iteration: transformers' schedule, but the first iteration of a
    warm-up has a learning rate above 0, since its rollout would be wasted."""
    warmup = training.warmup_steps
    warmup = math.ceil(steps * warmup) if warmup < 1 else int(warmup)
    if training.lr_scheduler_type == "constant":
        warmup = 0
    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # a schedule sets the rates of what it is made of
    scheduled = transformers.get_scheduler(training.lr_scheduler_type, unused, warmup, steps).lr_lambdas[0]
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else scheduled(step)
