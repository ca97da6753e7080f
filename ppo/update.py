"""From a rollout to optimizer steps: minibatches, microbatches, the losses of one step, and what is watched in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.distributed import heartbeat
from alignment.distributed.engine import Diverged, TrainingEngine
from alignment.distributed.processes import all_reduce_max, all_reduce_sum
from alignment.errors import ModelError
from alignment.seeds import stream_seed
from ppo.algorithm import Unit, importance_weights, kl_loss, policy_loss, value_loss
from ppo.config import PPOStageConfig
from ppo.models import Models, Outputs, Pass
from ppo.rollout import Rollout, prompt_batches
from ppo.sequences import Microbatch, Row, lay_out, split_by_tokens

FIGURES = (
    "policy/loss", "policy/ratio", "policy/approx_kl", "policy/clip_fraction", "policy/kl_loss", "policy/entropy_bonus",
    "value/loss", "value/clip_fraction", "ptx/loss",
)  # fmt: skip
POLICY_GROUP = 0
"""The optimizer's parameter group of the policy."""
FIRST_DIFFERENCE = {False: 1e-3, True: 0.05}
"""By how much log-probabilities that are computed twice may differ on average, without and with bfloat16, in nats.
float32 sums in another order differ by 1e-6, a wrong mask, position or dropout by tenths and more. bfloat16's is a
judgement, not measured on a GPU; of the mean, as rounding can move a rare token far, and more of them on more
processes."""


@dataclass(frozen=True)
class CriticTargets:
    """What a rollout is to teach the critic; (B, T), in the unit that it is trained in.

    Args:
        old_values: at the rollout.
        returns: what it learns.
        outcomes: the sum of rewards that came from each token on, which returns are with a lambda of 1.
        head_unit: the unit of what the critic's head gives: a head that starts at 0 gives normalised values, one that
            was trained before gives scores.
    """

    old_values: Tensor
    returns: Tensor
    outcomes: Tensor
    head_unit: Unit


@dataclass(frozen=True)
class Targets:
    """What a rollout is to teach.

    Args:
        advantages: (B, T)
        kl_coef: as it is configured or adapted.
        critic: None without one.
        loss_kl_coef: for a KL in the loss, in the unit of the advantages.
    """

    advantages: Tensor
    kl_coef: float
    critic: CriticTargets | None = None
    loss_kl_coef: float = 0.0


