"""What makes a TRL trainer's run one that goes on from a checkpoint as if nothing had happened, to the last bit.

transformers saves weights, optimizer, schedule and random states. Beside those a run has running sums for its next log
line, the order of the epoch that it is in the middle of (which it drew from a generator that has moved on since), the
best model so far, and, at the end of an epoch, an evaluation that comes after the last step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.training_args import TrainingArguments

from alignment.distributed import heartbeat
from alignment.distributed import processes as distributed
from alignment.distributed.zero_checkpoint import UNIVERSAL, repair_zero3_state, resharded
from alignment.errors import CheckpointError
from alignment.files import keep_files
from alignment.runs.checkpoint import Checkpoint, Checkpoints, load_state, save_state
from alignment.runs.journal import Journal
from alignment.runs.signals import Control, Wanted, exit_if_preempted
from alignment.runs.world_size import redistributed
from alignment.seeds import random_state, set_random_state, stream_seed
from alignment.training.best_model import BestModel
from alignment.training.optimizers import Settings

WEIGHTS, OPTIMIZER, STATE, BEST = "weights.safetensors", "optimizer.pt", "trainer_state.json", "best"


class Resumable:
    """Mixin before a transformers Trainer, whose methods of the same names it takes the place of."""

    checkpoints: Checkpoints | None = None
    resumed: Checkpoint | None = None
    best: BestModel | None = None
    outside: Control
    wanted = Wanted.NOTHING
    """Of the boundary that training is at."""
    _epoch_random: dict[str, Any] | None = None
    """Random states at the beginning of the epoch, from which its order was drawn."""

    def use_checkpoints(
        self: Any,
        checkpoints: Checkpoints,
        every: int,
        start: Checkpoint | None,
        best: BestModel | None,
        journal: Journal,
    ) -> None:
        """Save a checkpoint every so many steps (0: never); `train_on` begins from `start`.

        Args:
            best: the keeper of the best model, whose model goes into the checkpoints.
        """
        self.checkpoints, self.resumed, self.best = checkpoints, start, best
        self.outside = Control(checkpoints.run_dir, journal)
        self.add_callback(_Saving(self, every, journal))

    def train_on(self: Any) -> Any:
        """Train, from the checkpoint if there is one."""
        if self.resumed is not None and self.best is not None:
            if distributed.is_main_process():
                keep_files(self.resumed.path / BEST, self.best.folder)
            distributed.wait_for_everyone()
        heartbeat.enter("the beginning of training")
        with self._readable() as folder:
            outcome = self.train(resume_from_checkpoint=folder)
        heartbeat.enter("the end of training", patient=True)
        return outcome

    @contextmanager
    def _readable(self: Any) -> Iterator[str | None]:
        """The checkpoint as this number of processes can read it."""
        if self.resumed is None or not self.is_deepspeed_enabled:
            yield str(self.resumed.path) if self.resumed else None
            return
        saved = self.resumed.manifest.world_size
        if saved != distributed.world_size() and "nvme" in distributed.offload_devices(self.accelerator):
            raise CheckpointError(
                f"{self.resumed.path}: saved by {saved} processes, and with parts on NVMe no other number can go on "
                f"from it; launch {saved}"
            )
        with resharded(self.resumed.path, saved) as folder:
            if (folder / UNIVERSAL).exists():  # only then: checkpoints hold this config, and would differ by the key
                self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
            yield str(folder)

    # What is saved

    def running_state(self: Any) -> dict[str, Any]:
        """Of this process: what is between two log lines. Subclasses add their own sums."""
        return {
            "loss": self._tr_loss.cpu(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "tokens": self._total_train_tokens,
            "ranks": ranks_state(self.model),
        }

    def load_running_state(self: Any, state: dict[str, Any]) -> None:
        self._tr_loss = state["loss"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = state["total_loss"], state["last_logged"]
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._total_train_tokens = state["tokens"]
        self._initial_global_step = 0  # the mean loss at the end is over all steps of the run
        load_ranks_state(self.model, state["ranks"])

    def _save_checkpoint(self: Any, model: nn.Module, trial: Any) -> None:
        """Called where a callback has asked for it, after the step's log line and evaluation."""
        if self.checkpoints is None or self.control.should_training_stop:  # which a resumed run would not know of
            return
        self.store_flos()
        size = 3 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        step = self.first_step + self.state.global_step
        heartbeat.enter(f"the checkpoint of step {step}")
        self.outside.save(self.wanted, step, lambda: self.checkpoints.save(step, self._write_checkpoint, size))

    first_step = 0
    """Steps of the run's other trainings before this one, for a checkpoint's number."""

    def _write_checkpoint(self: Any, folder: Path) -> None:
        own = {"random": random_state(), "epoch_random": self._epoch_random, "running": self.running_state()}
        if self.best is not None:
            own["best"] = self.best.state_dict()
        save_state(folder / f"process-{distributed.process_index()}.pt", own)
        if distributed.is_main_process():
            self.state.save_to_json(str(folder / STATE))
            if self.best is not None:
                keep_files(self.best.folder, folder / BEST)
        if self.is_deepspeed_enabled:
            self._save_optimizer_and_scheduler(str(folder))
        elif distributed.is_main_process():
            save_file(trained_weights(self.model), folder / WEIGHTS)
            parts = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
            save_state(folder / OPTIMIZER, parts)

    # What is loaded

    def create_scheduler(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The last call before anything is loaded, DeepSpeed's parts too."""
        schedule = super().create_scheduler(*args, **kwargs)  # type: ignore[misc]
        self._of_config = Settings(self.optimizer, schedule)
        return schedule

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained_weights(self.model, load_file(Path(resume_from_checkpoint, WEIGHTS)))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            repair_zero3_state(self.model_wrapped, Path(checkpoint))
        else:
            parts = load_state(Path(checkpoint, OPTIMIZER))
            self.optimizer.load_state_dict(parts["optimizer"])
            self.lr_scheduler.load_state_dict(parts["schedule"])
        self._of_config.restore()

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(self.own_state(Path(checkpoint))["random"])

    def own_state(self: Any, folder: Path) -> dict[str, Any]:
        """What this process has saved, or of what another number of them have saved its part."""
        index, saved = distributed.process_index(), self.resumed.manifest.world_size
        if saved == distributed.world_size():
            state: dict[str, Any] = load_state(folder / f"process-{index}.pt")
            return state
        states = [load_state(folder / f"process-{number}.pt") for number in range(saved)]
        return redistributed(states, index, stream_seed("process", self.args.seed, self.resumed.step, index))

    def _get_train_sampler(self: Any, *args: Any) -> Any:
        """One order by length for all processes, whatever their number; each would draw its own, and group by the
        size of its own part of a batch."""
        sampler = super()._get_train_sampler(*args)  # type: ignore[misc]
        return _OneOrder(sampler, self.args.world_size) if isinstance(sampler, LengthGroupedSampler) else sampler


class _OneOrder(LengthGroupedSampler):
    def __init__(self, sampler: LengthGroupedSampler, processes: int) -> None:
        super().__init__(sampler.batch_size * processes, lengths=sampler.lengths, generator=sampler.generator)

    def __iter__(self) -> Iterator[int]:
        return iter(distributed.on_main_process(lambda: list(super(_OneOrder, self).__iter__())))


class _Saving(TrainerCallback):
    """Asks for checkpoints, and puts a resumed run where it was."""

    def __init__(self, trainer: Any, every: int, journal: Journal) -> None:
        self._trainer, self._every, self._journal = trainer, every, journal
        self._waiting = False
        """A checkpoint is due when the epoch's end has been dealt with."""
        self._continued_epoch: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        start = self._trainer.resumed
        if self._trainer.first_step == 0:  # what was trained before this one is in no checkpoint yet
            exit_if_preempted(self._journal.run_dir)
        if start is None:
            return
        own = self._trainer.own_state(start.path)
        self._trainer.load_running_state(own["running"])
        if self._trainer.best is not None:
            self._trainer.best.load_state_dict(own["best"])
        at_start = _whole(state.epoch)
        self._continued_epoch = own["random"] if at_start else own["epoch_random"]
        self._journal.mark_resumed(step=start.step, checkpoint=start.path.name)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._continued_epoch is not None:
            set_random_state(self._continued_epoch)
            self._continued_epoch = None
        self._trainer._epoch_random = random_state()
        # Of the processes of a launch, accelerate's wrappers hide the sampler of a resumed epoch from `set_epoch`.
        set_epoch(kwargs["train_dataloader"], math.floor((state.epoch or 0.0) + 1e-9))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        heartbeat.enter(f"step {state.global_step + 1}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            return
        wanted = self._trainer.wanted = self._trainer.outside.poll(self._trainer.first_step + state.global_step)
        if wanted is Wanted.STOP:
            control.should_training_stop = True
            return
        if not wanted.saves and (not self._every or state.global_step % self._every):
            return
        if _whole(state.epoch):  # the evaluation at the epoch's end is still to come, and would be left out
            self._waiting = True
        else:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._waiting:
            control.should_save, self._waiting = True, False


def _whole(epoch: float | None) -> bool:
    return epoch is not None and abs(epoch - round(epoch)) < 1e-9


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler of a prepared data loader, under however many wrappers, which epoch it is to give."""
    part = loader.batch_sampler
    while part is not None:
        sampler: Any = getattr(part, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        part = getattr(part, "batch_sampler", None)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """What training changes of a module: parameters with a gradient, and buffers that are saved with it."""
    found = {name: p.detach().contiguous() for name, p in module.named_parameters() if p.requires_grad}
    saved = module.state_dict()
    found |= {f"buffer:{name}": b.detach().clone() for name, b in module.named_buffers() if name in saved}
    return found


def load_trained_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put back what `trained_weights` gave."""
    targets: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    saved = module.state_dict()
    targets |= {f"buffer:{name}": b for name, b in module.named_buffers() if name in saved}
    assert set(targets) == set(weights), set(targets) ^ set(weights)
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(weights[name])


def ranks_state(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The importance that AdaLoRA has found its ranks to have so far, which is in no parameter; empty for others."""
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    names = ("ipt", "exp_avg_ipt", "exp_avg_unc")
    return {} if allocator is None else {name: dict(getattr(allocator, name)) for name in names}


def load_ranks_state(model: nn.Module, state: dict[str, dict[str, Tensor]]) -> None:
    for name, values in state.items():
        getattr(model.base_model.rankallocator, name).update(values)  # type: ignore[union-attr]
