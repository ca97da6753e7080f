"""From a rollout to optimizer steps: minibatches, microbatches, the losses of one step, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from alignment.distributed import heartbeat
from alignment.distributed.engine import Diverged, TrainingEngine
from alignment.distributed.processes import all_reduce_max, all_reduce_sum
from alignment.errors import ModelError
from alignment.seeds import stream_seed
from alignment.terminal import say
from alignment.training.halving import MAX_HALVINGS
from ppo.algorithm import kl_loss, policy_loss, truncated_importance_weights, value_loss
from ppo.config import PPOStageConfig
from ppo.episodes import Episodes, shares_by_tokens
from ppo.metrics import MetricSums
from ppo.models import Models
from ppo.prompts import prompt_batches
from ppo.roles import Outputs, Pass
from ppo.rollout import Rollout
from ppo.rows import Row
from ppo.sequences import Microbatch, lay_out, split_by_tokens, split_further
from ppo.targets import CriticTargets, Targets

ROLES = ("policy", "value")
"""The role of each parameter group of the optimizer, in order."""
POLICY_GROUP = 0
"""The optimizer's parameter group of the policy."""
PTX_ROWS = 8
"""Demonstrations of one optimizer step over all processes, rounded up to as many on each."""
MAX_DIFFERENCE, MAX_DIFFERENCE_BF16 = 1e-3, 0.05
"""Largest mean difference, in nats, between log-probabilities that are computed twice. float32 sums in another order
differ by 1e-6; a wrong mask, position or dropout makes tenths and more. The limit of bfloat16 is a judgement, not
measured on a GPU. It is on the mean, because rounding can move single rare tokens far."""


