"""The training engine: one module under DDP or DeepSpeed, with its optimizer, gradients and checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from alignment.distributed.processes import all_reduce_sum, is_main_process, offload_devices, zero_stage
from alignment.errors import UserError

BUCKET = 2**24  # numbers of a gradient that are sent at a time: 64 MiB of float32


class Diverged(UserError):
    """A gradient that is not finite; no weight was changed by it."""


class TrainingEngine:
    """A module and its optimizer under this launch: one process, several, or DeepSpeed's engine.

    Losses are parts of one sum over all backward passes of all processes. The processes' gradients are added up once
    per step, so a step may have any number of passes, over other parameters each. (DDP would wait in every pass for a
    gradient of all.) Under ZeRO each pass is a collective, and all processes must make as many.
    """

    def __init__(
        self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        self.accelerator, self.module, self.max_norm = accelerator, module, max_norm
        self._groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]
        self.deepspeed: Any = None
        if accelerator.state.deepspeed_plugin is not None:
            self.deepspeed, self.optimizer = accelerator.prepare(module, optimizer)
        else:
            module.to(accelerator.device)
            self.optimizer = optimizer
        self._zero_stage = zero_stage(accelerator)
        kinds = ("averaged_gradients", "single_partition_of_fp32_groups")
        if self._zero_stage and not any(hasattr(self.deepspeed.optimizer, name) for name in kinds):
            raise UserError(
                f"DeepSpeed's {type(self.deepspeed.optimizer).__name__} keeps its gradients where they cannot be "
                "clipped by role; take data_types.grad_accum_dtype out of the DeepSpeed config, or use ZeRO 2 or 3"
            )
        self._offloaded = offload_devices(accelerator)[0] != "none"
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if self.deepspeed is None and accelerator.num_processes > 1:
            for parameter in self.parameters:  # a new head or adapter could have been drawn otherwise on each
                torch.distributed.broadcast(parameter.data, 0)

    @property
    def num_bytes(self) -> int:
        """Of what is trained."""
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.parameters)

    @property
    def wrapped(self) -> nn.Module:
        """What really runs."""
        return self.deepspeed or self.module

    def forward(self, *args: Any) -> Any:
        """A forward pass with gradients."""
        with self.accelerator.autocast():
            return self.wrapped(*args)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a loss's gradient; `last` says that a step follows."""
        if self.deepspeed is None:
            loss.backward()
            return
        # Under offload the boundary is drawn in `step`: DeepSpeed would hand over the gradients of the last pass alone.
        self.deepspeed.set_gradient_accumulation_boundary(last and not self._offloaded)
        self.deepspeed.backward(loss * self.accelerator.num_processes)  # it averages over processes

    def step(self) -> list[float]:
        """Clip the gradient of each of the optimizer's parameter groups by itself, and step; returns their norms before
        clipping.

        Apart, because a large error of the critic would otherwise shrink the policy's step.

        Raises:
            Diverged: on every process, where the gradient is not finite on any.
        """
        if self.deepspeed is None and self.accelerator.num_processes > 1:
            self._add_up()
        groups = self._gradients()
        device = self.accelerator.device  # under offload the parts lie on the host, where NCCL reduces nothing
        squares = torch.stack([
            torch.stack([part.double().square().sum() for part in parts]).sum().to(device)
            if parts else torch.zeros((), dtype=torch.float64, device=device)
            for parts in groups
        ])  # fmt: skip
        # ZeRO leaves each process a part of the gradient; without it each has the whole.
        norms = (all_reduce_sum(squares) if self._zero_stage else squares).sqrt()
        self._check(norms.sum())
        for norm, parts in zip(norms.tolist(), groups, strict=True):
            for part in parts if norm > self.max_norm else ():
                part.mul_(self.max_norm / norm)
        if self.deepspeed is not None:
            self.deepspeed.step()
            self._forget_gradients()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return norms.tolist()

    def restart(self, group: int) -> None:
        """Count Adam's steps of a parameter group from 0; to be called where it has had no gradient so far.

        With several processes and under DeepSpeed it has been stepped with a gradient of 0. Adam would take the
        moments, still 0, for averages of many steps, and divide by a far too small one: steps of up to six times the
        rate.
        """
        parameters = self.optimizer.param_groups[group]["params"]
        if self._zero_stage == 3:  # which fills the groups for a step and empties them again
            owner = self.deepspeed.optimizer
            groups = owner.sub_group_to_group_id
            parameters = [flat for n, flat in enumerate(owner.fp32_partitioned_groups_flat) if groups[n] == group]
        for parameter in parameters:
            state = self.optimizer.state.get(parameter, {})
            if "step" in state:
                state["step"] = state["step"] * 0

    def _gradients(self) -> list[list[Tensor]]:
        """This process's part of the gradient of each parameter group, as it is held before a step."""
        if not self._zero_stage:
            return [[p.grad for p in group if p.grad is not None] for group in self._groups]
        owner, found = self.deepspeed.optimizer, [list[Tensor]() for _ in self._groups]
        if self._offloaded:
            owner.finalize_gradient_accumulation_boundary()
            self.deepspeed.set_gradient_accumulation_boundary(True)
            if self.accelerator.device.type == "cuda":  # DeepSpeed copies them to the host without waiting
                torch.cuda.synchronize(self.accelerator.device)
            name = "fp32_partitioned_groups_flat" if self._zero_stage == 3 else "single_partition_of_fp32_groups"
            held = {number: [flat.grad] for number, flat in enumerate(getattr(owner, name))}
        else:
            held = owner.averaged_gradients
        for number, parts in held.items():  # ZeRO-3 cuts groups into smaller ones
            group = owner.sub_group_to_group_id[number] if self._zero_stage == 3 else number
            found[group] += [part for part in parts or () if part is not None]
        return found

    def _forget_gradients(self) -> None:
        """DeepSpeed writes the first pass's gradients into buffers and adds those of later ones: what the first pass
        does not reach, as the critic, would be added to the last step's."""
        owner = self.deepspeed.optimizer
        if self._zero_stage == 3:
            owner.grad_partitions_flat_buffer.zero_()
        elif self._offloaded:
            for buffer in owner.accumulated_grads_in_cpu.values():
                buffer.zero_()

    def _check(self, figure: Tensor) -> None:
        if not torch.isfinite(all_reduce_sum(figure.detach().double())):
            raise Diverged("loss or gradient is not finite")

    def _add_up(self) -> None:
        """Sum the gradients over all processes, a bucket at a time; a parameter without one counts as 0."""
        bucket: list[nn.Parameter] = []
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter)
            if sum(p.numel() for p in bucket) >= BUCKET or number == len(self.parameters) - 1:
                flat = torch.cat([p.grad.flatten() for p in bucket])  # type: ignore[union-attr]
                torch.distributed.all_reduce(flat)
                for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                    p.grad = part.view_as(p)
                bucket = []

    def save(self, folder: Path) -> None:
        """This process's part of a checkpoint; every process must call this. DeepSpeed writes its own files, plain
        processes are all alike and the main one writes."""
        if self.deepspeed is not None:
            self.deepspeed.save_checkpoint(str(folder), exclude_frozen_parameters=True)
        elif is_main_process():
            torch.save(self._trained() | {"optimizer": self.optimizer.state_dict()}, folder / "engine.pt")

    def load(self, folder: Path, saved: int) -> None:
        """Put back what `save` wrote, of a folder whose files are known to be those: DeepSpeed reads pickles.

        Args:
            saved: processes that have.
        """
        if self.deepspeed is not None:
            from alignment.distributed import zero_checkpoint

            with zero_checkpoint.for_this_launch(folder, saved) as readable:
                zero_checkpoint.load(self.deepspeed, readable)
            return
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(state[name])

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters() if p.requires_grad}

    def full_state_dict(self) -> dict[str, Tensor]:
        """The whole module's weights on the main process; every process must call this (ZeRO-3 gathers them there)."""
        return dict(self.accelerator.get_state_dict(self.wrapped) or {})


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
