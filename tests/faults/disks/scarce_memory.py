"""Memory that does not suffice for a large microbatch: forward or backward passes over more than so many tokens fail.

MEMORY_TOKENS is the limit, MEMORY_PASS `forward` or `backward`, MEMORY_FROM the optimizer step from which it holds.
"""

import functools
import os
import sys

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaModel

steps = 0


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("made up: too large a backward pass")


def install() -> None:
    limit, where = int(os.environ["MEMORY_TOKENS"]), os.environ["MEMORY_PASS"]
    first = int(os.environ.get("MEMORY_FROM", "0"))
    forward = LlamaModel.forward

    def count(*_: object) -> None:
        global steps
        steps += 1

    @functools.wraps(forward)  # whether rows can be packed is told by the arguments
    def limited(self, input_ids=None, **options):
        trains = torch.is_grad_enabled() and (self.training or sys.argv[0] == "ppo")
        scarce = trains and input_ids.numel() > limit and steps >= first
        if scarce and where == "forward":
            raise torch.OutOfMemoryError("made up: too large a forward pass")
        output = forward(self, input_ids=input_ids, **options)
        if scarce:
            output.last_hidden_state = FailingBackward.apply(output.last_hidden_state)
        return output

    register_optimizer_step_post_hook(count)
    LlamaModel.forward = limited