def minibatches(total: int, count: int, generator: torch.Generator) -> Iterator[list[int]]:
    """The rows of each of `count` minibatches of `total` episodes, over all processes.

    Each block of `count` consecutive episodes contributes one to each minibatch, so that each has answers to every
    prompt that has as many.
    """
    order = torch.rand(total // count, count, generator=generator).argsort(1)
    episodes = torch.arange(total).view(-1, count).gather(1, order)
    for column in range(count):
        yield episodes[:, column].tolist()


class Updater:
    """Takes optimizer steps on rollouts.

    Args:
        ptx_rows: demonstrations that are mixed in.
        after_step: called after each optimizer step.
        note: journals an event.
    """

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        engine: TrainingEngine,
        ptx_rows: Sequence[Row] = (),
        after_step: Callable[[], None] = lambda: None,
        note: Callable[..., None] = lambda kind, **fields: None,
    ) -> None:
        self.after_step, self._note = after_step, note
        self.config, self.models, self.engine = config, models, engine
        self.ptx_rows = list(ptx_rows)
        self.device = engine.accelerator.device
        self._ptx_order: Iterator[list[int]] | None = None
        self.num_steps = 0
        """Optimizer steps so far."""
        self.halvings: list[int] = []
        """Sizes of a microbatch, in tokens, after each time that memory ran out; checkpoints keep them."""

    @property
    def microbatch_tokens(self) -> int:
        return min([self.config.training.microbatch_tokens, *self.halvings])

    def update(self, step: int, rollout: Rollout, targets: Targets) -> dict[str, float]:
        """All passes over a rollout; means per token over the steps that were taken, on all processes.

        Raises:
            ModelError: the first log-probabilities are not those of the rollout; a loss or gradient is not finite. The
                same on every process, before any weight is changed by it.
        """
        ppo, accelerator = self.config.ppo, self.engine.accelerator
        if step == 0:  # fitting the critic may have stepped the policy with gradients of 0
            self.engine.restart(POLICY_GROUP)
        generator = torch.Generator().manual_seed(stream_seed("minibatches", self.config.training.seed, step))
        episodes = Episodes.of(rollout, targets).of_all_processes()
        parts = [
            shares_by_tokens(episodes.rows, rows, accelerator.num_processes)[accelerator.process_index]
            for _ in range(ppo.num_epochs)
            for rows in minibatches(len(episodes), ppo.num_minibatches, generator)
        ]
        sums = MetricSums()
        norms: list[dict[str, float]] = []
        first_ratio = math.nan
        with self.models.keeping_states():
            for rows in parts:
                step_sums, step_norms = self._optimizer_step(step, episodes, rows, is_first=not norms)
                if not norms:
                    first_ratio = step_sums.means()["policy/ratio"]
                sums.merge(step_sums)
                norms.append(step_norms)
        stats = sums.means()
        stats["policy/first_ratio"] = first_ratio
        stats["train/epochs"] = len(norms) / ppo.num_minibatches
        for role in norms[0]:
            stats[f"{role}/grad_norm"] = sum(each[role] for each in norms) / len(norms)
        return stats | {"train/grad_norm": sum(math.hypot(*each.values()) for each in norms) / len(norms)}

    def fit_critic(self, rollout: Rollout, critic: CriticTargets, rows: list[int]) -> None:
        """One optimizer step of the critic alone; the policy's learning rate must be 0. Values are not clipped."""
        targets = Targets(torch.zeros_like(critic.returns), 0.0, critic)
        self._optimizer_step(-1, Episodes.of(rollout, targets), rows, is_first=False, only_critic=True)

    def _optimizer_step(
        self,
        step: int,
        episodes: Episodes,
        rows: list[int],
        is_first: bool,
        only_critic: bool = False,
    ) -> tuple[MetricSums, dict[str, float]]:
        """One minibatch: forward and backward passes over microbatches, then one step.

        Losses are divided by the kept tokens of the whole minibatch on all processes, so neither the split into
        microbatches nor the number of processes changes the gradient.

        Returns:
            The metrics' sums over all processes; the norm of the gradient of each role.
        """
        heartbeat.enter(f"optimizer step {self.num_steps + 1}, iteration {step + 1}")
        ptx_rows = [] if only_critic else self._next_ptx_rows()
        while (done := self._gradients(episodes, rows, ptx_rows, is_first, only_critic)) is None:
            self._halve(step, episodes.rows, rows)
        sums, difference = done
        if is_first:
            self._check_first(difference, step)
        try:
            norms = dict(zip(ROLES, self.engine.step(), strict=False))
        except Diverged as error:
            raise ModelError(
                f"training diverged at iteration {step + 1}: {error}; no weight was changed by it; "
                "lower training.learning_rate"
            ) from error
        self.num_steps += 1
        self.after_step()
        return sums.reduced(), norms

    def _gradients(
        self,
        episodes: Episodes,
        rows: list[int],
        ptx_rows: list[int],
        is_first: bool,
        only_critic: bool,
    ) -> tuple[MetricSums, float] | None:
        """The gradients of a minibatch, accumulated over its microbatches; None if memory ran out on any process.

        Returns:
            The metrics' sums; of the first minibatch, the mean difference of log-probabilities from the rollout's.
        """
        value_clip_range = math.inf if only_critic else self.config.ppo.value_clip_range
        batches = self._microbatches(episodes.rows, rows)
        ptx = self._microbatches(self.ptx_rows, ptx_rows) if self.ptx_rows and not only_critic else []
        kept = episodes.response_mask[rows].sum().double()
        kept_ptx = torch.full_like(kept, sum(len(batch.targets) * batch.weight for batch in ptx))
        num_tokens, num_ptx = all_reduce_sum(torch.stack([kept, kept_ptx]))
        passes: tuple[Pass, ...] = ("value",) if only_critic else self.models.trained.passes
        # All of the policy's first: their logits are gone before the critic has gradients.
        work: list[tuple[Microbatch, Pass | None]] = []
        work += [(batch, what) for what in passes if what != "value" for batch in batches]
        work += [(batch, None) for batch in ptx]
        work += [(batch, "value") for batch in batches if "value" in passes]
        sums = MetricSums()
        difference_sum = torch.zeros((), dtype=torch.float64, device=self.device)

        def compute() -> None:
            for number, (batch, what) in enumerate(work):
                if what is None:
                    loss = self._ptx_loss(batch, num_ptx, sums)
                else:
                    outputs = self.engine.forward(batch, what, self.config.rollout.temperature)
                    loss = self._loss(outputs, batch, episodes, num_tokens, sums, value_clip_range)
                    if is_first and outputs.logprobs is not None:
                        difference = outputs.logprobs.detach() - batch.pick(episodes.old_logprobs)
                        difference_sum.add_(torch.where(batch.mask, difference.abs(), 0.0).sum())
                self.engine.backward(loss, last=number == len(work) - 1)

        if all_reduce_max(int(not self._fits(compute))):
            return None
        return sums, float(all_reduce_sum(difference_sum) / num_tokens) if is_first else 0.0

    def _fits(self, compute: Callable[[], None]) -> bool:
        """Whether memory suffices for some passes. Where they have no collective, the other processes go on.

        Raises:
            ModelError: it does not, and parts of the gradient have been reduced, which cannot be discarded.
        """
        try:
            compute()
            return True
        except torch.OutOfMemoryError as error:
            if self.engine.has_collective_passes:
                raise ModelError(self._advice("under DeepSpeed or FSDP a step cannot be begun again")) from error
        self.engine.discard()  # here the error is gone, and with it the activations that its traceback holds
        return False

    def _halve(self, step: int, all_rows: Sequence[Row], rows: Sequence[int]) -> None:
        """Halve the microbatches, on every process.

        Raises:
            ModelError: it was done three times, or each has a single row.
        """
        self.engine.discard()
        parts = split_by_tokens(all_rows, rows, self.microbatch_tokens, self.models.packed)
        largest = all_reduce_max(max(map(len, parts)))
        tokens = all_reduce_max(max(sum(all_rows[row].num_tokens for row in part) for part in parts))
        if len(self.halvings) >= MAX_HALVINGS or largest == 1:
            raise ModelError(self._advice(f"with microbatches of at most {largest} rows and {tokens} tokens"))
        self.halvings.append(max(1, min(tokens, self.microbatch_tokens) // 2))
        self._note("microbatch_halved", step=step + 1, microbatch_tokens=self.microbatch_tokens)
        if self.engine.accelerator.is_main_process:
            say(
                f"warning: iteration {step + 1}: out of memory; from here on a microbatch has at most "
                f"{self.microbatch_tokens} tokens, with the same gradient"
            )

    def _advice(self, why: str) -> str:
        return (
            f"out of memory in optimizer step {self.num_steps + 1}, {why}; set "
            f"training.microbatch_tokens={max(1, self.microbatch_tokens // 2)} (it is "
            f"{self.config.training.microbatch_tokens}), or a smaller rollout.max_new_tokens, and start again with "
            "--resume auto --allow-changes"
        )

    def _microbatches(self, all_rows: Sequence[Row], row_indices: Sequence[int]) -> list[Microbatch]:
        """Rows of like length together; as many batches on each process, since under ZeRO each is a collective. A
        process with fewer cuts its batches in two; one with too few rows for that adds passes that teach nothing."""
        packed, pad = self.models.packed, self.models.tokenizer.pad_token_id
        parts = split_by_tokens(all_rows, row_indices, self.microbatch_tokens, packed)
        count = all_reduce_max(len(parts))
        parts = split_further(parts, count)
        batches = [lay_out([all_rows[n] for n in part], part, packed, pad, self.device) for part in parts]
        return batches + [batches[0].as_filler()] * (count - len(batches))

    def _loss(
        self,
        outputs: Outputs,
        batch: Microbatch,
        episodes: Episodes,
        num_tokens: Tensor,
        sums: MetricSums,
        value_clip_range: float,
    ) -> Tensor:
        """The terms of the loss that a pass gives; its metrics are added to `sums`."""
        ppo, mask = self.config.ppo, batch.mask
        terms: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        if outputs.logprobs is not None:
            old = batch.pick(episodes.old_logprobs)
            weights = None
            if episodes.sampled_logprobs is not None:
                sampled = batch.pick(episodes.sampled_logprobs)
                weights = truncated_importance_weights(old, sampled, mask)
            policy = policy_loss(
                outputs.logprobs, old, batch.pick(episodes.advantages), mask, ppo.clip_sides, num_tokens,
                weights=weights,
            )  # fmt: skip
            terms.append(policy.loss)
            totals |= {"policy/loss": policy.loss * num_tokens, "policy/ratio": policy.ratio_sum}
            totals |= {"policy/approx_kl": policy.kl_sum, "policy/clip_fraction": policy.num_clipped}
            if ppo.kl_in == "loss":
                ref = batch.pick(episodes.ref_logprobs)
                kl = kl_loss(outputs.logprobs, old, ref, mask, num_tokens, weights=weights)
                terms.append(episodes.loss_kl_coef * kl)
                totals["policy/kl_loss"] = kl * num_tokens
        if outputs.values is not None:
            assert episodes.old_values is not None and episodes.returns is not None
            value = value_loss(
                episodes.head_stats.normalise(outputs.values), batch.pick(episodes.old_values),
                batch.pick(episodes.returns), mask, value_clip_range, num_tokens,
            )  # fmt: skip
            terms.append(ppo.vf_coef * value.loss)
            totals |= {"value/loss": value.loss * num_tokens, "value/clip_fraction": value.num_clipped}
        for name, total in totals.items():
            sums.add(name, total, mask.sum())
        return torch.stack(terms).sum()

    def _next_ptx_rows(self) -> list[int]:
        """This process's demonstrations for the next optimizer step; the stream is one shuffle after the other."""
        if not self.ptx_rows:
            return []
        accelerator = self.engine.accelerator
        if self._ptx_order is None:
            size = -(-PTX_ROWS // accelerator.num_processes) * accelerator.num_processes
            seed = stream_seed("ptx", self.config.training.seed)
            self._ptx_order = prompt_batches(len(self.ptx_rows), size, seed, self.num_steps)
        return next(self._ptx_order)[accelerator.process_index :: accelerator.num_processes]

    def _ptx_loss(self, batch: Microbatch, num_tokens: Tensor, sums: MetricSums) -> Tensor:
        """Mean loss per token of demonstrations, at temperature 1: they were not sampled."""
        outputs = self.engine.forward(batch, "policy", 1.0)
        assert outputs.logprobs is not None
        total = -torch.where(batch.mask, outputs.logprobs, 0.0).sum()
        sums.add("ptx/loss", total, batch.mask.sum())
        return self.config.ptx.coef * total / num_tokens

    def _check_first(self, difference: float, step: int) -> None:
        """Stop where the first minibatch's ratio is not 1 (Huang et al. 2024, "The N+ Implementation Details", section
        5: it is by construction, since nothing was trained in between)."""
        limit = MAX_DIFFERENCE_BF16 if self.config.training.bf16 else MAX_DIFFERENCE
        if not difference <= limit:
            raise ModelError(
                f"iteration {step + 1}: before any update log-probabilities differ from the rollout's by "
                f"{difference:.2g} nats a token ({limit} are allowed), so ratios would not begin at 1: this model does "
                "not compute the same twice (is there noise in it, or does it depend on the rest of the batch?); try "
                "training.packing=false"
            )
