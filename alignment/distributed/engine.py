"""The training engine: one module under DDP, DeepSpeed or FSDP2, with its optimizer, gradients and checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from alignment.distributed import fsdp, zero3
from alignment.distributed.processes import (
    all_reduce_sum,
    is_main_process,
    offload_devices,
    under_fsdp,
    zero_stage,
)
from alignment.errors import UserError

BUCKET_SIZE = 2**24  # gradient elements in one all-reduce: 64 MiB of float32


class Diverged(UserError):
    """The gradient is not finite; it has changed no weight."""


class TrainingEngine:
    """A module and its optimizer on one process, on several, sharded by FSDP2, or in DeepSpeed's engine.

    Each loss is a term of one sum over all backward passes of all ranks. Gradients are reduced once per step, so a
    step may have any number of passes, and each pass may reach other parameters. (DDP would expect a gradient for
    every parameter in every pass.) Under ZeRO and FSDP2 each pass is a collective, so all ranks must make the same
    number.
    """

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        self.accelerator, self.module, self.max_norm = accelerator, module, max_norm
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]
        self.deepspeed: Any = None
        if accelerator.state.deepspeed_plugin is not None:
            if zero3.is_partitioned(module):  # DeepSpeed casts whole models alone, and refuses shards of another type
                zero3.cast(module, torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32)
            self.deepspeed, self.optimizer = accelerator.prepare(module, optimizer)
        else:
            self.optimizer = optimizer
            if under_fsdp():
                fsdp.shard_trained(module, optimizer, accelerator)
                self._groups = [list(group["params"]) for group in optimizer.param_groups]
            else:
                module.to(accelerator.device)
        self._is_fsdp = fsdp.is_sharded(module)
        self._zero_stage = zero_stage(accelerator)
        kinds = ("averaged_gradients", "single_partition_of_fp32_groups")
        if self._zero_stage and not any(hasattr(self.deepspeed.optimizer, name) for name in kinds):
            raise UserError(
                f"DeepSpeed's {type(self.deepspeed.optimizer).__name__} keeps its gradients where they cannot be "
                "clipped by role; remove data_types.grad_accum_dtype from the DeepSpeed config, or use ZeRO 2 or 3"
            )
        self._offloaded = offload_devices(accelerator)[0] != "none"
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if self._reduces:
            for parameter in self.parameters:  # each rank may have initialised a new head or adapter differently
                torch.distributed.broadcast(parameter.data, 0)

    @property
    def _reduces(self) -> bool:
        """Whether the gradients are summed here: with several processes, of which each holds them whole."""
        return not self.has_collective_passes and self.accelerator.num_processes > 1

    @property
    def has_collective_passes(self) -> bool:
        """Whether a pass is a collective, so that no rank can leave it or make it again."""
        return self.deepspeed is not None or self._is_fsdp

    @property
    def num_bytes(self) -> int:
        """Bytes of all trained parameters."""
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.parameters)

    @property
    def wrapped(self) -> nn.Module:
        """The module to call: DeepSpeed's engine, or the module itself."""
        return self.deepspeed or self.module

    def forward(self, *args: Any) -> Any:
        """A forward pass with gradients."""
        with self.accelerator.autocast():
            return self.wrapped(*args)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a loss; `last` marks the final pass before a step."""
        if self.deepspeed is None:
            (loss * self.accelerator.num_processes if self._is_fsdp else loss).backward()  # FSDP averages over ranks
            return
        # With offload the boundary is set in `step`: here DeepSpeed would keep only the last pass's gradients.
        self.deepspeed.set_gradient_accumulation_boundary(last and not self._offloaded)
        self.deepspeed.backward(loss * self.accelerator.num_processes)  # DeepSpeed averages over ranks

    def step(self) -> list[float]:
        """Clip each parameter group's gradient separately and step; returns the groups' norms before clipping.

        With one norm for all groups, a large error of the critic would shrink the policy's step.

        Raises:
            Diverged: on every rank, if the gradient is not finite on any.
        """
        if self._reduces:
            self._reduce_gradients()
        groups = self._gradient_shards()
        device = self.accelerator.device  # with offload the shards are on the host, and NCCL reduces GPU tensors only
        squares = torch.stack([
            torch.stack([shard.double().square().sum() for shard in shards]).sum().to(device)
            if shards else torch.zeros((), dtype=torch.float64, device=device)
            for shards in groups
        ])  # fmt: skip
        # ZeRO and FSDP shard the gradient over the ranks; without them each rank has all of it.
        norms = (all_reduce_sum(squares) if self._zero_stage or self._is_fsdp else squares).sqrt()
        total = all_reduce_sum(norms.sum())
        *values, total_value = torch.cat([norms, total[None]]).tolist()  # the step's one wait for the device
        if not math.isfinite(total_value):
            raise Diverged("loss or gradient is not finite")
        for norm, shards in zip(values, groups, strict=True):
            for shard in shards if norm > self.max_norm else ():
                shard.mul_(self.max_norm / norm)
        if self.deepspeed is not None:
            self.deepspeed.step()
            self._zero_gradient_buffers()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return values

    def discard(self) -> None:
        """Forget the gradients since the last step, and give the memory back; not with collective passes."""
        assert not self.has_collective_passes
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def restart(self, group: int) -> None:
        """Reset Adam's step count for a parameter group that has had no gradient so far.

        With several processes, and under DeepSpeed, the group was stepped with gradients of 0. Adam's bias correction
        would treat the moments, still 0, as averages over many steps: updates of up to six times the learning rate.
        """
        parameters = self.optimizer.param_groups[group]["params"]
        if self._zero_stage == 3:  # ZeRO-3 fills the groups for a step only
            zero_optimizer = self.deepspeed.optimizer
            group_ids = zero_optimizer.sub_group_to_group_id
            flats = enumerate(zero_optimizer.fp32_partitioned_groups_flat)
            parameters = [flat for index, flat in flats if group_ids[index] == group]
        for parameter in parameters:
            state = self.optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = state["step"] * 0

    def _gradient_shards(self) -> list[list[Tensor]]:
        """This rank's shards of each parameter group's gradient, just before a step."""
        if not self._zero_stage:
            return [[fsdp.local(p.grad) for p in group if p.grad is not None] for group in self._groups]
        zero_optimizer, shards = self.deepspeed.optimizer, [list[Tensor]() for _ in self._groups]
        if self._offloaded:
            zero_optimizer.finalize_gradient_accumulation_boundary()
            self.deepspeed.set_gradient_accumulation_boundary(True)
            if self.accelerator.device.type == "cuda":  # DeepSpeed's copies to the host are asynchronous
                torch.cuda.synchronize(self.accelerator.device)
            name = "fp32_partitioned_groups_flat" if self._zero_stage == 3 else "single_partition_of_fp32_groups"
            gradients = {index: [flat.grad] for index, flat in enumerate(getattr(zero_optimizer, name))}
        else:
            gradients = zero_optimizer.averaged_gradients
        for index, tensors in gradients.items():  # ZeRO-3 splits each group into sub-groups
            group = zero_optimizer.sub_group_to_group_id[index] if self._zero_stage == 3 else index
            shards[group] += [tensor for tensor in tensors or () if tensor is not None]
        return shards

    def _zero_gradient_buffers(self) -> None:
        """Clear DeepSpeed's gradient buffers after a step.

        DeepSpeed overwrites them in the first pass of the next step and adds in later ones. Parameters that the first
        pass does not reach, such as the critic's, would keep the last step's gradient.
        """
        zero_optimizer = self.deepspeed.optimizer
        if self._zero_stage == 3:
            zero_optimizer.grad_partitions_flat_buffer.zero_()
        elif self._offloaded:
            for buffer in zero_optimizer.accumulated_grads_in_cpu.values():
                buffer.zero_()

    def _reduce_gradients(self) -> None:
        """Sum the gradients over all ranks, one bucket at a time; a missing gradient counts as 0."""
        bucket: list[nn.Parameter] = []
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            if sum(p.numel() for p in bucket) >= BUCKET_SIZE or index == len(self.parameters) - 1:
                flat = torch.cat([p.grad.flatten() for p in bucket])  # type: ignore[union-attr]
                torch.distributed.all_reduce(flat)
                for p, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                    p.grad = gradient.view_as(p)
                bucket = []

    def save(self, folder: Path) -> None:
        """Write this rank's share of a checkpoint; every rank must call this.

        DeepSpeed writes its own files, and under FSDP each rank its shards. Without them all ranks hold the same, and
        the main process writes.
        """
        if self.deepspeed is not None:
            self.deepspeed.save_checkpoint(str(folder), exclude_frozen_parameters=True)
        elif self._is_fsdp:
            fsdp.save(folder, self._trained(), self.optimizer)
        elif is_main_process():
            torch.save(self._trained() | {"optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path, saved: int) -> None:
        """Restore what `save` wrote. The folder must be verified first, since DeepSpeed reads pickles.

        Args:
            saved: world size of the run that saved it.
        """
        if self.deepspeed is not None:
            from alignment.distributed import zero_checkpoint

            with zero_checkpoint.resharded(folder, saved) as readable:
                zero_checkpoint.load(self.deepspeed, readable)
            return
        if self._is_fsdp:
            fsdp.load(folder, saved, self._trained(), self.optimizer)
            return
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(state[name])

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters() if p.requires_grad}

    def full_state_dict(self) -> dict[str, Tensor]:
        """All of the module's weights on the main process; every rank must call this, to gather them."""
        return dict(self.accelerator.get_state_dict(self.wrapped) or {})


def run_as_forward(wrapper: nn.Module, module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function(*args)` as if it were the forward of `module`, through its `wrapper` (DDP, DeepSpeed, or itself).

    The wrapper's hooks then run: DDP reduces gradients, and ZeRO-3 gathers the weights, once per call on every rank.
    (The idea is Lightning's forward redirection.)
    """
    original = module.__dict__.get("forward")  # autocast installs its wrapper as an instance attribute

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if original is not None:
            module.forward = original

    def redirected(*inner: Any) -> Any:
        restore()
        return function(*inner)

    module.forward = redirected
    try:
        return wrapper(*args)
    finally:
        restore()
