"""The members of a reward ensemble: each trained in turn from its own seed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment.config.arguments import BestModelArguments, CheckpointArguments
from alignment.distributed import heartbeat, processes
from alignment.models import trainable
from alignment.models.reward_files import member_name
from alignment.runs import resume
from alignment.runs.journal import Journal, Level, Recorder
from alignment.runs.signals import Wanted
from alignment.training import callbacks, opening
from alignment.training.best_model import finished_model, held_out_halves, keep_best, published_step
from reward.building import build_trainer
from reward.config import EnsembleArguments, RewardStageConfig
from reward.finish import Trained
from reward.prepare import PreparedReward, make_arguments
from reward.questions import Question

RECORD = "trained.json"


@dataclass(frozen=True)
class MemberJournal:
    """A `Recorder` for the second and later members of an ensemble.

    Metrics have the member's name as a prefix, and steps follow those of earlier members, since W&B requires growing
    steps.
    """

    journal: Journal
    index: int
    first_step: int

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        prefixed = {f"{member_name(self.index)}/{name}": value for name, value in metrics.items()}
        self.journal.log(self.first_step + step, prefixed)

    def event(self, kind: str, **fields: Any) -> None:
        self.journal.event(kind, member=self.index, **fields)

    def finding(self, step: int, name: str, level: Level, text: str) -> None:
        self.journal.finding(self.first_step + step, f"{member_name(self.index)} {name}", level, text)

    def cleared(self, step: int, name: str) -> None:
        self.journal.cleared(self.first_step + step, f"{member_name(self.index)} {name}")


class Members:
    """Trains one model, or the members of an ensemble in turn, each into a folder of `RUN/members`.

    A resumed run loads the members that were finished before its checkpoint.
    """

    def __init__(
        self, config: RewardStageConfig, prepared: PreparedReward, journal: Journal, start: resume.Start
    ) -> None:
        self.config, self.prepared, self.journal, self.start = config, prepared, journal, start
        self.size, self.stopped = EnsembleArguments.of(config.training).members, False
        self.folder = config.run_dir / "members"
        checkpoint = start.checkpoint
        first_member = checkpoint.manifest.part if checkpoint else None
        self.first = int((first_member or member_name(0)).rpartition("-")[2])
        """Index of the member with which the run resumes."""
        if processes.is_main_process():
            for index in range(self.first, self.size):
                shutil.rmtree(self.folder / member_name(index), ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> list[Trained]:
        """Train all members that are not finished yet."""
        trained: list[Trained] = []
        for index in range(self.size):
            record = self.folder / member_name(index) / RECORD
            if index < self.first:
                trained.append(processes.on_main_process(partial(Trained.read, record, self.prepared.probe)))
            else:
                trained.append(self._train(index, sum(member.steps for member in trained)))
                if processes.is_main_process():
                    trained[-1].write(record)
                if self.stopped:  # the finished members form the ensemble
                    self.size = len(trained)
                    break
        return trained

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """Yield a copy of all members' folders, which publishing modifies.

        The last member's folder is moved, not copied; after an interruption, a resumed run finishes its training again.
        """
        with tempfile.TemporaryDirectory(dir=self.config.run_dir) as staging:
            for index in range(self.size):
                folder = self.folder / member_name(index)
                (shutil.move if index == self.size - 1 else shutil.copytree)(folder, Path(staging, folder.name))
                Path(staging, folder.name, RECORD).unlink()
            yield Path(staging)
        shutil.rmtree(self.folder)

    def _train(self, index: int, first_step: int) -> Trained:
        """Train one member and save it to its folder.

        Args:
            first_step: number of steps of the earlier members.
        """
        config, prepared = self.config.of_member(index, self.prepared.seed), self.prepared
        journal: Recorder = self.journal
        if index:
            if index > self.first:
                processes.reset_accelerator()
            arguments = make_arguments(config, no_eval=not prepared.held_out)
            prepared = replace(prepared, seed=prepared.seed + index, arguments=arguments)
            journal = MemberJournal(self.journal, index, first_step)
        heartbeat.enter("loading the model", patient=True)
        start = self.start if index == self.first else replace(self.start, checkpoint=None)
        trainer = build_trainer(
            config, replace(prepared, held_out=split_held_out(config, prepared.held_out)[0]), journal
        )
        callbacks.attach(trainer, journal, f"reward {config.name}", BestModelArguments.of(config.training).wanted)
        journal.event("method", method=config.model.method, **trainable.describe(trainer.model))
        best = keep_best(trainer, config.training, config.run_dir, journal)
        saving = CheckpointArguments.of(config.training)
        checkpoints = opening.open_checkpoints(
            config, start, self.journal, keep=saving.save_total_limit, part=member_name(index),
            data=[*prepared.train_set.fingerprints, *prepared.eval_set.fingerprints],
        )  # fmt: skip
        trainer.first_step = first_step
        trainer.use_checkpoints(checkpoints, saving.save_steps, start.checkpoint, best, self.journal)
        outcome = trainer.train_on()
        self.stopped = trainer.wanted is Wanted.STOP
        opening.backend_event(journal, trainer)
        step = published_step(trainer, best)
        metrics: dict[str, Any] = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if best is not None:
            metrics |= {"best_step": step, "best_of": best.evaluations if best.is_chosen else 1}
        folder = self.folder / member_name(index)
        with finished_model(trainer, best, config.run_dir) as saved:
            if processes.is_main_process():
                folder.mkdir()
                for file in saved.iterdir():
                    shutil.move(file, folder / file.name)
        assert trainer.probe is not None  # set when the model was saved
        return Trained(prepared.seed, step, metrics, trainer.probe)


def split_held_out(config: RewardStageConfig, held_out: list[Question]) -> tuple[list[Question], list[Question]]:
    """Split held-out questions into those that choose the best model during training, and those that report on it."""
    halves = held_out_halves(config.training, [tuple(question.prompt_ids) for question in held_out])
    evaluated, reported = ([held_out[row] for row in half] for half in halves)
    return evaluated, reported
