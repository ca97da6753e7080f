"""The state of a run between two iterations, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from alignment.distributed import processes
from alignment.distributed.engine import TrainingEngine
from alignment.errors import UserError
from alignment.files import keep_files
from alignment.runs.checkpoint import load_state, save_state
from alignment.seeds import random_state, set_random_state
from alignment.training.finite_steps import check_weights
from alignment.training.optimizers import Settings
from ppo.ahead import Ahead
from ppo.ema import EMA
from ppo.evaluation import Evaluation
from ppo.update import Updater

OPTIONAL = ("ema", "components", "lagrangian")
"""Parts that a checkpoint of another config, or of an earlier version, may not have."""


class Stateful(Protocol):
    """A part of the run with a state that a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class RunState:
    """Saves and loads the state of a run.

    Args:
        ahead: the responses of the next iteration, which each process has a share of.
        parts: the parts with a state of their own, by name in the checkpoint; the schedule is `schedule`.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        updater: Updater,
        evaluation: Evaluation,
        ema: EMA | None,
        ahead: Ahead,
        parts: Mapping[str, Stateful],
    ) -> None:
        self.engine, self.updater, self.evaluation, self.ema = engine, updater, evaluation, ema
        self._ahead = ahead
        self.accelerator = engine.accelerator
        self._sharded = processes.zero_stage(engine.accelerator) == 3 or processes.under_fsdp()
        """Each process holds a shard of the weights, and so of their average."""
        self._parts = dict(parts)
        if ema is not None and not self._sharded:
            self._parts["ema"] = ema
        self.step = 0
        """Iterations done."""

    def save(self, folder: Path) -> None:
        """This process's part of a checkpoint, between two iterations: what a rollout draws is seeded by its iteration,
        so one that was interrupted is done again to the last bit; one that was sampled ahead is kept."""
        check_weights(self.engine.module)
        self.engine.save(folder)
        save_state(folder / f"process-{self.accelerator.process_index}.pt", random_state())
        if self.ema is not None and self._sharded:
            save_state(folder / f"ema-{self.accelerator.process_index}.pt", self.ema.state_dict())
        ahead = self._ahead.state_dict()
        if self.accelerator.is_main_process:
            state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
            state |= self.evaluation.state_dict() | {"step": self.step, "num_steps": self.updater.num_steps}
            state |= {"halvings": self.updater.halvings, "ahead": ahead}
            save_state(folder / "loop.pt", state)
            keep_files(self.evaluation.best.folder, folder / "best")

    def load(self, folder: Path, world_size: int) -> None:
        """Put the run where `save` left it, with so many processes."""
        settings = Settings(self.engine.optimizer, self._parts["schedule"])
        self.engine.load(folder, world_size)
        state = load_state(folder / "loop.pt")
        if "held_out_unit" not in state:
            raise UserError(
                f"{folder}: a checkpoint of an earlier version, in which scores were not normalised, cannot be "
                "resumed; begin again with --overwrite, or use the version that wrote it"
            )
        for name, part in self._parts.items():
            if name not in OPTIONAL or name in state:  # what was not asked for then
                part.load_state_dict(state[name])
        settings.restore()
        self._load_ema(folder, world_size, in_state="ema" in state)
        self.evaluation.load_state_dict(state)
        self.step, self.updater.num_steps = state["step"], state["num_steps"]
        self.updater.halvings = state.get("halvings", [])
        self._ahead.load_state_dict(state.get("ahead"))
        random_states = folder / f"process-{self.accelerator.process_index}.pt"
        if random_states.exists():  # else there are more processes now; nothing here is drawn from what they begin with
            set_random_state(load_state(random_states))
        if self.accelerator.is_main_process:
            keep_files(folder / "best", self.evaluation.best.folder)
        processes.wait_for_everyone()

    def _load_ema(self, folder: Path, world_size: int, in_state: bool) -> None:
        """The average from its shards; where there is none, it begins at the weights."""
        shards = [folder / f"ema-{rank}.pt" for rank in range(world_size)]
        if self.ema is not None and self._sharded and shards[0].exists():
            self.ema.load_parts([load_state(shard) for shard in shards])
        elif self.ema is not None and not in_state:
            self.ema.begin()
