"""Processes and devices: joining a launch, collectives, and the accelerator."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from alignment.distributed import heartbeat
from alignment.distributed.launch_files import HIDDEN_SIZE_KEYS
from alignment.errors import UserError
from alignment.terminal import one_line

T = TypeVar("T")
BUCKETS = {
    "reduce": "reduce_bucket_size", "prefetch": "stage3_prefetch_bucket_size", "live": "stage3_max_live_parameters",
    "group": "sub_group_size",
}  # fmt: skip
COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""Timeout of a collective. Ranks wait while the main process judges and publishes, and NCCL's default is ten minutes.
A rank that is lost meanwhile is detected by `alignment.distributed.heartbeat`."""


def start_processes() -> PartialState:
    """Join the other processes of this launch; later calls return the same state.

    Without CUDA, `PartialState(cpu=True)` must be the first use of accelerate: a plain `Accelerator()` would see one
    process, and `Accelerator(cpu=True)` falls back from DeepSpeed to plain data parallelism.

    Raises:
        UserError: the launch file offloads to NVMe without a folder, or asks for another device.
    """
    if PartialState._shared_state:
        return PartialState()
    for part in ("OPTIMIZER", "PARAM"):  # accelerate would create a folder named `none`
        prefix = f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}"
        if os.environ.get(f"{prefix}_DEVICE") == "nvme" and not os.environ.get(f"{prefix}_NVME_PATH"):
            raise UserError(
                f"{prefix}_NVME_PATH is not set: accelerate's launcher does not pass on the path in its config file; "
                "export it with a folder on an NVMe disk of each node"
            )
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true" and not on_cpu():
        raise UserError("the launch file says use_cpu: true and there is a GPU; hide it with CUDA_VISIBLE_DEVICES=")
    with heartbeat.joining():
        state = PartialState(cpu=on_cpu(), timeout=COLLECTIVE_TIMEOUT)
    if (kind := str(state.distributed_type.value)) not in ("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED"):
        raise UserError(f"the launch is of the kind {kind}; this suite runs as one process, DDP, DeepSpeed or FSDP2")
    if under_fsdp() and kind == "NO":
        raise UserError(
            "ACCELERATE_USE_FSDP is set, but no launcher started this process; unset it, or start with accelerate "
            "launch --config_file configs/accelerate/fsdp2.yaml"
        )
    return state


def on_cpu() -> bool:
    """Whether training runs on the CPU; TRL's configs call this `use_cpu`."""
    return not torch.cuda.is_available()


def bf16_by_default() -> bool:
    """Whether training computes in bfloat16 where the config does not say: where the GPU has it. On a CPU without AMX
    its matmuls are fifty times slower than float32."""
    return not on_cpu() and torch.cuda.is_bf16_supported(including_emulation=False)


def under_deepspeed() -> bool:
    """Whether this was launched with a DeepSpeed config; known before any engine is built."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def under_fsdp() -> bool:
    """Whether this was launched with FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def launched_zero_stage() -> int:
    """The launch file's ZeRO stage, 0 without DeepSpeed; known before anything is loaded."""
    return int(DeepSpeedPlugin().zero_stage) if under_deepspeed() else 0


def launched_offload() -> bool:
    """Whether the launch file offloads weights to host memory."""
    return under_deepspeed() and DeepSpeedPlugin().offload_param_device != "none"


def launched_buckets(hidden_size: int | None) -> dict[str, int]:
    """Elements of DeepSpeed's buffers that the launch file sets: `reduce`, `prefetch`, `live`, `group`.

    Args:
        hidden_size: of the model from which accelerate fills in "auto"; None where nothing does, and DeepSpeed's
            defaults hold.
    """
    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"] if under_deepspeed() else {}
    given = {name: zero[key] for name, key in BUCKETS.items() if zero.get(key) not in (None, "auto")}
    if hidden_size is not None:
        auto = {"reduce": hidden_size**2, "prefetch": int(0.9 * hidden_size**2)}
        given |= {name: size for name, size in auto.items() if zero.get(BUCKETS[name]) == "auto"}
    return {name: int(size) for name, size in given.items()}


def start_heartbeat(on_lost: Callable[[str], None], on_exit: Callable[[], None] = lambda: None) -> None:
    """Start failure detection: from here on a lost rank ends the others. Every rank must call this."""
    if world_size() > 1:
        heartbeat.start(distributed_c10d._get_default_store(), process_index(), world_size(), on_lost, on_exit)


def is_main_process() -> bool:
    return start_processes().is_main_process


def say(text: str) -> None:
    """Print one plain line on the main process."""
    if is_main_process():
        print(one_line(text), file=sys.stderr)


