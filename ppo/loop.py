"""The loop of PPO over iterations."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from alignment.distributed import fsdp, heartbeat
from alignment.distributed import processes as distributed
from alignment.distributed.engine import TrainingEngine
from alignment.distributed.processes import Accelerator, all_reduce_sum
from alignment.errors import UserError
from alignment.runs.checkpoint import Checkpoints
from alignment.runs.journal import Journal, Level
from alignment.runs.signals import Control, Wanted, exit_if_preempted, note_step
from alignment.terminal import progress
from ppo import sampler_gap
from ppo.ahead import Ahead
from ppo.alarms import Alarms
from ppo.config import GROUPED, PPOStageConfig
from ppo.constraints import Lagrangian
from ppo.controllers import KLController, RewardScaler
from ppo.dynamic_sampling import DynamicSampling
from ppo.ema import EMA
from ppo.evaluation import Evaluation
from ppo.models import Models
from ppo.optimizer import make_optimizer, make_schedule
from ppo.prompts import EncodedPrompt, make_tasks, prompt_batches, share_of_process
from ppo.reward_sources import load_sources
from ppo.rollout import Collector, Rollout
from ppo.rows import Row
from ppo.sampler import make_sampler
from ppo.selfcheck import check_models
from ppo.state import RunState, Stateful
from ppo.stats import rollout_stats
from ppo.targets import TargetBuilder
from ppo.update import Updater
from ppo.value_data import Answer
from ppo.value_pretraining import ValuePretraining

STOPPED = "stopped"


class Loop:
    """The parts of one run, and the loop over them.

    Args:
        prompts, held_out: with their tokens (`ppo.prompts.encode_prompts`).
        ptx_rows: demonstrations that are mixed in.
        answers: what the critic is fitted on before the first iteration (`ppo.value_pretrain`).
    """

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        accelerator: Accelerator,
        journal: Journal,
        prompts: Sequence[EncodedPrompt],
        held_out: Sequence[EncodedPrompt] = (),
        ptx_rows: Sequence[Row] = (),
        answers: Sequence[Answer] = (),
    ) -> None:
        self.config, self.models, self.accelerator, self.journal = config, models, accelerator, journal
        self.prompts, self._answers = list(prompts), list(answers)
        self.engine = TrainingEngine(
            accelerator, models.trained, make_optimizer(models, config), config.training.max_grad_norm
        )
        self.schedule = make_schedule(self.engine.optimizer, config)
        models.match_reference_dtype()
        if distributed.under_fsdp():
            fsdp.shard_frozen(models.frozen(), accelerator, rounded=models.reference.model)
        models.place(accelerator.device, sharded=distributed.zero_stage(accelerator) == 3)
        decay = config.training.ema_decay
        self.ema = None if decay is None else EMA(models.trained.trained_parameters("policy"), decay)
        sampler = make_sampler(config, models, accelerator)
        sources = load_sources(
            config.rewards, [prompt for prompt, _ in prompts], [prompt for prompt, _ in held_out],
            [answer.prompt for answer in answers], models.tokenizer, config.model.reward_weights,
        )  # fmt: skip
        self.collector = Collector(config, models, sampler, sources, accelerator)
        self.ahead = Ahead(config, self.collector, self.prompts)
        after_step = self.ema.update if self.ema is not None else lambda: None
        self.updater = Updater(config, models, self.engine, ptx_rows, after_step, journal.event)
        self.kl_controller = KLController.for_run(
            config.ppo.kl_coef, config.ppo.kl_target, config.rollout.batch_size, config.training.max_steps
        )
        normalize, components = config.rewards.normalize, self.collector.components
        self.reward_scaler = RewardScaler("reference" if normalize == "each" else normalize)
        self.lagrangian = Lagrangian.for_run(
            config.rewards.bounds, components, self.reward_scaler, config.rollout.batch_size, config.training.max_steps
        )
        self.target_builder = TargetBuilder(
            config, models.critic, self.reward_scaler, self.kl_controller, self.lagrangian
        )
        self.dynamic_sampling = DynamicSampling(config, self.collector, self.target_builder, self.prompts)
        self.evaluation = Evaluation(config, models, self.collector, self.target_builder, self.ema, journal, held_out)
        self.alarms = Alarms(config)
        parts: dict[str, Stateful] = {
            "schedule": self.schedule, "kl_controller": self.kl_controller, "scaler": self.reward_scaler,
            "alarms": self.alarms, "components": components,
        }  # fmt: skip
        parts |= {} if self.lagrangian is None else {"lagrangian": self.lagrangian}
        self.state = RunState(self.engine, self.updater, self.evaluation, self.ema, self.ahead, parts)
        self._initial_rollout: tuple[Rollout, float] | None = None
        """The first iteration's rollout and its seconds: score statistics and the first evaluation need it before."""
        self._spread_metrics: dict[str, float] = {}
        """How many prompts of the last rollout were without spread, where answers to a prompt are compared."""
        check_models(
            config, models, accelerator, sampler, self.collector.sampling, [ids for _, ids in self.prompts[:4]]
        )

    @property
    def step(self) -> int:
        """Iterations done."""
        return self.state.step

    def run(self, checkpoints: Checkpoints | None = None) -> None:
        """All iterations from `step` on, with the evaluations before, between and after, and the checkpoints."""
        config, training, best = self.config, self.config.training, self.evaluation.best
        num_prompts = config.rollout.batch_size // config.rollout.num_generations
        batches = prompt_batches(len(self.prompts), num_prompts, training.seed, self.step)
        control = Control(config.run_dir, self.journal)
        exit_if_preempted(config.run_dir)
        if self.step == 0:
            prompt_indices = next(batches)
            batches = itertools.chain([prompt_indices], batches)
            self._begin(prompt_indices)
        with progress(f"ppo {config.name}", training.max_steps, self.accelerator.is_main_process) as line:
            line.advance(self.step)
            while self.step < training.max_steps and not best.should_stop:
                stats = self.iterate(next(batches))
                note_step()
                line.advance(1, score=stats["rollout/score"], kl=stats["rollout/kl"])
                wanted = Wanted.NOTHING if self.step == training.max_steps else control.poll(self.step)
                due = self.evaluation.is_due(self.step) or wanted is Wanted.STOP
                self._check_alarms(stats, self.evaluation.run(self.step) if due else None)
                if best.should_stop:  # a preempted job has only to publish
                    wanted = Wanted.NOTHING
                    self.journal.event(
                        "stopped_early", step=self.step, evaluations_without_a_best=training.early_stopping_patience
                    )
                if checkpoints and (wanted.saves or (training.save_steps and self.step % training.save_steps == 0)):
                    control.save(wanted, self.step, lambda: self._save(checkpoints))
                if wanted is Wanted.STOP:
                    break

    def iterate(self, prompt_indices: Sequence[int]) -> dict[str, float]:
        """One iteration: a rollout of these prompts and what is learned from it."""
        config, waited = self.config, 0.0
        if config.rollout.lag and self.step + 1 < config.training.max_steps:
            begun = time.monotonic()
            self.ahead.begin(self.step + 1)
            waited = time.monotonic() - begun
        rollout, rollout_seconds = self._initial_rollout or self._collect(prompt_indices)
        collected, self._initial_rollout = time.monotonic(), None
        rewards = self.target_builder.rewards(rollout)
        targets = self.target_builder.build(rollout, rewards)
        stats = rollout_stats(rollout, self.target_builder.scores(rollout), targets, config.ppo.kl_in == "reward")
        stats |= self._spread_metrics | self._sampler_gap_metrics(rollout)
        stats |= self.updater.update(self.step, rollout, targets)
        optimized = time.monotonic()
        if config.rollout.lag:
            self.ahead.finish()
            waited += time.monotonic() - optimized
        self.kl_controller.update(stats["rollout/kl"], config.rollout.batch_size)
        if self.lagrangian is not None:
            stats |= self.lagrangian.metrics(stats)
            self.lagrangian.update(stats, config.rollout.batch_size)
        stats["train/learning_rate"] = float(self.engine.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        self.state.step += 1
        tokens = stats["rollout/length"] * config.rollout.batch_size
        stats["rollout/tokens_per_second"] = tokens / max(rollout.seconds, 1e-9)
        sampling = 0.0 if rollout.lagged else rollout.seconds
        stats |= {"time/generate": sampling + waited, "time/score": rollout_seconds - sampling}
        stats |= {"time/rollout": rollout_seconds + waited, "time/optimize": optimized - collected}
        self.journal.log(self.step, stats)
        if self.evaluation.is_due(self.step):
            self.journal.histogram(self.step, "rollout/advantage", targets.advantages[rollout.response_mask].tolist())
        return stats

    def _begin(self, prompt_indices: Sequence[int]) -> None:
        """The first rollout, which sets the score statistics; then the critic is fitted and the start evaluated."""
        rollout, rollout_seconds = self._collect(prompt_indices)
        if self.config.rollout.lag and self.config.rollout.vllm is not None:
            text = "with rollout.lag=1 the gap holds the step of an update; evaluations stop the run where it is large"
            self.journal.not_measured(self.step, "sampler gap", text)
        if self.config.ppo.value_pretrain is not None:
            rollout = self._pretrain_critic(rollout)
        self._initial_rollout = rollout, rollout_seconds
        self.alarms.begin(self.evaluation.run(self.step))
        exit_if_preempted(self.config.run_dir)

    def _collect(self, prompt_indices: Sequence[int]) -> tuple[Rollout, float]:
        """The next iteration's rollout, and the seconds that it took; its scores count in the score statistics."""
        config, started = self.config, time.monotonic()
        heartbeat.enter(f"the rollout of iteration {self.step + 1}")
        tasks = make_tasks(self.prompts, prompt_indices, config.rollout.num_generations)
        share, seed = share_of_process(tasks, self.accelerator), config.training.seed
        given = self.ahead.take(prompt_indices, self.step)
        rollout = self.collector.collect(share, seed, self.step, given=given, with_entropy=True)
        components, previous = self.collector.components, self.reward_scaler.start
        components.observe(rollout.parts, all_reduce_sum)
        rollout = replace(rollout, scores=components.total(rollout.parts))  # by the statistics that it may have set
        self.reward_scaler.observe(rollout.scores, all_reduce_sum)
        if self.reward_scaler.start != previous:
            self.journal.event("score_unit", step=self.step + 1, **self.reward_scaler.start._asdict())
            if (start := self.evaluation.restate()) is not None:
                self.alarms.begin(start)
        self._spread_metrics = {}
        if config.ppo.advantage_estimator in GROUPED:
            rollout, self._spread_metrics = self.dynamic_sampling.replace(rollout, set(prompt_indices), self.step)
        return rollout, time.monotonic() - started

    def _pretrain_critic(self, first: Rollout) -> Rollout:
        _, critic_learning_rate = self.schedule.base_lrs
        pretraining = ValuePretraining(
            self.config, self.updater, self.collector, self.target_builder, self.prompts, self._answers,
            float(critic_learning_rate),
        )  # fmt: skip
        return pretraining.run(first, self.journal)

    def _sampler_gap_metrics(self, rollout: Rollout) -> dict[str, float]:
        metrics = {"rollout/lag": float(rollout.lagged)} if self.config.rollout.lag else {}
        if rollout.sampled_logprobs is None:
            return metrics
        gap = sampler_gap.measure(rollout.old_logprobs, rollout.sampled_logprobs, rollout.response_mask)
        return metrics | sampler_gap.metrics(gap)

    def _save(self, checkpoints: Checkpoints) -> None:
        heartbeat.enter(f"the checkpoint of iteration {self.step}")
        checkpoints.save(self.step, self.state.save, size=3 * self.engine.num_bytes)

    def _check_alarms(self, stats: Mapping[str, float], evaluation: Mapping[str, float] | None) -> None:
        for alarm in self.alarms.check(self.step, stats, evaluation):
            if alarm.text is None:
                self.journal.cleared(self.step, alarm.name)
            else:
                self.report(alarm.name, alarm.level, alarm.text)

    def report(self, name: str, level: Level, text: str) -> None:
        """Write a finding into the journal, and on the screen."""
        self.journal.finding(self.step, name, level, text)
        if self.accelerator.is_main_process:
            print(f"ppo: iteration {self.step}: {name}: {text}", flush=True)

    @contextlib.contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """Write an error that stops the run inside (it diverged, a reward is no number) into the journal."""
        try:
            yield
        except UserError as error:
            self.journal.finding(self.step + 1, STOPPED, "error", str(error))
            raise
