"""PPO: a policy, a reward model and prompts in, a better policy in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m ppo configs/ppo/demo.yaml

Left out here on purpose: adapters and the shared base, checkpoints, other advantage estimators, reward functions.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from alignment import distributed, trainers
from alignment.config import ConfigError
from alignment.data import Prompt, to_prompts, train_and_eval
from alignment.distributed import Accelerator, all_reduce_sum
from alignment.ensembles import num_members
from alignment.generation import stream_seed
from alignment.models import ModelError, ModelSource, num_parameters
from alignment.positions import check_length
from alignment.stage import write_bad_rows
from alignment.tensors import masked_moments, whiten
from alignment.terminal import progress
from alignment.tracking import Journal
from ppo.algorithm import estimate_advantages, policy_loss, shape_rewards, value_loss
from ppo.config import BatchPlan, PPOStageConfig, TrainingConfig, batch_plan
from ppo.models import Models, PolicyAndValue, find_models, load_models, load_policy_tokenizer
from ppo.rollout import Rollout, collect_rollout, prompt_batches, select

EVAL_SEED = 1_000_000_007


def train(config: PPOStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the last evaluation."""
    _check(config)
    distributed.start_processes()
    sizes = batch_plan(config, distributed.world_size())
    accelerator = distributed.make_accelerator(
        accumulation=sizes.accumulation,
        microbatch=sizes.microbatch,
        max_grad_norm=config.training.max_grad_norm,
        bf16=config.training.bf16,
    )
    _check_backend(accelerator)
    registry = trainers.open_registry(config)
    prompts, held_out = train_and_eval(config.data, to_prompts)
    sources = distributed.on_main_process(lambda: find_models(config.model, registry))
    _check_lengths(config, sources)
    torch.manual_seed(config.training.seed)
    models = load_models(config.model, sources)
    engine, optimizer, schedule = prepare(models, accelerator, config.training)
    with trainers.open_journal(config, "ppo") as journal:
        if accelerator.is_main_process:
            write_bad_rows(config.run_dir, prompts.bad, prompts.notes)
        journal.event("data", prompts=prompts.fingerprints, held_out=held_out.fingerprints, notes=prompts.notes)
        journal.event("backend", **distributed.backend(accelerator, engine))
        journal.event("models", **{role: source.label for role, source in sources.items()})
        loop = _Loop(config, sizes, models, engine, accelerator, optimizer, schedule, journal)
        first = loop.evaluate(0, held_out.items)
        loop.run(prompts.items, held_out.items)
        last = loop.evaluate(config.training.max_steps, held_out.items)
        metrics = last | {f"start_{name}": value for name, value in first.items()}
        ref = _publish(
            config, registry, models, engine, accelerator, [*prompts.fingerprints, *held_out.fingerprints], metrics
        )
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


