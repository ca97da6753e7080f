"""PPO: a policy, a reward and prompts in, a better policy in the registry.

accelerate launch --config_file configs/accelerate/zero2.yaml -m ppo configs/ppo/demo.yaml
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from alignment import adapters, distributed, heartbeat, methods, resume, trainers, zero3
from alignment.checkpoint import Checkpoints, keep_files, load_state, random_state, save_state, set_random_state
from alignment.config import ConfigError
from alignment.control import Control, Wanted, leave_if_preempted
from alignment.data import Prompt, to_prompts, train_and_eval
from alignment.distributed import Accelerator, TrainingEngine, all_reduce_sum
from alignment.ensembles import num_members
from alignment.errors import UserError
from alignment.models import ModelSource
from alignment.optimizers import Settings
from alignment.positions import check_length
from alignment.runs import Run
from alignment.stage import write_bad_rows
from alignment.tensors import whiten
from alignment.terminal import progress
from alignment.tracking import Journal
from alignment.tracking.journal import Level
from alignment.tracking.judges import judge_of
from alignment.tracking.verdicts import WON
from ppo.alarms import WATCHED, Alarms, not_better
from ppo.algorithm import estimate_advantages, group_advantages, returns_to_go, shape_rewards
from ppo.config import PPOStageConfig, TrainingConfig, batch_plan
from ppo.controllers import KLController, RewardScaler
from ppo.ema import EMA
from ppo.evaluation import BestPolicy, Judged, check_selection, figures
from ppo.loading import as_trained, find_models, load_models, load_policy_tokenizer, policy_options
from ppo.models import Models
from ppo.plan import workload
from ppo.ptx import read_ptx
from ppo.rewards import load_sources
from ppo.rollout import Collector, Rollout, Task, encode_prompts, make_engine, make_tasks, prompt_batches
from ppo.sequences import Row
from ppo.stats import rollout_stats
from ppo.update import Targets, Updater

EVAL_SEED = 1_000_000_007
STOPPED = "stopped"


def train(config: PPOStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the figures of the published policy."""
    _check(config)
    distributed.start_processes()
    batch_plan(config, distributed.world_size())
    accelerator = distributed.make_accelerator(max_grad_norm=config.training.max_grad_norm, bf16=config.training.bf16)
    distributed.on_main_process(lambda: _check_backend(config, accelerator))
    begun = resume.begin(config.run_dir)
    registry = trainers.open_registry(config, begun.run)
    if published := trainers.published_before(config, registry, begun.run):
        return published
    prompts, held_out = train_and_eval(config.data, to_prompts)
    check_selection(config.training, num_held_out=len(held_out.items))
    sources = distributed.on_main_process(lambda: find_models(config, registry))
    trainers.pin_models(config, registry, begun.run)
    _check_lengths(config, sources)
    torch.manual_seed(config.training.seed)
    with zero3.whole_models():  # parted later: parts can be neither merged nor given a head
        models = load_models(config, sources)
    ptx = read_ptx(config, models.tokenizer)
    data = [*prompts.fingerprints, *held_out.fingerprints, *ptx.fingerprints]
    with trainers.open_journal(config, "ppo", begun) as journal:
        checkpoints = trainers.open_checkpoints(
            config, begun, journal, keep=config.training.save_total_limit, data=data
        )
        if accelerator.is_main_process:
            write_bad_rows(config.run_dir, [*prompts.bad, *ptx.bad], prompts.notes)
        loop = Loop(config, models, accelerator, journal, prompts.items, held_out.items, ptx.rows)
        journal.event("data", prompts=prompts.fingerprints, held_out=held_out.fingerprints, ptx=ptx.fingerprints,
                      notes=prompts.notes, **loop.too_long)  # fmt: skip
        journal.event("backend", **distributed.backend(accelerator, loop.engine.wrapped))
        journal.watching([STOPPED, *WATCHED, WON])
        journal.event("models", **{role: source.label for role, source in sources.items()}, packed=models.packed)
        if begun.checkpoint is not None:
            loop.load(begun.checkpoint.path, begun.checkpoint.manifest.world_size)
            journal.go_on(step=loop.step, checkpoint=begun.checkpoint.path.name)
        with loop.noting_the_end():
            loop.run(checkpoints)
        heartbeat.enter("the end of training", patient=True)
        with loop.published_policy() as metrics:
            ref = _publish(config, registry, models, loop, data, metrics, begun.run)
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


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
    ) -> None:
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
        sources = load_sources(config.rewards, prompts, held_out)
        self.collector = Collector(config, models, sampler, sources, accelerator)
        after_step = self.ema.update if self.ema is not None else lambda: None
        self.updater = Updater(config, models, self.engine, ptx_rows, after_step)
        self.kl_controller = KLController(config.ppo.kl_coef, config.ppo.kl_target, config.ppo.kl_horizon)
        self.scaler = RewardScaler(config.rewards.scaling, config.rewards.clip)
        self.best = BestPolicy(config.training, config.run_dir)
        self.alarms = Alarms(config)
        self.step = 0
        """Iterations done."""
        self.start: Judged | None = None
        """The held-out answers of the policy as it started."""
        self.first_figures: dict[str, float] = {}
        self.last_figures: dict[str, float] = {}

    def run(self, checkpoints: Checkpoints | None = None) -> None:
        """All iterations from `step` on, with the evaluations before, between and after, and the checkpoints."""
        config, training = self.config, self.config.training
        num_prompts = config.rollout.batch_size // config.rollout.num_generations
        batches = prompt_batches(len(self.prompts), num_prompts, training.seed, self.step)
        outside = Control(config.run_dir, self.journal)
        leave_if_preempted(config.run_dir)
        if self.step == 0:
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
            own |= {"last_figures": self.last_figures, "start": self.start and asdict(self.start)}
            save_state(folder / "loop.pt", state | own)
            keep_files(self.best.folder, folder / "best")

    def load(self, folder: Path, saved: int) -> None:
        """Put the run where `save` left it, on so many processes."""
        settings = Settings(self.engine.optimizer, self.schedule)
        self.engine.load(folder, saved)
        state = load_state(folder / "loop.pt")
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
        self.start = state["start"] and Judged(**state["start"])
        own = folder / f"process-{self.accelerator.process_index}.pt"
        if own.exists():  # else there are more processes now; nothing here is drawn from what they begin with
            set_random_state(load_state(own))
        if self.accelerator.is_main_process:
            keep_files(folder / "best", self.best.folder)
        distributed.wait_for_everyone()

    def _stateful(self) -> dict[str, Any]:
        parts = {"schedule": self.schedule, "kl_controller": self.kl_controller, "scaler": self.scaler}
        parts |= {"best": self.best, "alarms": self.alarms}
        return parts if self.ema is None or self._parted else parts | {"ema": self.ema}

    def iterate(self, numbers: Sequence[int]) -> dict[str, float]:
        """One iteration: a rollout of these prompts and what is learned from it."""
        config, started = self.config, time.monotonic()
        heartbeat.enter(f"the rollout of iteration {self.step + 1}")
        tasks = self.own_share(make_tasks(self.prompts, numbers, config.rollout.num_generations))
        rollout = self.collector.collect(tasks, config.training.seed, self.step)
        collected = time.monotonic()
        targets, rewards = self.targets(rollout)
        stats = rollout_stats(rollout, rewards, targets)
        stats |= self.updater.update(self.step, rollout, targets)
        if self.step >= config.ppo.value_warmup_steps:  # before, its KL says nothing of the coefficient
            self.kl_controller.update(stats["rollout/kl"], config.rollout.batch_size)
        stats["train/learning_rate"] = float(self.engine.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        self.step += 1
        tokens = stats["rollout/length"] * config.rollout.batch_size
        stats["rollout/tokens_per_second"] = tokens / max(rollout.seconds, 1e-9)
        stats |= {"time/generate": rollout.seconds, "time/score": collected - started - rollout.seconds}
        stats |= {"time/rollout": collected - started, "time/optimize": time.monotonic() - collected}
        self.journal.log(self.step, stats)
        if self._evaluation_is_due():
            self.journal.histogram(self.step, "rollout/advantage", targets.advantages[rollout.response_mask].tolist())
        return stats

    def own_share(self, tasks: Sequence[Any]) -> list[Any]:
        """This process's part of what all processes do together: neighbours, so that responses to a prompt stay
        together."""
        count = len(tasks) // self.accelerator.num_processes
        start = count * self.accelerator.process_index
        return list(tasks[start : start + count])

    def targets(self, rollout: Rollout) -> tuple[Targets, Tensor]:
        """What a rollout is to teach, and its shaped rewards (B, T)."""
        ppo, mask = self.config.ppo, rollout.response_mask
        kl_coef = self.kl_controller.value
        scores = self.scaler(rollout.scores, all_reduce_sum)
        rewards = shape_rewards(scores, rollout.kl, mask, kl_coef if ppo.kl_in == "reward" else 0.0)
        returns = None
        if ppo.advantage_estimator == "gae":
            advantages, returns = estimate_advantages(
                rewards, rollout.old_values, mask, ppo.gamma, ppo.gae_lambda, ppo.value_gae_lambda
            )
        elif ppo.advantage_estimator == "reinforce++":
            advantages = returns_to_go(rewards, mask, ppo.gamma)
        else:
            advantages = group_advantages(rewards, mask, ppo.advantage_estimator, self.config.rollout.num_generations)
        if ppo.whiten_advantages and ppo.advantage_estimator != "grpo":  # which is scaled within its groups
            advantages = whiten(advantages, mask, reduce=all_reduce_sum)
        return Targets(advantages, returns, kl_coef), rewards

    def evaluate(self) -> dict[str, float] | None:
        """Answer every held-out prompt once, always with the same seed; journal the figures and a few answers, and
        keep the policy if it is the best so far."""
        if not self.held_out:
            return None
        heartbeat.enter(f"the evaluation after iteration {self.step}")
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            judged = self.judge()
            now = figures(judged, self.start, [prompt.group for prompt, _ in self.held_out])
            if self.start is None:
                self.start, self.first_figures = judged, now
            self.best.consider(self.step, now, self._policy_weights)
        self.last_figures = now
        self.journal.log(self.step, {f"eval/{name}": value for name, value in now.items()})
        for name, values in (("score", judged.scores), ("kl", judged.kl), ("length", judged.lengths)):
            self.journal.histogram(self.step, f"eval/{name}", values)
        return {f"eval/{name}": value for name, value in now.items()}

    def judge(self) -> Judged:
        """Every process answers as many prompts, since a shorter share would leave the others waiting in a collective;
        prompts repeated for that are dropped."""
        world_size = self.accelerator.num_processes
        tasks = make_tasks(self.held_out, range(len(self.held_out)), 1)
        padded = (tasks * world_size)[: len(tasks) + -len(tasks) % world_size]
        rollout = self.collector.collect(self.own_share(padded), EVAL_SEED)
        held_out_scores: list[float | None] = [None] * len(rollout)
        if self.models.held_out_reward is not None:
            model = self.models.held_out_reward
            raw, _ = self.collector.score_with(model, rollout.tasks, rollout.rows, rollout.texts)
            held_out_scores = self.collector.final(raw, rollout.lengths, rollout.ended).tolist()
        columns = (rollout.scores.tolist(), held_out_scores, rollout.kl.sum(1).tolist(), rollout.lengths.tolist(),
                   rollout.ended.tolist(), rollout.texts)  # fmt: skip
        shares = distributed.gather_lists(list(zip(*columns, strict=True)))
        rows = [row for share in shares for row in share][: len(tasks)]
        shown = list(enumerate(zip(tasks, rows, strict=True)))[: self.config.tracking.num_samples]
        self.journal.samples(self.step, [_sample(number, task, row) for number, (task, row) in shown])
        scores, held, kl, lengths, ended, texts = (list(column) for column in zip(*rows, strict=True))
        return Judged(scores, None if held[0] is None else held, kl, lengths, ended, texts)

    def _policy_weights(self) -> dict[str, Tensor]:
        """What is trained of the policy, on the main process."""
        return zero3.whole_weights(self.models.trained.trained_parameters("policy"))

    @contextlib.contextmanager
    def published_policy(self) -> Iterator[dict[str, Any]]:
        """The models hold the policy that is to be published inside; gives its metrics."""
        of = self.last_figures if self.best.figures is None else self.best.figures
        metrics: dict[str, Any] = {f"eval_{name}": value for name, value in of.items()}
        metrics |= {f"start_eval_{name}": value for name, value in self.first_figures.items()}
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
    score, held_out_score, kl, length, ended, text = row
    found = {"id": number, "prompt": list(task.prompt.messages), "response": text, "score": score, "kl": kl}
    found |= {"length": int(length), "ended": bool(ended)}
    return found if held_out_score is None else found | {"held_out_score": held_out_score}


def make_optimizer(models: Models, config: PPOStageConfig) -> torch.optim.AdamW:
    """AdamW with the policy and the critic as two groups, each with its own learning rate."""
    training = config.training
    rate = training.learning_rate or (1e-6 if models.base is None else 1e-5)
    rates = {"policy": rate, "value": training.value_learning_rate or 5 * rate}
    groups = [
        {"params": [p for _, p in models.trained.trained_parameters(of)], "lr": rates[of]} for of in ("policy", "value")
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, eps=training.adam_epsilon, weight_decay=training.weight_decay)


def make_schedule(optimizer: Any, config: PPOStageConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The named schedule over iterations; the policy's begins once the critic has learned alone, and is 0 before.

    Made of the prepared optimizer: DeepSpeed's offload puts another in its place, whose rate would stay as it began.
    """
    training: TrainingConfig = config.training

    def over(steps: int, optimizer: Any) -> torch.optim.lr_scheduler.LambdaLR:
        return transformers.get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, steps)

    schedule, alone = over(training.max_steps, optimizer), config.ppo.value_warmup_steps
    if alone:
        # A schedule sets the rates of what it is made of.
        unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        policys = over(training.max_steps - alone, unused).lr_lambdas[0]
        schedule.lr_lambdas[0] = lambda step: 0.0 if step < alone else policys(step - alone)
        optimizer.param_groups[0]["lr"] = 0.0
    return schedule


def _publish(
    config: PPOStageConfig,
    registry: Any,
    models: Models,
    loop: Loop,
    data: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    run: Run,
) -> str:
    """Save and publish the policy, whole or as an adapter; every process takes part in gathering the weights."""
    weights = loop.engine.full_state_dict()

    def save_and_publish() -> str:
        prefix = "policy."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            models.save_policy(Path(folder), own)
            if models.base is not None:
                adapters.name_base(Path(folder), models.base.label)
            models.tokenizer.save_pretrained(folder)
            return trainers.publish(
                as_trained(config, models.sources["init"], models.base),
                registry,
                Path(folder),
                stage="ppo",
                role="policy",
                parents=models.parents(),
                base=models.base.as_base() if models.base else None,
                data=data,
                metrics=metrics,
                seed=config.training.seed,
                run=run,
                journal=loop.journal,
            ).ref

    return distributed.on_main_process(save_and_publish)


def _check(config: PPOStageConfig) -> None:
    if config.rollout.max_new_tokens >= config.data.max_length:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
            f"data.max_length={config.data.max_length}; raise data.max_length"
        )


def _check_backend(config: PPOStageConfig, accelerator: Accelerator) -> None:
    if "nvme" in distributed.offload_devices(accelerator):
        raise ConfigError(
            "PPO does not run with weights or optimizer on NVMe, which each rollout and each pass would read; set "
            "offload_optimizer_device: cpu and offload_param_device: cpu in the launch file"
        )
    methods.check(policy_options(config.model), distributed.zero_stage(accelerator))


def _check_lengths(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> None:
    """`data.max_length` is that of prompt and response together, which every model reads."""
    for path in dict.fromkeys(source.config_path for source in sources.values()):
        check_length(path, config.data.max_length, "data.max_length", config.model.trust_remote_code)


def plan(config: PPOStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    _check(config)
    sizes = batch_plan(config, world_size)
    prompts, held_out = train_and_eval(config.data, to_prompts)
    check_selection(config.training, num_held_out=len(held_out.items))
    load_sources(config.rewards, prompts.items, held_out.items)
    if config.rollout.engine == "vllm":
        from alignment.vllm_engine import check_installed

        check_installed()
    sources = find_models(config, trainers.open_registry(config))
    _check_lengths(config, sources)
    tokenizer = load_policy_tokenizer(config, sources)
    limit = config.data.max_length - config.rollout.max_new_tokens
    encoded, too_long = encode_prompts(prompts.items, tokenizer, limit, config.data.too_long)
    ptx = read_ptx(config, tokenizer)
    trust = config.model.trust_remote_code
    shapes = {
        role: transformers.AutoConfig.from_pretrained(source.config_path, trust_remote_code=trust)
        for role, source in sources.items()
    }
    shared = config.model.mode == "shared"
    members = {  # elsewhere those that are adapters are on one body
        role: num_members(source)
        for role, source in sources.items()
        if source.base is None or (shared and role == "reward")
    }
    return {
        "train_prompts": len(encoded),
        "eval_prompts": len(held_out.items),
        "ptx_rows": len(ptx.rows),
        "bad_rows": len(prompts.bad) + len(ptx.bad),
        "too_long": too_long,
        "processes": world_size,
        "episodes_per_iteration": config.rollout.batch_size,
        "episodes_per_device": sizes.episodes,
        "prompts_per_device": sizes.prompts,
        "minibatch": sizes.minibatch,
        "microbatch_tokens": config.training.microbatch_tokens,
        "optimizer_steps": config.training.max_steps * config.ppo.num_epochs * config.ppo.num_minibatches,
        **trainers.memory_plan(lambda: workload(config, shapes, world_size, members), sources, world_size),
    }
