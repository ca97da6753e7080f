"""The loop of PPO over iterations, and what is kept between them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.data.records import Prompt
from alignment.distributed import heartbeat, zero3
from alignment.distributed import processes as distributed
from alignment.distributed.engine import TrainingEngine
from alignment.distributed.processes import Accelerator, all_reduce_max, all_reduce_sum
from alignment.errors import ConfigError, UserError
from alignment.files import keep_files
from alignment.reports.judges import judge_of
from alignment.reports.verdicts import WON
from alignment.runs.checkpoint import Checkpoints, load_state, save_state
from alignment.runs.journal import Journal, Level
from alignment.runs.signals import Control, Wanted, leave_if_preempted
from alignment.seeds import random_state, set_random_state, stream_seed
from alignment.tensors import whiten
from alignment.terminal import progress
from alignment.training.optimizers import Settings
from ppo import sampler_gap
from ppo.alarms import Alarms, not_better
from ppo.algorithm import (
    Unit,
    estimate_advantages,
    group_advantages,
    returns_to_go,
    shape_rewards,
    without_spread,
)
from ppo.config import GROUPED, PPOStageConfig
from ppo.controllers import KLController, RewardScaler
from ppo.ema import EMA
from ppo.evaluation import BestPolicy, Judged, figures, halves
from ppo.models import Models
from ppo.optimizer import make_optimizer, make_schedule
from ppo.rewards import load_sources
from ppo.rollout import Collector, Rollout, Task, encode_prompts, join, make_engine, make_tasks, prompt_batches
from ppo.selfcheck import check_models
from ppo.sequences import Row
from ppo.stats import explained_variance, rollout_stats
from ppo.update import CriticTargets, Targets, Updater
from ppo.value import ROLLOUTS, Answer, Best, fit, said_of_fit

EVAL_SEED = 1_000_000_007
STOPPED = "stopped"


class Loop:
    """The parts of one run, and the loop over them."""

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        accelerator: Accelerator,
        journal: Journal,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt] = (),
        ptx_rows: Sequence[Row] = (),
        answers: Sequence[Answer] = (),
    ) -> None:
        """
        Args:
            answers: that the critic is fitted on before the first iteration (`ppo.value_pretrain`).
        """
        self.config, self.models, self.accelerator, self.journal = config, models, accelerator, journal
        limit = config.data.max_length - config.rollout.max_new_tokens
        self.prompts, long_prompts = encode_prompts(prompts, models.tokenizer, limit, config.data.too_long)
        self.held_out, long_held_out = encode_prompts(held_out, models.tokenizer, limit, config.data.too_long)
        self.too_long = {"too_long": long_prompts, "held_out_too_long": long_held_out}
        optimizer = make_optimizer(models, config)
        self.engine = TrainingEngine(accelerator, models.trained, optimizer, config.training.max_grad_norm)
        self.schedule = make_schedule(self.engine.optimizer, config)
        # DeepSpeed rounds the policy's own weights to bfloat16, its buffers (rotary frequencies) not; with a reference
        # that is not rounded just so, the KL starts above 0.
        if models.reference.model is not models.policy.model:
            for parameter in models.reference.model.parameters():
                parameter.data = parameter.data.to(models.policy.base.dtype)
        self._parted = distributed.zero_stage(accelerator) == 3
        """Each process holds a part of the weights."""
        models.place(accelerator.device, parted=self._parted)
        decay = config.training.ema_decay
        self.ema = None if decay is None else EMA(models.trained.trained_parameters("policy"), decay)
        sampler = make_engine(config, models, accelerator)
        sources = load_sources(config.rewards, prompts, held_out, [answer.prompt for answer in answers])
        self.collector = Collector(config, models, sampler, sources, accelerator)
        after_step = self.ema.update if self.ema is not None else lambda: None
        self.updater = Updater(config, models, self.engine, ptx_rows, after_step)
        self.kl_controller = KLController(config.ppo.kl_coef, config.ppo.kl_target, config.ppo.kl_horizon)
        self.scaler = RewardScaler(config.rewards.scaling, config.rewards.clip)
        self._held_out_unit = RewardScaler("reference", None)
        """That of `model.held_out_reward`, whose scores have a scale of their own."""
        self._answers = list(answers)
        self._first: tuple[Rollout, float] | None = None
        """The first iteration's rollout, which the unit of scores and the evaluation of the start wait for."""
        self._share_without_spread: dict[str, float] = {}
        """Of the last rollout's prompts, where answers to a prompt are compared."""
        self._halves = halves([prompt.group for prompt, _ in self.held_out])
        self.best = BestPolicy(config.training, config.run_dir)
        self.alarms = Alarms(config)
        self.step = 0
        """Iterations done."""
        self._explained: float | None = None
        """The share that the critic explains of what the last evaluation's answers earned."""
        self.start: Judged | None = None
        """The held-out answers of the policy as it started."""
        self.first_figures: dict[str, float] = {}
        self.first_reported: dict[str, float] = {}
        """The same on the prompts that the best policy is reported on."""
        self._best_judged: Judged | None = None
        self.last_figures: dict[str, float] = {}
        tried = [ids for _, ids in self.prompts[:4]]
        check_models(config, models, accelerator, sampler, self.collector.sampling, tried)

    def run(self, checkpoints: Checkpoints | None = None) -> None:
        """All iterations from `step` on, with the evaluations before, between and after, and the checkpoints."""
        config, training = self.config, self.config.training
        num_prompts = config.rollout.batch_size // config.rollout.num_generations
        batches = prompt_batches(len(self.prompts), num_prompts, training.seed, self.step)
        outside = Control(config.run_dir, self.journal)
        leave_if_preempted(config.run_dir)
        if self.step == 0:
            numbers = next(batches)
            batches = itertools.chain([numbers], batches)
            self._first = self._collect(numbers)
            self._pretrain_critic()
            self.alarms.begin(self.evaluate())
            leave_if_preempted(config.run_dir)
        with progress(f"ppo {config.name}", training.max_steps, self.accelerator.is_main_process) as line:
            line.advance(self.step)
            while self.step < training.max_steps and not self.best.should_stop:
                stats = self.iterate(next(batches))
                line.advance(1, score=stats["rollout/score"], kl=stats["rollout/kl"])
                wanted = Wanted.NOTHING if self.step == training.max_steps else outside.ask(self.step)
                due = self._evaluation_is_due() or wanted is Wanted.STOP
                self._alarm(stats, self.evaluate() if due else None)
                if self.best.should_stop:  # a job that is to make room has only to publish
                    wanted = Wanted.NOTHING
                    self.journal.event(
                        "stopped_early", step=self.step, evaluations_without_a_best=training.early_stopping_patience
                    )
                if checkpoints and (wanted.saves or (training.save_steps and self.step % training.save_steps == 0)):
                    outside.save(wanted, self.step, lambda: self._save(checkpoints))
                if wanted is Wanted.STOP:
                    break

    def _save(self, checkpoints: Checkpoints) -> None:
        heartbeat.enter(f"the checkpoint of iteration {self.step}")
        checkpoints.save(self.step, self.save, size=3 * self.engine.num_bytes)

    def _evaluation_is_due(self) -> bool:
        every, last = self.config.training.eval_steps, self.config.training.max_steps
        return self.step == last or (every > 0 and self.step % every == 0)

    @contextlib.contextmanager
    def noting_the_end(self) -> Iterator[None]:
        """What stops the run inside (it diverged, a reward is no number) is a finding in the journal."""
        try:
            yield
        except UserError as error:
            self.journal.finding(self.step + 1, STOPPED, "error", str(error))
            raise

    def save(self, folder: Path) -> None:
        """This process's part of a checkpoint, between two iterations: what a rollout draws is seeded by its iteration,
        so one that was interrupted is done again to the last bit."""
        self.engine.save(folder)
        save_state(folder / f"process-{self.accelerator.process_index}.pt", random_state())
        if self.ema is not None and self._parted:
            save_state(folder / f"ema-{self.accelerator.process_index}.pt", self.ema.state_dict())
        if self.accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in self._stateful().items()}
            own = {"step": self.step, "num_steps": self.updater.num_steps, "first_figures": self.first_figures}
            own |= {"last_figures": self.last_figures, "first_reported": self.first_reported}
            own |= {"start": self.start and asdict(self.start)}
            own |= {"best_judged": self._best_judged and asdict(self._best_judged)}
            save_state(folder / "loop.pt", state | own)
            keep_files(self.best.folder, folder / "best")

    def load(self, folder: Path, saved: int) -> None:
        """Put the run where `save` left it, on so many processes."""
        settings = Settings(self.engine.optimizer, self.schedule)
        self.engine.load(folder, saved)
        state = load_state(folder / "loop.pt")
        if "held_out_unit" not in state:
            raise UserError(
                f"{folder}: a checkpoint of an earlier version, in which scores had no unit, cannot be resumed; begin "
                "again with --overwrite, or use the version that wrote it"
            )
        for name, part in self._stateful().items():
            if name != "ema" or name in state:  # which may not have been asked for then
                part.load_state_dict(state[name])
        settings.restore()
        parts = [folder / f"ema-{number}.pt" for number in range(saved)]
        if self.ema is not None and self._parted and parts[0].exists():
            self.ema.load_parts([load_state(part) for part in parts])
        elif self.ema is not None and "ema" not in state:
            self.ema.begin()
        self.step, self.updater.num_steps = state["step"], state["num_steps"]
        self.first_figures, self.last_figures = state["first_figures"], state["last_figures"]
        self.first_reported = state["first_reported"]
        self.start = state["start"] and Judged(**state["start"])
        self._best_judged = state["best_judged"] and Judged(**state["best_judged"])
        own = folder / f"process-{self.accelerator.process_index}.pt"
        if own.exists():  # else there are more processes now; nothing here is drawn from what they begin with
            set_random_state(load_state(own))
        if self.accelerator.is_main_process:
            keep_files(folder / "best", self.best.folder)
        distributed.wait_for_everyone()

    def _stateful(self) -> dict[str, Any]:
        parts = {"schedule": self.schedule, "kl_controller": self.kl_controller, "scaler": self.scaler}
        parts |= {"held_out_unit": self._held_out_unit, "best": self.best, "alarms": self.alarms}
        return parts if self.ema is None or self._parted else parts | {"ema": self.ema}

    def iterate(self, numbers: Sequence[int]) -> dict[str, float]:
        """One iteration: a rollout of these prompts and what is learned from it."""
        config = self.config
        rollout, seconds = self._first or self._collect(numbers)
        collected, self._first = time.monotonic(), None
        targets = self.targets(rollout)
        stats = rollout_stats(rollout, self.final(rollout), targets, config.ppo.kl_in == "reward")
        stats |= self._share_without_spread | self._sampler_gap(rollout)
        stats |= self.updater.update(self.step, rollout, targets)
        if self.step >= config.ppo.value_warmup_steps:  # before, its KL says nothing of the coefficient
            self.kl_controller.update(stats["rollout/kl"], config.rollout.batch_size)
        stats["train/learning_rate"] = float(self.engine.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        self.step += 1
        tokens = stats["rollout/length"] * config.rollout.batch_size
        stats["rollout/tokens_per_second"] = tokens / max(rollout.seconds, 1e-9)
        stats |= {"time/generate": rollout.seconds, "time/score": seconds - rollout.seconds}
        stats |= {"time/rollout": seconds, "time/optimize": time.monotonic() - collected}
        self.journal.log(self.step, stats)
        if self._evaluation_is_due():
            self.journal.histogram(self.step, "rollout/advantage", targets.advantages[rollout.response_mask].tolist())
        return stats

    def _sampler_gap(self, rollout: Rollout) -> dict[str, float]:
        if rollout.sampled_logprobs is None:
            return {}
        cap, mask = self.config.rollout.importance_cap, rollout.response_mask
        gap = sampler_gap.measure(rollout.old_logprobs, rollout.sampled_logprobs, mask, cap)
        return sampler_gap.figures(gap, self.config)

    def own_share(self, tasks: Sequence[Any]) -> list[Any]:
        """This process's part of what all processes do together: neighbours, so that responses to a prompt stay
        together."""
        count = len(tasks) // self.accelerator.num_processes
        start = count * self.accelerator.process_index
        return list(tasks[start : start + count])

    def _collect(self, numbers: Sequence[int]) -> tuple[Rollout, float]:
        """The next iteration's rollout, and the seconds that it took; its scores are in the unit's moments."""
        config, started = self.config, time.monotonic()
        heartbeat.enter(f"the rollout of iteration {self.step + 1}")
        generations = config.rollout.num_generations
        tasks = self.own_share(make_tasks(self.prompts, numbers, generations))
        rollout = self.collector.collect(tasks, config.training.seed, self.step)
        had_unit = self.scaler.start
        self.scaler.observe(rollout.scores, all_reduce_sum)
        if self.scaler.start != had_unit:
            self.journal.event("score_unit", step=self.step + 1, **self.scaler.start._asdict())
            self._redo_figures()
        self._share_without_spread = {}
        if config.ppo.advantage_estimator in GROUPED:
            rollout = self._with_spread(rollout, set(numbers))
        return rollout, time.monotonic() - started

    def _with_spread(self, rollout: Rollout, asked: set[int]) -> Rollout:
        """The rollout, with prompts whose answers all have one score replaced by others than were `asked` (numbers of
        prompts), as far as `dynamic_sampling` allows.

        Every process takes part in as many rounds and keeps as many prompts, since the passes are collectives.
        """
        rounds, group = self.config.rollout.dynamic_sampling, self.config.rollout.num_generations
        wanted, sampled = len(rollout) // group, [rollout]
        good = [(0, number) for number in self._groups_with_spread(rollout)]
        counts = torch.tensor([wanted - len(good), wanted], dtype=torch.float64)
        for attempt in range(1, rounds + 1):
            missing = all_reduce_max(max(0, wanted - len(good)))
            if not missing:
                break
            seed = stream_seed("replacements", self.config.training.seed, self.step, attempt)
            count = missing * self.accelerator.num_processes
            stream = itertools.chain.from_iterable(prompt_batches(len(self.prompts), 1, seed))
            seen = asked if len(asked) + count <= len(self.prompts) else set[int]()
            numbers = list(itertools.islice((number for number in stream if number not in seen), count))
            asked |= set(numbers)
            tasks = self.own_share(make_tasks(self.prompts, numbers, group))
            more = self.collector.collect(tasks, self.config.training.seed, self.step, attempt)
            found = self._groups_with_spread(more)
            counts += torch.tensor([missing - len(found), missing], dtype=torch.float64)
            good += [(len(sampled), number) for number in found]
            sampled.append(more)
        alike, of = all_reduce_sum(counts.to(self.accelerator.device)).tolist()
        self._share_without_spread = {"rollout/without_spread": alike / of}
        if not rounds:
            return rollout
        others = [(0, number) for number in range(wanted) if (0, number) not in good]
        kept = (good + others)[:wanted]
        return join([(sampled[which], range(number * group, (number + 1) * group)) for which, number in kept])

    def _groups_with_spread(self, rollout: Rollout) -> list[int]:
        alike = without_spread(self.final(rollout), self.config.rollout.num_generations)
        return [number for number, same in enumerate(alike.tolist()) if not same]

    def final(self, rollout: Rollout) -> Tensor:
        """The scores with what long and unfinished responses cost: (B,)."""
        return self.collector.final(rollout.scores, rollout.lengths, rollout.ended, self.scaler.cost_unit)

    def targets(self, rollout: Rollout) -> Targets:
        """What a rollout is to teach."""
        ppo, mask, rewards = self.config.ppo, rollout.response_mask, self._shaped(rollout)
        critic = None
        if ppo.advantage_estimator == "gae":
            critic = self.critic_targets(rollout, rewards)
            advantages, _ = estimate_advantages(rewards, critic.old_values, mask, ppo.gamma, ppo.gae_lambda)
        elif ppo.advantage_estimator == "reinforce++":
            advantages = returns_to_go(rewards, mask, ppo.gamma)
        else:
            advantages = group_advantages(rewards, mask, ppo.advantage_estimator, self.config.rollout.num_generations)
        # grpo scales within its groups, dr_grpo scales nothing.
        whitened = ppo.whiten_advantages and ppo.advantage_estimator not in ("grpo", "dr_grpo")
        if whitened:
            advantages = whiten(advantages, mask, reduce=all_reduce_sum)
        kl_coef = self.kl_controller.value
        # What stands beside advantages in the unit of scores is in that unit too.
        in_points = not whitened and ppo.advantage_estimator != "grpo"
        return Targets(advantages, kl_coef, critic, kl_coef / self.scaler.unit.std if in_points else kl_coef)

    def _shaped(self, rollout: Rollout) -> Tensor:
        """Reward of each token in the unit of scores: (B, T). Score and KL are divided by the same number, since a unit
        must not change the optimum."""
        in_reward = self.config.ppo.kl_in == "reward"
        kl_coef = self.kl_controller.value / self.scaler.unit.std if in_reward else 0.0
        return shape_rewards(self.scaler(self.final(rollout)), rollout.kl, rollout.response_mask, kl_coef)

    def critic_targets(self, rollout: Rollout, rewards: Tensor, gae_lambda: float | None = None) -> CriticTargets:
        """What a rollout with these rewards, (B, T), is to teach the critic."""
        ppo, mask, role = self.config.ppo, rollout.response_mask, self.models.trained.roles[1]
        assert role is not None
        unit, scale = self.scaler.unit, role.head_scale
        unit = Unit() if scale is None else Unit(unit.mean / scale, unit.std / scale)
        values = torch.where(mask, unit.normalise(rollout.old_values), 0.0)
        if gae_lambda is None:
            gae_lambda = ppo.gae_lambda if ppo.value_gae_lambda is None else ppo.value_gae_lambda
        _, returns = estimate_advantages(rewards, values, mask, ppo.gamma, gae_lambda)
        return CriticTargets(values, returns, returns_to_go(rewards, mask, ppo.gamma), unit)

    def _pretrain_critic(self) -> None:
        """Fit the critic before the policy moves, where `ppo.value_pretrain` asks for it."""
        if self.config.ppo.value_pretrain is None:
            return
        assert self._first is not None
        first, seconds = self._first
        rollout, groups = self._to_pretrain_on(), self.engine.optimizer.param_groups
        # The critic's returns are of what came, since its own values mean nothing yet (VC-PPO, section 4.1).
        critic = self.critic_targets(rollout, self._shaped(rollout), gae_lambda=1.0)
        rates = [group["lr"] for group in groups]
        groups[0]["lr"], groups[1]["lr"] = 0.0, self.schedule.base_lrs[1]
        size = -(-self.config.rollout.batch_size // (self.config.ppo.num_minibatches * self.accelerator.num_processes))
        with Best(self.engine, self.config.run_dir / "critic") as best:
            explained = fit(
                self.updater, self.collector, rollout, critic, best, size, self.config.training.seed,
                lambda: leave_if_preempted(self.config.run_dir),
            )  # fmt: skip
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.journal.event("value_pretrained", answers=len(rollout), explained_variance=explained)
        if self.accelerator.is_main_process:
            print(f"ppo: {said_of_fit(explained)}", flush=True)
        self._first = replace(first, old_values=self.collector.values(first.rows)), seconds

    def _to_pretrain_on(self) -> Rollout:
        """Answers that are there already, scored now, or answers of the policy as it starts. Not those of the first
        rollout: a critic that was fitted on what they earn would leave nothing to learn from them."""
        config, seed, processes = self.config, self.config.training.seed, self.accelerator.num_processes
        if config.ppo.value_pretrain != ROLLOUTS:
            if not (count := len(self._answers) // processes):
                raise ConfigError(
                    f"ppo.value_pretrain={config.ppo.value_pretrain}: {len(self._answers)} answers are fewer than the "
                    f"{processes} processes; give more, or use {ROLLOUTS}"
                )
            own = self.own_share(self._answers[: count * processes])
            tasks = [Task(answer.prompt, answer.ids, number, 0) for number, answer in enumerate(own)]
            return self.collector.collect(tasks, responses=[answer.response for answer in own])
        generations = config.rollout.num_generations
        count = -(-config.ppo.value_pretrain_episodes // config.rollout.batch_size)
        stream = prompt_batches(
            len(self.prompts), config.rollout.batch_size // generations, stream_seed("pretraining", seed)
        )
        collected: list[Rollout] = []
        with progress("answers for the critic", count, self.accelerator.is_main_process) as line:
            for number in range(count):
                heartbeat.enter(f"rollout {number + 1} of {count} for the critic")
                tasks = self.own_share(make_tasks(self.prompts, next(stream), generations))
                collected.append(self.collector.collect(tasks, stream_seed("pretraining", seed, number)))
                line.advance(1)
        return join([(piece, range(len(piece))) for piece in collected])

    def evaluate(self) -> dict[str, float] | None:
        """Answer every held-out prompt once, always with the same seed; journal the figures and a few answers, and
        keep the policy if it is the best so far."""
        if not self.held_out:
            return None
        heartbeat.enter(f"the evaluation after iteration {self.step}")
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            judged = self.judge()
            if self.start is None:
                self.start = judged
            now, chooses, reported = self._figures(judged)
            if self.step == 0:
                self.first_figures, self.first_reported = now, reported
            if self._explained is not None:
                now["explained_variance"] = self._explained
            if self.best.consider(self.step, chooses, reported, self._policy_weights):
                self._best_judged = judged
        self.last_figures = now
        self.journal.log(self.step, {f"eval/{name}": value for name, value in now.items()})
        for name, values in (("score", judged.scores), ("kl", judged.kl), ("length", judged.lengths)):
            self.journal.histogram(self.step, f"eval/{name}", values)
        return {f"eval/{name}": value for name, value in now.items()}

    def _figures(self, judged: Judged) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Figures of an evaluation on all held-out prompts, on those that choose the best, and on the others."""
        groups = [prompt.group for prompt, _ in self.held_out]
        before = self._with_costs(self.start) if self.start is not None and judged is not self.start else None

        def of(rows: Sequence[int]) -> dict[str, float]:
            start = before.only(rows) if before is not None else None
            return figures(judged.only(rows), start, [groups[row] for row in rows])

        chooses, reported = self._halves
        return of(range(len(groups))), of(chooses), of(reported)

    def _redo_figures(self) -> None:
        """Where the unit is found after the start (its scores were all equal), what unfinished answers cost changes: a
        policy that stayed as it is would look better or worse than before."""
        if self.start is None:
            return
        self.start = self._with_costs(self.start)
        self.first_figures, _, self.first_reported = self._figures(self.start)
        self.alarms.begin({f"eval/{name}": value for name, value in self.first_figures.items()})
        if self._best_judged is not None:
            best = self.start if self.best.step == 0 else self._with_costs(self._best_judged)
            _, chooses, reported = self._figures(best)
            self.best.restate(chooses, reported)

    def judge(self) -> Judged:
        """Every process answers as many prompts, since a shorter share would leave the others waiting in a collective;
        prompts repeated for that are dropped."""
        world_size = self.accelerator.num_processes
        tasks = make_tasks(self.held_out, range(len(self.held_out)), 1)
        padded = (tasks * world_size)[: len(tasks) + -len(tasks) % world_size]
        rollout = self.collector.collect(self.own_share(padded), EVAL_SEED)
        held_out_scores: list[float | None] = [None] * len(rollout)
        if self.models.held_out_reward is not None:
            held_out_scores = self._by_held_out_reward(rollout).tolist()
        columns = (self.final(rollout).tolist(), rollout.scores.tolist(), held_out_scores, rollout.kl.sum(1).tolist(),
                   rollout.lengths.tolist(), rollout.ended.tolist(), rollout.texts,
                   *(rollout.parts[name].tolist() for name in rollout.parts))  # fmt: skip
        shares = distributed.gather_lists(list(zip(*columns, strict=True)))
        rows = [row for share in shares for row in share][: len(tasks)]
        shown = list(enumerate(zip(tasks, rows, strict=True)))[: self.config.tracking.num_samples]
        self.journal.samples(self.step, [_sample(number, task, row) for number, (task, row) in shown])
        scores, raw, held, kl, lengths, ended, texts, *parts = (list(column) for column in zip(*rows, strict=True))
        if self.models.trained.roles[1] is not None:
            critic = self.critic_targets(rollout, self._shaped(rollout))
            self._explained = explained_variance(critic.outcomes, critic.old_values, rollout.response_mask)
        named = dict(zip(rollout.parts, parts, strict=True))
        return Judged(scores, raw, named, None if held[0] is None else held, kl, lengths, ended, texts)

    def _with_costs(self, start: Judged) -> Judged:
        """The start's answers with their costs in today's unit, which was found later if its scores were all equal."""
        raw, lengths, ended = (torch.tensor(each) for each in (start.raw_scores, start.lengths, start.ended))
        return replace(start, scores=self.collector.final(raw, lengths, ended, self.scaler.cost_unit).tolist())

    def _by_held_out_reward(self, rollout: Rollout) -> Tensor:
        """Scores of the model that training never sees, with what long and unfinished answers cost in its unit."""
        model = self.models.held_out_reward
        assert model is not None
        raw, _ = self.collector.score_with(model, rollout.tasks, rollout.rows, rollout.texts)
        if self.step == 0:
            self._held_out_unit.observe(raw, all_reduce_sum)
        unit = self._held_out_unit.unit
        if self.config.rewards.scaling is None:
            # Costs are in points of the training score: as many standard deviations of these are as many of its own.
            std = unit.std / self.scaler.start.std
            unit = Unit(unit.mean - self.scaler.start.mean * std, std)
        return self.collector.final(raw, rollout.lengths, rollout.ended, unit)

    def _policy_weights(self) -> dict[str, Tensor]:
        """What is trained of the policy, on the main process."""
        return zero3.whole_weights(self.models.trained.trained_parameters("policy"))

    @contextlib.contextmanager
    def published_policy(self) -> Iterator[dict[str, Any]]:
        """The models hold the policy that is to be published inside; gives its metrics."""
        is_chosen = self.best.figures is not None
        of = self.last_figures if self.best.figures is None else self.best.figures
        start = self.first_reported if is_chosen else self.first_figures
        metrics: dict[str, Any] = {f"eval_{name}": value for name, value in of.items()}
        metrics |= {f"start_eval_{name}": value for name, value in start.items()}
        if is_chosen:
            metrics |= {"choosing_prompts": len(self._halves[0]), "reported_prompts": len(self._halves[1])}
        judge = judge_of(self.config.model_dump())
        if judge is not None and "win_rate" in of:
            metrics["judge"] = judge.text
        if self.best.step is not None:
            metrics["best_step"] = self.best.step
            if self.best.step == 0:
                text = "no evaluation was better than the start's, which is published; see samples.jsonl"
                self._say(WON, "error", text)
        elif self.best.wanted and self.held_out:
            text = "no evaluation was below training.max_kl, so that the last policy is published, whatever it is"
            self._say(WON, "error", text)
        if self.best.step != 0 and (found := not_better(of)) is not None:
            self._say(WON, *found)
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            if self.best.step is not None:
                weights = self.best.weights()
                for name, parameter in self.models.trained.trained_parameters("policy"):
                    with zero3.gathered(parameter):
                        if weights is not None:
                            parameter.data.copy_(weights[name])
            yield metrics

    def _alarm(self, stats: Mapping[str, float], evaluation: Mapping[str, float] | None) -> None:
        for alarm in self.alarms.check(self.step, stats, evaluation):
            if alarm.text is None:
                self.journal.cleared(self.step, alarm.name)
            else:
                self._say(alarm.name, alarm.level, alarm.text)

    def _say(self, name: str, level: Level, text: str) -> None:
        self.journal.finding(self.step, name, level, text)
        if self.accelerator.is_main_process:
            print(f"ppo: iteration {self.step}: {name}: {text}", flush=True)


def _sample(number: int, task: Task, row: Sequence[Any]) -> dict[str, Any]:
    """A line of samples.jsonl from a row of `Loop.judge`."""
    score, _, held_out_score, kl, length, ended, text, *_ = row
    found = {"id": number, "prompt": list(task.prompt.messages), "response": text, "score": score, "kl": kl}
    found |= {"length": int(length), "ended": bool(ended)}
    return found if held_out_score is None else found | {"held_out_score": held_out_score}