class _Loop:
    """The parts of one run that do not change, and the loop over them."""

    def __init__(
        self,
        config: PPOStageConfig,
        sizes: BatchPlan,
        models: Models,
        engine: nn.Module,
        accelerator: Accelerator,
        optimizer: Any,
        schedule: Any,
        journal: Journal,
    ) -> None:
        self.config, self.sizes, self.models, self.engine = config, sizes, models, engine
        self.accelerator, self.optimizer, self.schedule, self.journal = accelerator, optimizer, schedule, journal

    def run(self, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
        """All iterations."""
        config, training = self.config, self.config.training
        batches = prompt_batches(len(prompts), config.rollout.batch_size, training.seed)
        with progress(f"ppo {config.name}", training.max_steps, self.accelerator.is_main_process) as line:
            for step in range(training.max_steps):
                started = time.monotonic()
                rollout = self.collect([prompts[index] for index in next(batches)], training.seed, step)
                sampled = time.monotonic()
                rewards = shape_rewards(rollout.scores, rollout.kl, rollout.response_mask, config.ppo.kl_coef)
                advantages, returns = estimate_advantages(
                    rewards, rollout.old_values, rollout.response_mask, config.ppo.gamma, config.ppo.gae_lambda
                )
                stats = rollout_stats(rollout, rewards, returns)
                if config.ppo.whiten_advantages:
                    advantages = whiten(advantages, rollout.response_mask, reduce=all_reduce_sum)
                stats |= self.optimize(step, rollout, advantages, returns)
                stats["train/learning_rate"] = self.schedule.get_last_lr()[0]
                self.schedule.step()
                stats |= {"time/rollout": sampled - started, "time/optimize": time.monotonic() - sampled}
                self.journal.log(step + 1, stats)
                line.advance(1, score=stats["rollout/score"], kl=stats["rollout/kl"])
                if training.eval_steps and (step + 1) % training.eval_steps == 0 and step + 1 < training.max_steps:
                    self.evaluate(step + 1, held_out)

    def collect(self, prompts: Sequence[Prompt], seed: int, step: int) -> Rollout:
        """This process's share of a batch of prompts, sampled and scored; the same for the same seed and step."""
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return collect_rollout(
            self.models,
            self.engine,
            self.accelerator,
            prompts[rank::world_size],
            self.config.rollout,
            self.config.data.max_length,
            stream_seed("sampling", seed, step, rank),
        )

    def optimize(self, step: int, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """`num_epochs` passes over a rollout in shuffled minibatches; the statistics are those of all passes.

        Raises:
            ModelError: a loss or gradient is not finite (the same on every process).
        """
        config, device = self.config, self.accelerator.device
        generator = torch.Generator().manual_seed(stream_seed("minibatches", config.training.seed, step))
        totals = torch.zeros(7, dtype=torch.float64, device=device)
        first: dict[str, float] = {}
        norms: list[float] = []
        for _ in range(config.ppo.num_epochs):
            for minibatch in torch.randperm(len(rollout), generator=generator).split(self.sizes.minibatch):
                sums, norm = self._optimizer_step(rollout, advantages, returns, minibatch.to(device))
                sums = all_reduce_sum(sums)
                if not first:
                    first = {
                        "policy/first_ratio": float(sums[3] / sums[0]),
                        "policy/first_approx_kl": float(sums[4] / sums[0]),
                    }
                totals += sums
                norms.append(norm or 0.0)
        tokens, policy, value, ratio, approx_kl, clipped, value_clipped = totals.tolist()
        steps = len(norms)
        if not all(map(math.isfinite, (policy, value, *norms))):  # the next rollout would end in a traceback
            raise ModelError(
                f"training diverged at iteration {step + 1}: loss or gradient is not finite; "
                "lower training.learning_rate"
            )
        return first | {
            "policy/loss": policy / steps,
            "policy/ratio": ratio / tokens,
            "policy/approx_kl": approx_kl / tokens,
            "policy/clip_fraction": clipped / tokens,
            "value/loss": value / steps,
            "value/clip_fraction": value_clipped / tokens,
            "train/grad_norm": sum(norms) / steps,
        }

    def _optimizer_step(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> tuple[Tensor, float | None]:
        """One minibatch: microbatches of like length, one optimizer step.

        Losses are divided by the kept tokens of the whole minibatch on all processes, so neither the split into
        microbatches nor the number of processes changes the gradient.
        """
        ppo, accelerator = self.config.ppo, self.accelerator
        num_tokens = all_reduce_sum(rollout.response_mask[rows].sum().float())
        # backward averages over accumulation and processes; these losses are parts of one sum.
        scale = accelerator.num_processes * self.sizes.accumulation
        sums = torch.zeros(7, dtype=torch.float64, device=accelerator.device)
        norm = None
        by_length = rows[rollout.attention_mask[rows].sum(1).argsort(stable=True)]
        for microbatch in by_length.split(self.sizes.microbatch):
            part = select(rollout, microbatch)
            kept = part.num_response
            with accelerator.accumulate(self.engine):
                logprobs, _, values = self.engine(
                    part.input_ids, part.attention_mask, kept, self.config.rollout.temperature
                )
                policy = policy_loss(
                    logprobs,
                    part.old_logprobs,
                    advantages[microbatch, :kept],
                    part.response_mask,
                    ppo.clip_range,
                    num_tokens,
                )
                value = value_loss(
                    values,
                    part.old_values,
                    returns[microbatch, :kept],
                    part.response_mask,
                    ppo.value_clip_range,
                    num_tokens,
                )
                accelerator.backward((policy.loss + ppo.vf_coef * value.loss) * scale)
                norm = distributed.step_optimizer(
                    accelerator, self.engine, self.optimizer, self.config.training.max_grad_norm
                )
            with torch.no_grad():
                figures = (policy.loss, value.loss, policy.ratio, policy.approx_kl, policy.clipped, value.clipped)
                sums += torch.stack([figure.double() for figure in (part.response_mask.sum(), *figures)])
        return sums, norm

    def evaluate(self, step: int, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Sample every held-out prompt once, always with the same seed; journal the figures and a few answers."""
        if not prompts:
            return {}
        world_size, size = self.accelerator.num_processes, self.config.rollout.generation_batch_size
        # Each process runs the same number of forwards: a shorter share would leave the others waiting in a collective.
        # Prompts repeated for that do not count.
        total = len(prompts) + -len(prompts) % world_size
        padded = list(itertools.islice(itertools.cycle(prompts), total))
        totals = torch.zeros(5, dtype=torch.float64, device=self.accelerator.device)
        for start in range(0, len(padded), size * world_size):
            chunk = padded[start : start + size * world_size]
            rollout = self.collect(chunk, EVAL_SEED, start)
            numbers = torch.arange(start, start + len(chunk))[self.accelerator.process_index :: world_size]
            counted = (numbers < len(prompts)).to(self.accelerator.device)
            figures = (rollout.scores, rollout.kl.sum(1), rollout.lengths, rollout.ended, counted)
            totals += torch.stack([figure[counted].double().sum() for figure in figures])
            if start == 0:
                self._journal_samples(step, chunk, rollout)
        score, kl, length, ended, count = all_reduce_sum(totals).tolist()
        metrics = {"score": score / count, "kl": kl / count, "length": length / count, "ended": ended / count}
        self.journal.log(step, {f"eval/{name}": value for name, value in metrics.items()})
        return {f"eval_{name}": value for name, value in metrics.items()}

    def _journal_samples(self, step: int, prompts: Sequence[Prompt], rollout: Rollout, count: int = 8) -> None:
        """The first few answers of the main process, always to the same prompts."""
        if not self.accelerator.is_main_process:
            return
        shown = prompts[:: self.accelerator.num_processes][:count]
        for index, prompt in enumerate(shown):
            ids = rollout.response_ids[index][rollout.response_mask[index]]
            self.journal.sample(
                step,
                prompt=list(prompt.messages),
                response=self.models.tokenizer.decode(ids, skip_special_tokens=True),
                score=float(rollout.scores[index]),
                kl=float(rollout.kl[index].sum()),
                ended=bool(rollout.ended[index]),
            )


def rollout_stats(rollout: Rollout, rewards: Tensor, returns: Tensor) -> dict[str, float]:
    """Means over all processes' episodes: score, KL in nats per response, shaped reward, entropy, length, share
    ended, and of a reward ensemble the standard deviation over its members; and the share of the returns' variance that
    the value model explains."""
    mask = rollout.response_mask
    per_episode = torch.stack(
        [
            rollout.scores,
            rollout.kl.sum(1),
            rewards.sum(1),
            rollout.lengths.float(),
            rollout.ended.float(),
            torch.zeros_like(rollout.scores) if rollout.score_std is None else rollout.score_std,
        ],
        dim=1,
    ).double()
    entropy = torch.where(mask, rollout.entropy, 0.0).sum().double()
    counts = torch.stack([torch.tensor(float(len(rollout))).to(entropy), mask.sum().double(), entropy])
    sums = all_reduce_sum(torch.cat([per_episode.sum(0), counts]))
    score, kl, reward, length, ended, score_std, episodes, tokens, entropy_sum = sums.tolist()
    _, _, variance = masked_moments(returns, mask, all_reduce_sum)
    _, _, residual = masked_moments(returns - rollout.old_values, mask, all_reduce_sum)
    spread = {} if rollout.score_std is None else {"rollout/score_std": score_std / episodes}
    return spread | {
        "rollout/score": score / episodes,
        "rollout/kl": kl / episodes,
        "rollout/reward": reward / episodes,
        "rollout/length": length / episodes,
        "rollout/ended": ended / episodes,
        "policy/entropy": entropy_sum / tokens,
        "value/explained_variance": float(1 - residual / variance.clamp(min=1e-12)),
    }


def prepare(models: Models, accelerator: Accelerator, config: TrainingConfig) -> tuple[nn.Module, Any, Any]:
    """Wrap the trained module for this launch and move the frozen ones beside it; the engine, optimizer, schedule."""
    engine, optimizer = accelerator.prepare(models.trained, make_optimizer(models.trained, config))
    # On the prepared optimizer: DeepSpeed's offload puts another in its place, whose rate would stay as it began.
    schedule = transformers.get_scheduler(config.lr_scheduler_type, optimizer, config.warmup_steps, config.max_steps)
    models.ref_policy.to(accelerator.device)
    models.reward_model.to(accelerator.device)
    # DeepSpeed rounds the policy's own weights to bfloat16, its buffers (rotary frequencies) not; with a reference
    # that is not rounded just so, the KL starts above 0.
    for parameter in models.ref_policy.parameters():
        parameter.data = parameter.data.to(models.policy.dtype)
    return engine, optimizer, schedule


def make_optimizer(trained: PolicyAndValue, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with the policy and the value model as two groups, each with its own learning rate."""
    value_learning_rate = config.value_learning_rate or 5 * config.learning_rate
    groups = [
        {"params": list(trained.policy.parameters()), "lr": config.learning_rate},
        {"params": list(trained.value_model.parameters()), "lr": value_learning_rate},
    ]
    return torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay)


def _publish(
    config: PPOStageConfig,
    registry: Any,
    models: Models,
    engine: nn.Module,
    accelerator: Accelerator,
    data: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
) -> str:
    """Save and publish the policy; every process takes part in gathering the weights."""
    weights = distributed.full_state_dict(accelerator, engine)

    def save_and_publish() -> str:
        prefix = "policy."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
            models.policy.save_pretrained(folder, state_dict=own)
            models.tokenizer.save_pretrained(folder)
            return trainers.publish(
                config,
                registry,
                Path(folder),
                stage="ppo",
                role="policy",
                parents=models.parents(),
                data=data,
                metrics=metrics,
                seed=config.training.seed,
            ).ref

    return distributed.on_main_process(save_and_publish)


def _check(config: PPOStageConfig) -> None:
    if config.rollout.max_new_tokens >= config.data.max_length:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
            f"data.max_length={config.data.max_length}; raise data.max_length"
        )
    if config.data.too_long != "trim_prompt":
        raise ConfigError(
            f"data.too_long={config.data.too_long}: PPO cuts the oldest part of a long prompt; leave it at trim_prompt"
        )


def _check_lengths(config: PPOStageConfig, sources: Mapping[str, ModelSource]) -> None:
    """`data.max_length` is that of prompt and response together, which every model reads."""
    for path in dict.fromkeys(source.config_path for source in sources.values()):
        check_length(path, config.data.max_length, "data.max_length", config.model.trust_remote_code)


def _check_backend(accelerator: Accelerator) -> None:
    if distributed.zero_stage(accelerator) >= 3:
        raise ConfigError(
            "PPO does not run under ZeRO-3 yet: generation would need the sharded weights gathered; "
            "launch it with configs/accelerate/zero2.yaml"
        )


def plan(config: PPOStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    _check(config)
    sizes = batch_plan(config, world_size)
    prompts, held_out = train_and_eval(config.data, to_prompts)
    sources = find_models(config.model, trainers.open_registry(config))
    _check_lengths(config, sources)
    load_policy_tokenizer(config.model, sources)
    counts = {role: num_parameters(source.config_path) for role, source in sources.items()}
    reward = sources["reward"]
    if counts["reward"] and reward.base is None:  # the members of an ensemble; adapters share their base
        counts["reward"] *= num_members(reward)
    result: dict[str, Any] = {
        "train_prompts": len(prompts.items),
        "eval_prompts": len(held_out.items),
        "bad_rows": len(prompts.bad),
        "processes": world_size,
        "episodes_per_iteration": config.rollout.batch_size,
        "episodes_per_device": sizes.episodes,
        "minibatch_per_device": sizes.minibatch,
        "microbatch_per_device": sizes.microbatch,
        "accumulated": sizes.accumulation,
        "optimizer_steps": config.training.max_steps * config.ppo.num_epochs * config.ppo.num_minibatches,
        "parameters": counts,
    }
    if all(counts.values()):
        trained = sum(counts[role] or 0 for role in ("init", "value")) * 16
        frozen = sum(counts[role] or 0 for role in ("reference", "reward")) * 4
        # Weights, gradients and two moments of what is trained, weights of what is not; activations come on top.
        result["memory_gib_per_process_without_zero"] = round((trained + frozen) / 2**30, 3)
    return result
