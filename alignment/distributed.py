"""Processes and devices: the one file of the shared floor that names accelerate or deepspeed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import transformers.integrations.deepspeed as hf_deepspeed
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from alignment.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: the main one alone judges and publishes, and NCCL waits for ten minutes."""


def start_processes() -> PartialState:
    """Join the other processes of this launch (once; later calls return the same state).

    Without CUDA the state must be made with `cpu=True` before anything else of accelerate: a plain `Accelerator()`
    then sees one process, and `Accelerator(cpu=True)` falls back from DeepSpeed to plain data parallelism.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def on_cpu() -> bool:
    """Whether training runs on the CPU; what TRL's configs call `use_cpu`."""
    return not torch.cuda.is_available()


def under_deepspeed() -> bool:
    """Whether this was launched with a DeepSpeed config; known before any engine is built."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def under_fsdp() -> bool:
    """Whether this was launched with an FSDP config."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def launched_zero_stage() -> int:
    """DeepSpeed's ZeRO stage as the launch file asks for it, 0 without DeepSpeed; known before anything is loaded."""
    return int(DeepSpeedPlugin().zero_stage) if under_deepspeed() else 0


@contextmanager
def gathered(*parameters: nn.Parameter) -> Iterator[None]:
    """Parameters are whole inside, also where ZeRO-3 holds them in parts; the main process's changes are kept."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


@contextmanager
def whole_models() -> Iterator[None]:
    """Models that are loaded inside are whole, also under ZeRO-3, which parts them when training begins.

    transformers parts them while it loads otherwise, and neither merging nor LoHa can do anything with a part.
    """
    config = hf_deepspeed._hf_deepspeed_config_weak_ref  # there is a public way to put it away, but none to put it back
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


def is_main_process() -> bool:
    return start_processes().is_main_process


def world_size() -> int:
    return start_processes().num_processes


def wait_for_everyone() -> None:
    start_processes().wait_for_everyone()


def on_main_process(call: Callable[[], T]) -> T:
    """Call on the main process alone; what it returns, or the UserError it raises, on every process.

    A mistake that only the main process raised would leave the others in a collective until it times out.
    """
    value, error = None, None
    if is_main_process():
        try:
            value = call()
        except UserError as mistake:
            error = mistake
    if world_size() > 1:
        value, error = broadcast_object_list([value, error])
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def forget_accelerator() -> None:
    """Allow another trainer in this process: accelerate refuses a second one with a DeepSpeed config."""
    AcceleratorState._reset_state()


def make_accelerator(*, accumulation: int, microbatch: int, max_grad_norm: float, bf16: bool = False) -> Accelerator:
    """An accelerator whose optimizer step takes `accumulation` microbatches of `microbatch` rows on each process.

    DeepSpeed reads clipping, accumulation and batch size from its own config alone, so they are written there;
    what the launch file says of them would silently win otherwise.
    """
    start_processes()
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, mixed_precision="bf16" if bf16 else "no")
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["gradient_accumulation_steps"] = accumulation
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = microbatch
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm
    accelerator.gradient_accumulation_steps = accumulation
    return accelerator


def backend(accelerator: Accelerator, engine: nn.Module) -> dict[str, Any]:
    """What really runs: world size, the engine's class and the ZeRO stage. A fallback must not go unseen."""
    return {
        "world_size": accelerator.num_processes,
        "engine": type(engine).__name__,
        "zero_stage": zero_stage(accelerator),
    }


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage) if plugin is not None else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over all processes, as `alignment.tensors.Reduce`."""
    if world_size() > 1:
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x


def step_optimizer(accelerator: Accelerator, engine: nn.Module, optimizer: Any, max_grad_norm: float) -> float | None:
    """Clip and step at the end of an accumulation; returns the gradient norm before clipping.

    Under DeepSpeed, `accelerator.backward` has stepped already, and clipped by its config; the norm is read from it.
    """
    if not accelerator.sync_gradients:
        return None
    norm = accelerator.clip_grad_norm_(engine.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return None if norm is None else float(norm)


def full_state_dict(accelerator: Accelerator, engine: nn.Module) -> dict[str, Tensor]:
    """The whole model's weights on the main process; every process must call this (ZeRO-3 gathers)."""
    return accelerator.get_state_dict(engine)


def run_as_forward(wrapper: nn.Module, module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function(*args)` as if it were the forward of `module`, through its `wrapper` (DDP, DeepSpeed, or itself).

    Their hooks then run: gradients are reduced, and the weights that ZeRO-3 spreads over the processes are there, once
    per call on every process. (The idea is Lightning's forward redirection.)
    """
    own = module.__dict__.get("forward")  # autocast hangs itself there

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.forward = own

    def redirected(*inner: Any) -> Any:
        restore()
        return function(*inner)

    module.forward = redirected
    try:
        return wrapper(*args)
    finally:
        restore()
