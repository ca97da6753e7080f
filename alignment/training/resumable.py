"""Bit-exact resume of a TRL trainer from a checkpoint.

transformers saves weights, optimizer, schedule and random states. A run also has running sums for its next log line,
the row order of the current epoch (drawn from a generator that has advanced since), the best model so far, and, at the
end of an epoch, an evaluation that follows the last step.
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

from alignment.distributed import fsdp, heartbeat
from alignment.distributed import processes as distributed
from alignment.distributed.zero_checkpoint import UNIVERSAL, repair_zero3_state, resharded
from alignment.errors import CheckpointError
from alignment.files import keep_files
from alignment.runs.checkpoint import Checkpoint, Checkpoints, load_state, save_state
from alignment.runs.journal import Journal
from alignment.runs.signals import Control, Wanted, exit_if_preempted, note_step
from alignment.runs.world_size import redistributed
from alignment.seeds import random_state, set_random_state, stream_seed
from alignment.training.balance import BalancedBatches
from alignment.training.best_model import BestModel
from alignment.training.finite_steps import FiniteSteps
from alignment.training.optimizers import Settings

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "trainer_state.json"
BEST = "best"


class Resumable(FiniteSteps):
    """Mixin for a transformers Trainer that overrides how it saves and loads checkpoints."""

    checkpoints: Checkpoints | None = None
    resumed: Checkpoint | None = None
    best: BestModel | None = None
    outside: Control
    wanted = Wanted.NOTHING
    """The request seen at the current step boundary."""
    _epoch_random: dict[str, Any] | None = None
    """Random states at the start of the epoch, from which its row order was drawn."""

    def use_checkpoints(
        self: Any,
        checkpoints: Checkpoints,
        every: int,
        start: Checkpoint | None,
        best: BestModel | None,
        journal: Journal,
    ) -> None:
        """Save a checkpoint every `every` steps (0: never); `train_on` begins from `start`.

        Args:
            best: keeps the best model, which goes into the checkpoints.
        """
        self.checkpoints, self.resumed, self.best = checkpoints, start, best
        self.outside, self.guarded = Control(checkpoints.run_dir, journal), journal
        self.add_callback(_Saving(self, every, journal))

    def train_on(self: Any) -> Any:
        """Train, resuming from the checkpoint if there is one."""
        if self.resumed is not None and self.best is not None:
            if distributed.is_main_process():
                keep_files(self.resumed.path / BEST, self.best.folder)
            distributed.wait_for_everyone()
        heartbeat.enter("the beginning of training")
        with self._readable() as folder:
            outcome = self.train(resume_from_checkpoint=folder)
        self.check_end()
        heartbeat.enter("the end of training", patient=True)
        return outcome

    @contextmanager
    def _readable(self: Any) -> Iterator[str | None]:
        """The checkpoint's folder, readable at this world size."""
        if self.resumed is None or not self.is_deepspeed_enabled:
            yield str(self.resumed.path) if self.resumed else None
            return
        saved = self.resumed.manifest.world_size
        if saved != distributed.world_size() and "nvme" in distributed.offload_devices(self.accelerator):
            raise CheckpointError(
                f"{self.resumed.path}: saved by {saved} processes, and with shards on NVMe no other number can resume "
                f"from it; launch {saved}"
            )
        with resharded(self.resumed.path, saved) as folder:
            if (folder / UNIVERSAL).exists():  # otherwise unset, since checkpoints hold this config
                self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
            yield str(folder)

    def create_accelerator_and_postprocess(self: Any) -> None:
        distributed.admit_fsdp()
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        distributed.save_whole(self.accelerator)
        if self.is_fsdp_enabled:
            fsdp.configure(self.accelerator)

    # Saving

    def running_state(self: Any) -> dict[str, Any]:
        """This rank's running sums since the last log line; subclasses add their own."""
        return {
            "loss": self._tr_loss.cpu(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "tokens": self._total_train_tokens,
            "ranks": ranks_state(self.model),
            "num_parts": self.num_parts,
        }

    def load_running_state(self: Any, state: dict[str, Any]) -> None:
        self._tr_loss = state["loss"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = state["total_loss"], state["last_logged"]
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._total_train_tokens = state["tokens"]
        self._initial_global_step = 0  # the final mean loss covers all steps of the run
        load_ranks_state(self.model, state["ranks"])
        self.num_parts = state.get("num_parts", 1)

    def _save_checkpoint(self: Any, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint that a callback has requested, after the step's log line and evaluation."""
        if self.checkpoints is None or self.control.should_training_stop:  # a resumed run would not know of the stop
            return
        self.store_flos()
        size = 3 * sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        step = self.first_step + self.state.global_step
        heartbeat.enter(f"the checkpoint of step {step}")
        self.outside.save(self.wanted, step, lambda: self.checkpoints.save(step, self._write_checkpoint, size))

    def _write_checkpoint(self: Any, folder: Path) -> None:
        self.check_savable()
        rank_state = {"random": random_state(), "epoch_random": self._epoch_random, "running": self.running_state()}
        if self.best is not None:
            rank_state["best"] = self.best.state_dict()
        save_state(folder / f"process-{distributed.process_index()}.pt", rank_state)
        if distributed.is_main_process():
            self.state.save_to_json(str(folder / STATE))
            if self.best is not None:
                keep_files(self.best.folder, folder / BEST)
        if self.is_deepspeed_enabled:
            self._save_optimizer_and_scheduler(str(folder))
        elif self.is_fsdp_enabled:
            fsdp.save(folder, trained_tensors(self.model), self.optimizer, schedule=self.lr_scheduler.state_dict())
        elif distributed.is_main_process():
            weights = trained_tensors(self.model).items()
            save_file({name: tensor.clone().contiguous() for name, tensor in weights}, folder / WEIGHTS)
            states = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
            save_state(folder / OPTIMIZER, states)

    # Loading

    def create_scheduler(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep the config's settings; this is the last call before any state is loaded, DeepSpeed's too."""
        schedule = super().create_scheduler(*args, **kwargs)  # type: ignore[misc]
        self._configured = Settings(self.optimizer, schedule)
        return schedule

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # loaded with the optimizer
            return
        load_trained_weights(self.model, load_file(Path(resume_from_checkpoint, WEIGHTS)))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            repair_zero3_state(self.model_wrapped, Path(checkpoint))
        elif self.is_fsdp_enabled:
            saved, weights = self.resumed.manifest.world_size, trained_tensors(self.model)
            self.lr_scheduler.load_state_dict(fsdp.load(Path(checkpoint), saved, weights, self.optimizer)["schedule"])
        else:
            states = load_state(Path(checkpoint, OPTIMIZER))
            self.optimizer.load_state_dict(states["optimizer"])
            self.lr_scheduler.load_state_dict(states["schedule"])
        self._configured.restore()

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(self.rank_state(Path(checkpoint))["random"])

    def rank_state(self: Any, folder: Path) -> dict[str, Any]:
        """This rank's saved state, redistributed if it was saved at another world size."""
        index, saved = distributed.process_index(), self.resumed.manifest.world_size
        if saved == distributed.world_size():
            state: dict[str, Any] = load_state(folder / f"process-{index}.pt")
            return state
        states = [load_state(folder / f"process-{rank}.pt") for rank in range(saved)]
        return redistributed(states, index, stream_seed("process", self.args.seed, self.resumed.step, index))

    def _get_train_sampler(self: Any, *args: Any) -> Any:
        """Use one order by length for all ranks at any world size.

        Otherwise each rank would draw its own order, grouped by its share of a batch.
        """
        sampler = super()._get_train_sampler(*args)  # type: ignore[misc]
        return _OneOrder(sampler, self.args.world_size) if isinstance(sampler, LengthGroupedSampler) else sampler

    def tokens_of_rows(self: Any) -> list[int] | None:
        """The tokens of each training row; None where batches stay as they are drawn."""
        return None

    def get_train_dataloader(self: Any) -> Any:
        """Several processes share out the rows of each pass by their tokens."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        shard = distributed.shard_of_batches(loader)
        if shard is not None and (tokens := self.tokens_of_rows()) is not None:
            shard.batch_sampler = BalancedBatches(shard.batch_sampler, tokens, shard.num_processes)
        return loader


class _OneOrder(LengthGroupedSampler):
    def __init__(self, sampler: LengthGroupedSampler, processes: int) -> None:
        super().__init__(sampler.batch_size * processes, lengths=sampler.lengths, generator=sampler.generator)

    def __iter__(self) -> Iterator[int]:
        return iter(distributed.on_main_process(lambda: list(super(_OneOrder, self).__iter__())))


class _Saving(TrainerCallback):
    """Requests checkpoints, and restores a resumed run's position."""

    def __init__(self, trainer: Any, every: int, journal: Journal) -> None:
        self._trainer, self._every, self._journal = trainer, every, journal
        self._waiting = False
        """Whether a checkpoint is due after the epoch's evaluation."""
        self._continued_epoch: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        start = self._trainer.resumed
        if self._trainer.first_step == 0:  # later members cannot exit here: the earlier ones are in no checkpoint yet
            exit_if_preempted(self._journal.run_dir)
        if start is None:
            return
        rank_state = self._trainer.rank_state(start.path)
        self._trainer.load_running_state(rank_state["running"])
        if self._trainer.best is not None:
            self._trainer.best.load_state_dict(rank_state["best"])
        at_start = _is_epoch_end(state.epoch)
        self._continued_epoch = rank_state["random"] if at_start else rank_state["epoch_random"]
        self._journal.mark_resumed(step=start.step, checkpoint=start.path.name)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._continued_epoch is not None:
            set_random_state(self._continued_epoch)
            self._continued_epoch = None
        self._trainer._epoch_random = random_state()
        # With several processes, accelerate wraps the sampler, so `set_epoch` never reaches it after a resume.
        set_epoch(kwargs["train_dataloader"], math.floor((state.epoch or 0.0) + 1e-9))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        heartbeat.enter(f"step {state.global_step + 1}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        note_step()
        if state.global_step >= state.max_steps:
            return
        wanted = self._trainer.wanted = self._trainer.outside.poll(self._trainer.first_step + state.global_step)
        if wanted is Wanted.STOP:
            control.should_training_stop = True
            return
        if not wanted.saves and (not self._every or state.global_step % self._every):
            return
        if _is_epoch_end(state.epoch):  # a checkpoint now would miss the evaluation that follows
            self._waiting = True
        else:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._waiting:
            control.should_save, self._waiting = True, False


def _is_epoch_end(epoch: float | None) -> bool:
    return epoch is not None and abs(epoch - round(epoch)) < 1e-9


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of a prepared data loader's sampler, through all wrappers."""
    wrapper = loader.batch_sampler
    while wrapper is not None:
        sampler: Any = getattr(wrapper, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        wrapper = getattr(wrapper, "batch_sampler", None)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: parameters with a gradient, and persistent buffers."""
    saved = module.state_dict()  # first: under FSDP it frees weights that an evaluation has left gathered
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return tensors | {f"buffer:{name}": b for name, b in module.named_buffers() if name in saved}


def load_trained_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the tensors of `trained_tensors`."""
    targets = trained_tensors(module)
    assert set(targets) == set(weights), set(targets) ^ set(weights)
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(weights[name])


def ranks_state(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """AdaLoRA's importance scores of its ranks, which are in no parameter; empty for other methods."""
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    names = ("ipt", "exp_avg_ipt", "exp_avg_unc")
    return {} if allocator is None else {name: dict(getattr(allocator, name)) for name in names}


def load_ranks_state(model: nn.Module, state: dict[str, dict[str, Tensor]]) -> None:
    for name, values in state.items():
        getattr(model.base_model.rankallocator, name).update(values)  # type: ignore[union-attr]