def all_reduce_max(value: int) -> int:
    """The largest value of any rank."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=start_processes().device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


@cache
def _host_group() -> Any:
    """A gloo group of all ranks; None, the default group, where that is gloo already."""
    return None if on_cpu() else torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def all_reduce_max_on_host(value: int) -> int:
    """As `all_reduce_max`, but without a GPU synchronisation, so it is cheap enough for every step."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=_host_group())
    return int(largest)


def gather_lists(values: list[Any]) -> list[list[Any]]:
    """The lists of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [values]
    lists: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(lists, values)
    return lists


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks' tensors, which have one shape, in rank order, on every rank."""
    if world_size() == 1:
        return x
    shares = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    torch.distributed.all_gather(shares, x.contiguous())
    return torch.cat(shares)


def shard_of_batches(loader: Any) -> BatchSamplerShard | None:
    """What gives each process its batches of a prepared loader: every so many-th. None where nothing does."""
    shard = getattr(loader, "batch_sampler", None)
    return shard if isinstance(shard, BatchSamplerShard) and not shard.split_batches else None


def world_size() -> int:
    return start_processes().num_processes


def process_index() -> int:
    return int(start_processes().process_index)


def wait_for_everyone() -> None:
    start_processes().wait_for_everyone()


def on_main_process(call: Callable[[], T]) -> T:
    """Call on the main process only; every rank returns its result or raises its UserError.

    An error on the main process alone would leave the other ranks in a collective until it times out.
    """
    value, error = None, None
    with heartbeat.within():
        if is_main_process():
            try:
                value = call()
            except UserError as raised:
                error = raised
        if world_size() > 1:
            value, error = broadcast_object_list([value, error])
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def broadcast(value: T) -> T:
    """The main process's value on every rank; it is pickled, and that of the others is not read."""
    return broadcast_object_list([value])[0] if world_size() > 1 else value


def on_every_process(call: Callable[[], T]) -> T:
    """Call on each rank; if one raises a UserError, all ranks raise one.

    Each rank works on its own rows, and an error on one alone would leave the others in a collective.
    """
    value, error = None, None
    try:
        value = call()
    except UserError as raised:
        error = raised
    errors = [rank_error for [rank_error] in gather_lists([error]) if rank_error is not None]
    if errors:
        raise error or errors[0]
    return value  # type: ignore[return-value]


def admit_fsdp() -> None:
    """Call before an `Accelerator` is made: accelerate ignores FSDP on processes that it knows to be on the CPU."""
    if start_processes() and under_fsdp():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def save_whole(accelerator: Accelerator) -> None:
    """Gather ZeRO-3's weights when the model is saved, also if the launch file does not ask for it: shards cannot be
    published."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


def reset_accelerator() -> None:
    """Allow another trainer in this process: accelerate refuses a second one with a DeepSpeed config."""
    AcceleratorState._reset_state()


def make_accelerator(*, bf16: bool = False) -> Accelerator:
    """An accelerator for the PPO loop, which marks the end of a batch itself (`TrainingEngine`).

    DeepSpeed reads clipping, accumulation and batch size only from its own config, so they are written there;
    otherwise the launch file's values would silently win. `TrainingEngine` clips, not DeepSpeed.
    """
    admit_fsdp()
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["gradient_accumulation_steps"] = 1
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
        plugin.deepspeed_config["gradient_clipping"] = 0.0
        zero = plugin.deepspeed_config["zero_optimization"]
        for key in HIDDEN_SIZE_KEYS:  # accelerate fills "auto" in from one model's config; the loop has several models
            if zero.get(key) == "auto":
                del zero[key]
    save_whole(accelerator)
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def backend(accelerator: Accelerator, engine: nn.Module) -> dict[str, Any]:
    """The backend in use: world size, the engine's class and the ZeRO stage. It makes a silent fallback visible."""
    from torch.distributed.fsdp import FSDPModule  # takes half a second, and only a run needs it

    return {
        "world_size": accelerator.num_processes,
        "engine": "FSDP2" if isinstance(engine, FSDPModule) else type(engine).__name__,
        "zero_stage": zero_stage(accelerator),
    }


def zero_stage(accelerator: Accelerator) -> int:
    """DeepSpeed's ZeRO stage, 0 without DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage) if plugin is not None else 0


def offload_devices(accelerator: Accelerator) -> tuple[str, str]:
    """DeepSpeed's offload devices of the optimizer's state and of the weights: `none` (the GPU), `cpu` or `nvme`."""
    plugin = accelerator.state.deepspeed_plugin
    zero = {} if plugin is None else plugin.deepspeed_config["zero_optimization"]
    kinds = ("offload_optimizer", "offload_param")
    optimizer, weights = ((zero.get(kind) or {}).get("device") or "none" for kind in kinds)
    return optimizer, weights


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over all ranks; an `alignment.tensors.Reduce`."""
    if world_size() > 1:
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x
