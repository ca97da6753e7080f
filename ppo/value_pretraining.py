"""Fitting the critic before the policy moves (`ppo.value_pretrain`)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from alignment.distributed import heartbeat
from alignment.distributed.engine import TrainingEngine
from alignment.distributed.processes import (
    Accelerator,
    all_reduce_max,
    gather_lists,
    on_main_process,
    wait_for_everyone,
    world_size,
)
from alignment.errors import ConfigError
from alignment.generation.sampling import Sampled
from alignment.runs.journal import Journal
from alignment.runs.signals import exit_if_preempted
from alignment.seeds import stream_seed
from alignment.terminal import progress
from ppo import value_data
from ppo.config import PPOStageConfig
from ppo.prompts import EncodedPrompt, Task, make_tasks, prompt_batches, share_of_process
from ppo.rollout import Collector, Rollout, join
from ppo.stats import explained_variance
from ppo.targets import CriticTargets, TargetBuilder
from ppo.update import Updater
from ppo.value_data import ROLLOUTS, Answer

HELD_OUT = 0.125
"""Fraction of the prompts."""
MAX_EPOCHS = 20
PATIENCE = 3
"""Passes in a row without a new best, after which it ends. Any rise is a new best: at a low rate each is small."""


class ValuePretraining:
    """Fits the critic of one run, on existing answers or on those of the initial policy.

    Args:
        base_lr: the critic's learning rate while it is fitted; the policy's is 0.
    """

    def __init__(
        self,
        config: PPOStageConfig,
        updater: Updater,
        collector: Collector,
        target_builder: TargetBuilder,
        prompts: Sequence[EncodedPrompt],
        answers: Sequence[Answer],
        base_lr: float,
    ) -> None:
        self.config, self.updater, self.collector, self.target_builder = config, updater, collector, target_builder
        self.prompts, self.answers, self.base_lr = prompts, answers, base_lr
        self.accelerator: Accelerator = collector.accelerator

    def run(self, first: Rollout, journal: Journal) -> Rollout:
        """Fit the critic; gives the first iteration's rollout with the values of the fitted one."""
        config, engine = self.config, self.updater.engine
        rollout, groups = self._rollout(), engine.optimizer.param_groups
        # A lambda of 1: its own values mean nothing yet (VC-PPO, section 4.1).
        critic = self.target_builder.critic_targets(rollout, self.target_builder.rewards(rollout), gae_lambda=1.0)
        learning_rates = [group["lr"] for group in groups]
        groups[0]["lr"], groups[1]["lr"] = 0.0, self.base_lr
        size = -(-config.rollout.batch_size // (config.ppo.num_minibatches * self.accelerator.num_processes))
        with BestCritic(engine, config.run_dir / "critic") as best:
            explained = fit(
                self.updater, self.collector, rollout, critic, best, size, config.training.seed,
                lambda: exit_if_preempted(config.run_dir),
            )  # fmt: skip
        for group, learning_rate in zip(groups, learning_rates, strict=True):
            group["lr"] = learning_rate
        journal.event("value_pretrained", answers=len(rollout), explained_variance=explained)
        if self.accelerator.is_main_process:
            print(f"ppo: {describe_fit(explained)}", flush=True)
        return replace(first, old_values=self.collector.values(first.rows))

    def _rollout(self) -> Rollout:
        """Existing answers, scored now, or answers of the initial policy. Those of the first rollout are not taken: a
        critic that was fitted on what they earn would leave nothing to learn from them."""
        config, accelerator = self.config, self.accelerator
        if config.ppo.value_pretrain != ROLLOUTS:
            processes = accelerator.num_processes
            if not (count := len(self.answers) // processes):
                raise ConfigError(
                    f"ppo.value_pretrain={config.ppo.value_pretrain}: {len(self.answers)} answers are fewer than the "
                    f"{processes} processes; give more, or use {ROLLOUTS}"
                )
            share = share_of_process(self.answers[: count * processes], accelerator)
            tasks = [Task(answer.prompt, answer.ids, number, 0) for number, answer in enumerate(share)]
            return self.collector.collect(tasks, given=Sampled([answer.response for answer in share], None))
        generations, seed = config.rollout.num_generations, config.training.seed
        count = -(-value_data.MAX_ANSWERS // config.rollout.batch_size)
        stream = prompt_batches(
            len(self.prompts), config.rollout.batch_size // generations, stream_seed("pretraining", seed)
        )
        collected: list[Rollout] = []
        with progress("answers for the critic", count, accelerator.is_main_process) as line:
            for number in range(count):
                heartbeat.enter(f"rollout {number + 1} of {count} for the critic")
                tasks = share_of_process(make_tasks(self.prompts, next(stream), generations), accelerator)
                collected.append(self.collector.collect(tasks, stream_seed("pretraining", seed, number)))
                line.advance(1)
        return join([(piece, range(len(piece))) for piece in collected])


class BestCritic:
    """Keeps what is trained as it was at its best, in a folder that is gone afterwards; every process takes part."""

    def __init__(self, engine: TrainingEngine, folder: Path) -> None:
        self._engine, self._folder, self._kept, self._count = engine, folder, "", 0

    def keep(self) -> None:
        before, self._kept = self._kept, f"{self._count}"
        self._count += 1
        on_main_process(lambda: (self._folder / self._kept).mkdir(parents=True))
        self._engine.save(self._folder / self._kept)
        wait_for_everyone()
        if before:
            on_main_process(lambda: shutil.rmtree(self._folder / before))

    def restore(self) -> None:
        self._engine.load(self._folder / self._kept, world_size())

    def __enter__(self) -> Self:
        on_main_process(lambda: shutil.rmtree(self._folder, ignore_errors=True))
        return self

    def __exit__(self, *_: object) -> None:
        wait_for_everyone()
        on_main_process(lambda: shutil.rmtree(self._folder, ignore_errors=True))


def fit(
    updater: Updater,
    collector: Collector,
    rollout: Rollout,
    critic: CriticTargets,
    best: BestCritic,
    batch_size: int,
    seed: int,
    before_pass: Callable[[], None],
) -> list[float]:
    """Fit the critic on a rollout in passes of minibatches, until what it explains of answers to prompts that are held
    out of this no longer rises (VC-PPO, Yuan et al. 2025, section 4.1). It is left as it was after its best pass.

    Args:
        batch_size: answers of one optimizer step on each process.
        before_pass: called by every process.

    Returns:
        The fraction of the held-out answers' variance that it explains, before and after each pass; nothing where all
        earn the same, so that there is nothing to learn.

    Raises:
        ConfigError: too few prompts to hold any out.
    """
    train, held_out, count = _split_by_prompt(rollout)
    looked_at = held_out or [0]  # a process without one takes part, and its row does not count

    def explained() -> float | None:
        values = critic.head_stats.normalise(collector.values([rollout.rows[row] for row in looked_at]))
        width = values.shape[1]
        mask = rollout.response_mask[looked_at][:, :width] & bool(held_out)
        return explained_variance(critic.outcomes[looked_at][:, :width], values, mask)

    if (at_first := explained()) is None:
        return []
    history = [at_first]
    best.keep()
    generator = torch.Generator().manual_seed(stream_seed("value pretraining", seed))
    with progress("fitting the critic", MAX_EPOCHS, updater.engine.accelerator.is_main_process) as line:
        for epoch in range(MAX_EPOCHS):
            before_pass()
            heartbeat.enter(f"pass {epoch + 1} of fitting the critic")
            order = [train[place] for place in torch.randperm(len(train), generator=generator).tolist()][:count]
            for start in range(0, count, batch_size):
                updater.fit_critic(rollout, critic, order[start : start + batch_size])
            history.append(explained() or 0.0)
            line.advance(1, explained=history[-1])
            if history[-1] == max(history):
                best.keep()
            if len(history) > PATIENCE and max(history[-PATIENCE:]) <= max(history[:-PATIENCE]):
                break
    best.restore()
    return history


def _split_by_prompt(rollout: Rollout) -> tuple[list[int], list[int], int]:
    """This process's rows to train on, those that are held out, and how many are trained on in a pass: as many on each
    process, since their passes are collectives.

    Raises:
        ConfigError: too few prompts to hold any out.
    """
    groups = [task.prompt.group for task in rollout.tasks]
    # The same prompts on every process: one that a process holds out must be trained on by none.
    everywhere = sorted(
        {group for share in gather_lists(groups) for group in share},
        key=lambda group: hashlib.sha256(group.encode()).digest(),
    )
    kept = set(everywhere[: max(1, round(HELD_OUT * len(everywhere)))])
    held_out = [row for row, group in enumerate(groups) if group in kept]
    train = [row for row, group in enumerate(groups) if group not in kept]
    count = -all_reduce_max(-len(train))
    if not count:
        raise ConfigError(
            f"ppo.value_pretrain: {len(everywhere)} prompts are too few to hold some out; give more, or "
            "take value_pretrain out"
        )
    return train, held_out, count


def describe_fit(explained: Sequence[float]) -> str:
    """The outcome of `fit`, in words."""
    if not explained:
        return "the critic was not fitted: all held-out answers earn the same"
    return (
        f"the critic explained {explained[0]:.2f} of the variance of what held-out answers earn, and "
        f"{max(explained):.2f} after the best of {len(explained) - 1} passes over the others"
    )
