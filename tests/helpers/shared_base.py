"""Tiny models with several adapters."""

import torch

from alignment.config.sections import ModelConfig
from alignment.models import adapters, trainable
from alignment.models.shared_base import (
    add_adapter,
)

IDS = torch.tensor([[5, 9, 30, 7, 2], [40, 41, 3, 6, 8]])


ROLES = ("policy", "value", "reward")


def new(model, method="lora", **arguments):
    return trainable.adapter_config(
        adapters.without_adapter(model), ModelConfig(name="x", method=method, adapter=arguments)
    )


def stir(model, seed=0):
    """Make every adapter say something of its own: they start as the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_magnitude" in name:
                weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
            elif "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def shared(base, kinds=("lora", "lora", "lora"), roles=ROLES, **arguments):
    """A base with an adapter for each role; the reward's is frozen."""
    model = base
    for role, kind in zip(roles, kinds, strict=True):
        model = add_adapter(model, role, new(model, kind, r=4, **arguments), trainable=role != "reward")
    return stir(model)


def hidden(model):
    return adapters.without_adapter(model).model(input_ids=IDS, use_cache=False).last_hidden_state


def logits(model):
    return model(IDS, use_cache=False).logits
