"""The members of a reward ensemble: each trained in turn from its own seed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment.config.arguments import BestModelArguments, CheckpointArguments
from alignment.distributed import heartbeat, processes
from alignment.models import trainable
from alignment.models.ensembles import member_name
from alignment.runs import resume
from alignment.runs.journal import Journal, Level
from alignment.runs.signals import Wanted
from alignment.training import callbacks, opening
from alignment.training.best_model import finished_model, held_out_halves, keep_best, published_step
from reward.building import build_trainer
from reward.config import EnsembleArguments, RewardStageConfig
from reward.finish import Trained
from reward.prepare import Prepared, make_arguments
from reward.questions import Question

RECORD = "trained.json"


class MemberJournal(Journal):
    """The run's journal for a further member of an ensemble: its figures under its name, its steps after the others'.

    W&B takes no steps that go back.
    """

    def __init__(self, journal: Journal, number: int, start: int) -> None:
        super().__init__(journal.run_dir, enabled=False)
        self._journal, self._number, self._start = journal, number, start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        own = {f"{member_name(self._number)}/{name}": value for name, value in metrics.items()}
        self._journal.log(self._start + step, own)

    def event(self, kind: str, **fields: Any) -> None:
        self._journal.event(kind, member=self._number, **fields)

    def finding(self, step: int, name: str, level: Level, text: str) -> None:
        self._journal.finding(self._start + step, f"{member_name(self._number)} {name}", level, text)

    def cleared(self, step: int, name: str) -> None:
        self._journal.cleared(self._start + step, f"{member_name(self._number)} {name}")


class Members:
    """Trains one model, or those of an ensemble one after the other, each into a folder of `RUN/members`.

    A run that goes on takes the members that were finished before its checkpoint from there.
    """

    def __init__(self, config: RewardStageConfig, prepared: Prepared, journal: Journal, begun: resume.Start) -> None:
        self.config, self.prepared, self.journal, self.begun = config, prepared, journal, begun
        self.size, self.stopped = EnsembleArguments.of(config.training).members, False
        self.folder = config.run_dir / "members"
        checkpoint = begun.checkpoint
        part = checkpoint.manifest.part if checkpoint else None
        self.first = int((part or member_name(0)).rpartition("-")[2])
        """The member that the run goes on with."""
        if processes.is_main_process():
            for number in range(self.first, self.size):
                shutil.rmtree(self.folder / member_name(number), ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> list[Trained]:
        trained: list[Trained] = []
        for number in range(self.size):
            record = self.folder / member_name(number) / RECORD
            if number < self.first:
                trained.append(processes.on_main_process(partial(Trained.read, record, self.prepared.probe)))
            else:
                trained.append(self._train(number, sum(member.steps for member in trained)))
                if processes.is_main_process():
                    trained[-1].write(record)
                if self.stopped:  # those that are there are the ensemble
                    self.size = len(trained)
                    break
        return trained

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """The folders of all members, to be changed for publishing. Where that is interrupted, the originals stand but
        for the last one's, which a resumed run trains to its end once more."""
        with tempfile.TemporaryDirectory(dir=self.config.run_dir) as staging:
            for number in range(self.size):
                folder = self.folder / member_name(number)
                (shutil.move if number == self.size - 1 else shutil.copytree)(folder, Path(staging, folder.name))
                Path(staging, folder.name, RECORD).unlink()
            yield Path(staging)
        shutil.rmtree(self.folder)

    def _train(self, number: int, first_step: int) -> Trained:
        """Train one model and leave its files in its folder.

        Args:
            first_step: steps of the members before it.
        """
        config, own, journal = self.config.of_member(number, self.prepared.seed), self.prepared, self.journal
        if number:
            if number > self.first:
                processes.reset_accelerator()
            arguments = make_arguments(config, no_eval=not own.held_out)
            own = replace(own, seed=own.seed + number, arguments=arguments)
            journal = MemberJournal(journal, number, first_step)
        heartbeat.enter("loading the model", patient=True)
        start = self.begun if number == self.first else replace(self.begun, checkpoint=None)
        trainer = build_trainer(config, replace(own, held_out=held_out_halves_of(config, own.held_out)[0]), journal)
        callbacks.attach(trainer, journal, f"reward {config.name}", BestModelArguments.of(config.training).wanted)
        journal.event("method", method=config.model.method, **trainable.describe(trainer.model))
        best = keep_best(trainer, config.training, config.run_dir, journal)
        saving = CheckpointArguments.of(config.training)
        checkpoints = opening.open_checkpoints(
            config, start, self.journal, keep=saving.save_total_limit, part=member_name(number),
            data=[*own.train_set.fingerprints, *own.eval_set.fingerprints],
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
        folder = self.folder / member_name(number)
        with finished_model(trainer, best, config.run_dir) as saved:
            if processes.is_main_process():
                folder.mkdir()
                for file in saved.iterdir():
                    shutil.move(file, folder / file.name)
        assert trainer.probe is not None  # made when the folder was
        return Trained(own.seed, step, metrics, trainer.probe)


def held_out_halves_of(config: RewardStageConfig, held_out: list[Question]) -> tuple[list[Question], list[Question]]:
    """Held-out questions that are evaluated in training, and those that a chosen model is reported on."""
    halves = held_out_halves(config.training, [tuple(question.prompt_ids) for question in held_out])
    evaluated, reported = ([held_out[row] for row in half] for half in halves)
    return evaluated, reported