def minibatches(total: int, count: int, start: int, stop: int, generator: torch.Generator) -> Iterator[list[int]]:
    """This process's rows of each of `count` minibatches of `total` episodes: those from `start` to `stop`, from 0 on.

    Of every `count` neighbours each goes into another minibatch. So the minibatches are the same whatever the number of
    processes, and each process has an equal part of each.
    """
    order = torch.rand(total // count, count, generator=generator).argsort(1)
    episodes = torch.arange(total).view(-1, count).gather(1, order)
    for column in range(count):
        yield [episode - start for episode in episodes[:, column].tolist() if start <= episode < stop]


class Updater:
    """Takes optimizer steps on rollouts.

    Args:
        ptx_rows: demonstrations that are mixed in.
        after_step: called after each optimizer step.
    """

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        engine: TrainingEngine,
        ptx_rows: Sequence[Row] = (),
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.after_step = after_step
        self.config, self.models, self.engine = config, models, engine
        self.ptx_rows = list(ptx_rows)
        self.device = engine.accelerator.device
        self._ptx_order: Iterator[list[int]] | None = None
        self.num_steps = 0
        """Optimizer steps so far."""

    def update(self, step: int, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """All passes over a rollout; means per token over the steps that were taken, on all processes.

        Raises:
            ModelError: the first log-probabilities are not those of the rollout; a loss or gradient is not finite. The
                same on every process, before any weight is changed by it.
        """
        ppo, accelerator = self.config.ppo, self.engine.accelerator
        if step == ppo.value_warmup_steps:
            self.engine.restart(POLICY_GROUP)
        generator = torch.Generator().manual_seed(stream_seed("minibatches", self.config.training.seed, step))
        start = accelerator.process_index * len(rollout)
        total = accelerator.num_processes * len(rollout)
        parts = [
            rows
            for _ in range(ppo.num_epochs)
            for rows in minibatches(total, ppo.num_minibatches, start, start + len(rollout), generator)
        ]
        sums = torch.zeros(2, len(FIGURES), dtype=torch.float64)
        norms: list[list[float]] = []
        first_ratio = math.nan
        for rows in parts:
            found, norms_of_step = self._optimizer_step(step, rollout, targets, rows, is_first=not norms)
            sums += found
            norms.append(norms_of_step)
            _, ratio, moved, *_ = (found[0] / found[1]).tolist()
            first_ratio = ratio if len(norms) == 1 else first_ratio
            if ppo.epoch_stop_kl is not None and moved > ppo.epoch_stop_kl:
                break
        means = dict(zip(FIGURES, (sums[0] / sums[1]).tolist(), strict=True))
        figures = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        if not math.isnan(first_ratio):
            figures["policy/first_ratio"] = first_ratio
        figures["train/epochs"] = len(norms) / ppo.num_minibatches
        for role, of_role in zip(("policy", "value"), zip(*norms, strict=True), strict=False):
            figures[f"{role}/grad_norm"] = sum(of_role) / len(norms)
        return figures | {"train/grad_norm": sum(math.hypot(*of_step) for of_step in norms) / len(norms)}

    def fit_critic(self, rollout: Rollout, critic: CriticTargets, rows: list[int]) -> None:
        """One optimizer step of the critic alone; the policy's rate must be 0. Values may go as far as they will."""
        targets = Targets(torch.zeros_like(critic.returns), 0.0, critic)
        self._optimizer_step(-1, rollout, targets, rows, is_first=False, value_clip_range=math.inf)

    def _optimizer_step(
        self,
        step: int,
        rollout: Rollout,
        targets: Targets,
        rows: list[int],
        is_first: bool,
        value_clip_range: float | None = None,
    ) -> tuple[Tensor, list[float]]:
        """One minibatch: forward and backward passes over microbatches, then one step.

        Losses are divided by the kept tokens of the whole minibatch on all processes, so neither the split into
        microbatches nor the number of processes changes the gradient.

        Returns:
            Sums of FIGURES over all processes and the tokens that they are of, (2, F); the norms of the gradients of
            policy and critic.
        """
        heartbeat.enter(f"optimizer step {self.num_steps + 1}, iteration {step + 1}")
        only_critic = step < self.config.ppo.value_warmup_steps
        batches = self._microbatches(rollout.rows, rows)
        ptx = [] if only_critic else self._ptx_batches()
        counts = [rollout.response_mask[rows].sum(), sum(len(batch.targets) * batch.weight for batch in ptx)]
        num_tokens, num_ptx = all_reduce_sum(torch.tensor(counts, dtype=torch.float64, device=self.device))
        passes: tuple[Pass, ...] = ("value",) if only_critic else self.models.trained.passes
        # All of the policy's first: their logits are gone before the critic has gradients.
        work: list[tuple[Microbatch, Pass | None]] = []
        work += [(batch, what) for what in passes if what != "value" for batch in batches]
        work += [(batch, None) for batch in ptx]
        work += [(batch, "value") for batch in batches if "value" in passes]
        sums = torch.zeros(len(FIGURES), dtype=torch.float64, device=self.device)
        apart = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, (batch, what) in enumerate(work):
            if what is None:
                loss = self._ptx_loss(batch, num_ptx, sums)
            else:
                outputs = self.engine.forward(batch, what, self.config.rollout.temperature, self._wants_entropy)
                loss = self._loss(outputs, batch, rollout, targets, num_tokens, sums, value_clip_range)
                if is_first and outputs.logprobs is not None:
                    difference = outputs.logprobs.detach() - batch.pick(rollout.old_logprobs)
                    apart += torch.where(batch.mask, difference.abs(), 0.0).sum()
            self.engine.backward(loss, last=number == len(work) - 1)
        if is_first:
            self._check_first(float(all_reduce_sum(apart) / num_tokens), step)
        try:
            norms = self.engine.step()
        except Diverged as error:
            raise ModelError(
                f"training diverged at iteration {step + 1}: {error}; no weight was changed by it; "
                "lower training.learning_rate"
            ) from error
        self.num_steps += 1
        self.after_step()
        there = torch.tensor(self._computed(passes), device=self.device)
        counted = torch.cat([torch.where(there, num_tokens, 0.0), num_ptx[None]])
        return torch.stack([all_reduce_sum(sums), counted]).cpu(), norms

    def _computed(self, passes: Sequence[Pass]) -> list[bool]:
        """Which of FIGURES, but for the last, there are."""
        policy = passes != ("value",)
        optional = [policy and self.config.ppo.kl_in == "loss", policy and self._wants_entropy]
        return [policy] * 4 + optional + [passes != ("policy",)] * 2

    @property
    def _wants_entropy(self) -> bool:
        return self.config.ppo.entropy_coef > 0

    def _microbatches(self, all_rows: Sequence[Row], numbers: Sequence[int]) -> list[Microbatch]:
        """Rows of like length together; as many batches on each process, since under ZeRO each is a collective."""
        packed, pad = self.models.packed, self.models.tokenizer.pad_token_id
        parts = split_by_tokens(all_rows, numbers, self.config.training.microbatch_tokens, packed)
        batches = [lay_out([all_rows[n] for n in part], part, packed, pad, self.device) for part in parts]
        missing = all_reduce_max(len(batches)) - len(batches)
        return batches + [batches[0].as_filler()] * missing

    def _loss(
        self,
        outputs: Outputs,
        batch: Microbatch,
        rollout: Rollout,
        targets: Targets,
        num_tokens: Tensor,
        sums: Tensor,
        value_clip_range: float | None = None,
    ) -> Tensor:
        """The terms of the loss that a pass gives; its figures are added to `sums`."""
        ppo, mask = self.config.ppo, batch.mask
        terms: list[Tensor] = []
        figures: dict[int, Tensor] = {}
        if outputs.logprobs is not None:
            old = batch.pick(rollout.old_logprobs)
            weights = None
            if rollout.sampled_logprobs is not None:
                sampled = batch.pick(rollout.sampled_logprobs)
                weights = importance_weights(old, sampled, mask, self.config.rollout.importance_cap)
            policy = policy_loss(
                outputs.logprobs, old, batch.pick(targets.advantages), mask, ppo.clip_range, num_tokens,
                clip_range_high=ppo.clip_range_high, dual_clip=ppo.dual_clip, weights=weights,
            )  # fmt: skip
            terms.append(policy.loss)
            figures |= {0: policy.loss * num_tokens, 1: policy.ratio, 2: policy.approx_kl, 3: policy.clipped}
            if ppo.kl_in == "loss":
                ref = batch.pick(rollout.ref_logprobs)
                kl = kl_loss(outputs.logprobs, old, ref, mask, "k3" if ppo.kl_estimator == "k3" else "k2", num_tokens)
                terms.append(targets.loss_kl_coef * kl)
                figures[4] = kl * num_tokens
            if outputs.entropy is not None:
                entropy = torch.where(mask, outputs.entropy, 0.0).sum()
                terms.append(-ppo.entropy_coef * entropy / num_tokens)
                figures[5] = entropy
        if outputs.values is not None:
            critic = targets.critic
            assert critic is not None
            value = value_loss(
                critic.head_unit.normalise(outputs.values), batch.pick(critic.old_values), batch.pick(critic.returns),
                mask, value_clip_range or ppo.value_clip_range, num_tokens,
            )  # fmt: skip
            terms.append(ppo.vf_coef * value.loss)
            figures |= {6: value.loss * num_tokens, 7: value.clipped}
        for number, figure in figures.items():
            sums[number] += figure.detach()
        return torch.stack(terms).sum()

    def _ptx_batches(self) -> list[Microbatch]:
        """This process's demonstrations for the next optimizer step; the stream is one shuffle after the other."""
        if not self.ptx_rows:
            return []
        size, seed = self.config.ptx.batch_size, stream_seed("ptx", self.config.training.seed)
        if self._ptx_order is None:
            self._ptx_order = prompt_batches(len(self.ptx_rows), size, seed, self.num_steps)
        accelerator = self.engine.accelerator
        own = next(self._ptx_order)[accelerator.process_index :: accelerator.num_processes]
        return self._microbatches(self.ptx_rows, own)

    def _ptx_loss(self, batch: Microbatch, num_tokens: Tensor, sums: Tensor) -> Tensor:
        """Mean loss per token of demonstrations, at temperature 1: they were not sampled."""
        outputs = self.engine.forward(batch, "policy", 1.0)
        assert outputs.logprobs is not None
        total = -torch.where(batch.mask, outputs.logprobs, 0.0).sum()
        sums[8] += total.detach()
        return self.config.ptx.coef * total / num_tokens

    def _check_first(self, apart: float, step: int) -> None:
        """Stop where the first minibatch's ratio is not 1 (Huang et al. 2024, "The N+ Implementation Details", section
        5: it is by construction, since nothing was trained in between)."""
        limit = FIRST_DIFFERENCE[self.config.training.bf16]
        if not apart <= limit:
            raise ModelError(
                f"iteration {step + 1}: before any update log-probabilities differ from the rollout's by {apart:.2g} "
                f"nats a token ({limit} are allowed), so ratios would not begin at 1: this model does not compute the "
                "same twice (is there noise in it, or does it depend on what else is in the batch?); try "
                "training.packing=false"
            )
