"""Collecting episodes: sample responses, then score them with every model by the path that training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from alignment.distributed.processes import Accelerator, all_reduce_max, all_reduce_sum, on_every_process
from alignment.errors import ModelError
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import (
    BackgroundEngine,
    Engine,
    Sampled,
    Sampling,
    has_ended,
    response_text,
)
from alignment.seeds import stream_seed
from alignment.templates.rendering import Message
from ppo import sampler_gap
from ppo.batch_plan import NO_GRADIENT
from ppo.components import Components
from ppo.config import PPOStageConfig
from ppo.models import Models
from ppo.prompts import Task
from ppo.reward_model import RewardModel
from ppo.reward_sources import Source
from ppo.roles import Pass, Role
from ppo.rows import Row
from ppo.sampler import how_to_sample
from ppo.sequences import Microbatch, lay_out, split_by_tokens, split_further

T = TypeVar("T")


@dataclass(frozen=True)
class Rollout:
    """B episodes of one process, responses right-padded to T; the responses to one prompt are neighbours.

    Args:
        response_mask: (B, T) tokens through EOS.
        old_logprobs, ref_logprobs, entropy, old_values: (B, T) at rollout; values 0 without a critic, else as its head
            gives them; no entropy where nobody logs it.
        scores: (B,) the weighted sum of the parts, before what unfinished responses cost.
        ended: (B,) bool, True if EOS came within the limit.
        parts: (B,) each, the components of the scores, by name: `model` or its heads, functions, `score_std` of an
            ensemble.
        sampled_logprobs: (B, T) of a sampling engine that is not the policy itself, or of the policy before.
        seconds: duration of the sampling.
        lagged: whether the policy sampled it one update ago (`ppo.ahead`).
    """

    tasks: list[Task]
    rows: list[Row]
    texts: list[str]
    response_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor | None
    old_values: Tensor
    scores: Tensor
    ended: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    sampled_logprobs: Tensor | None = None
    seconds: float = 0.0
    lagged: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kl(self) -> Tensor:
        """k1 at each token, in nats: (B, T), 0 where masked."""
        return torch.where(self.response_mask, self.old_logprobs - self.ref_logprobs, 0.0)

    @property
    def sampled_kl(self) -> Tensor:
        """The same of the policy that sampled, over whose tokens this has the KL as its mean: (B, T)."""
        if not self.lagged or self.sampled_logprobs is None:
            return self.kl
        return torch.where(self.response_mask, self.sampled_logprobs - self.ref_logprobs, 0.0)

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each episode, EOS included: (B,)."""
        return self.response_mask.sum(1)


def join(pieces: Sequence[tuple[Rollout, Sequence[int]]]) -> Rollout:
    """One rollout of these rows of several, in this order."""
    width = max(piece.response_mask.shape[1] for piece, _ in pieces)

    def grid(get: Callable[[Rollout], Tensor]) -> Tensor:
        found = [(get(piece)[list(rows)], width - piece.response_mask.shape[1]) for piece, rows in pieces]
        return torch.cat([torch.nn.functional.pad(rows, (0, missing)) for rows, missing in found])

    def line(get: Callable[[Rollout], Tensor]) -> Tensor:
        return torch.cat([get(piece)[list(rows)] for piece, rows in pieces])

    def listed(get: Callable[[Rollout], Sequence[T]]) -> list[T]:
        return [get(piece)[row] for piece, rows in pieces for row in rows]

    first = pieces[0][0]

    def optional(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else grid(lambda piece: getattr(piece, name))

    return Rollout(
        tasks=listed(lambda piece: piece.tasks),
        rows=listed(lambda piece: piece.rows),
        texts=listed(lambda piece: piece.texts),
        response_mask=grid(lambda piece: piece.response_mask),
        old_logprobs=grid(lambda piece: piece.old_logprobs),
        ref_logprobs=grid(lambda piece: piece.ref_logprobs),
        entropy=optional("entropy"),
        old_values=grid(lambda piece: piece.old_values),
        scores=line(lambda piece: piece.scores),
        ended=line(lambda piece: piece.ended),
        parts={name: torch.cat([piece.parts[name][list(rows)] for piece, rows in pieces]) for name in first.parts},
        sampled_logprobs=optional("sampled_logprobs"),
        seconds=sum(piece.seconds for piece, _ in pieces),
    )


class Grids(NamedTuple):
    """Per-token tensors, (B, T); 0 where masked (`Rollout`)."""

    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor


class Collector:
    """Samples and scores. What an episode is depends on the weights, its task and the seed, not on what it is with."""

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        sampler: Engine,
        sources: Sequence[Source],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.models, self.sampler = config, models, sampler
        self.sources, self.accelerator = list(sources), accelerator
        self.sampling = how_to_sample(config, models.tokenizer)
        weights = dict(config.model.reward_weights) if models.reward is not None else {}
        if models.reward is not None and not models.reward.heads:
            weights = {"model": 1.0}
        self.components = Components(weights | {source.name: source.weight for source in sources}, config.rewards)

    @torch.no_grad()
    def collect(
        self,
        tasks: Sequence[Task],
        *seed: int,
        given: Sampled | None = None,
        with_entropy: bool = False,
    ) -> Rollout:
        """One response to each of this process's tasks, scored.

        Args:
            seed: of the sampling: the run's seed and the iteration.
            given: responses that are there already, in place of sampling; with log-probabilities where the policy of
                the update before has sampled them.
            with_entropy: takes a second pass over the vocabulary.
        """
        tasks = list(tasks)
        models, device = self.models, self.accelerator.device
        with models.keeping_states():
            # Under ZeRO-3 this engine samples from a whole policy, from which all is read then that has its weights.
            whole = isinstance(self.sampler, TransformersEngine) and given is None
            with self.accelerator.autocast(), models.resident(models.on_policy(), device, whole=whole):
                started = time.monotonic()
                sampled = given or self._sample(tasks, seed)
                seconds = time.monotonic() - started if given is None else given.seconds
                rows = [Row(task.ids, response) for task, response in zip(tasks, sampled.responses, strict=True)]
                mask = self._mask(rows)
                grids = Grids(*(torch.zeros(mask.shape, device=device) for _ in Grids._fields))
                passes = self._passes(rows, grids, with_entropy)
                for role, fill in passes:
                    if role.model is models.policy.model:
                        fill()
                sampled_logprobs = self._sampled_logprobs(sampled, mask)
                if sampled_logprobs is not None and given is None:
                    self._check_gap(sampled_logprobs, rows, grids.logprobs, mask)
            for role, fill in passes:
                if role.model is not models.policy.model:
                    with self.accelerator.autocast(), models.resident(role.modules(), device):
                        fill()
            if sampled_logprobs is not None and given is None:
                self._check_for_stale_weights(grids, sampled_logprobs, mask)
            ended = torch.tensor(
                [has_ended(row.response, self.sampling, models.tokenizer) for row in rows], device=device
            )
            texts = [response_text(row.response, self.sampling, models.tokenizer) for row in rows]
            scores, parts = self._scores(tasks, rows, texts)
        return Rollout(
            tasks, rows, texts, mask, grids.logprobs, grids.ref_logprobs,
            grids.entropy if with_entropy else None, grids.values,
            scores=scores, ended=ended, parts=parts, sampled_logprobs=sampled_logprobs, seconds=seconds,
            lagged=given is not None and given.logprobs is not None,
        )  # fmt: skip

    @torch.no_grad()
    def begin(self, tasks: Sequence[Task], *seed: int) -> Callable[[], Sampled]:
        """Begin to sample a response to each of this process's tasks by the weights as they are; the call that is
        returned waits for them, and has their log-probabilities by these weights. Every process must call both."""
        tasks, models, sampler = list(tasks), self.models, self.sampler
        whole = isinstance(sampler, TransformersEngine)
        with self.accelerator.autocast(), models.resident(models.on_policy(), self.accelerator.device, whole=whole):
            if isinstance(sampler, BackgroundEngine):
                with models.policy.active():
                    finish = on_every_process(partial(sampler.begin, *self._requests(tasks, seed)))
                return lambda: on_every_process(finish)
            started = time.monotonic()
            sampled = self._sample(tasks, seed)
            seconds = time.monotonic() - started
            rows = [Row(task.ids, response) for task, response in zip(tasks, sampled.responses, strict=True)]
            # By the path that scores: where the weights stay, the importance weights are 1 to the last bit.
            grid = self._policy_logprobs(rows, self._mask(rows)).tolist()
        logprobs = [line[: len(row.response)] for line, row in zip(grid, rows, strict=True)]
        return lambda: Sampled(sampled.responses, logprobs, seconds)

    def _sample(self, tasks: Sequence[Task], seed: Sequence[int]) -> Sampled:
        with self.models.policy.active():
            return on_every_process(partial(self.sampler.generate, *self._requests(tasks, seed)))

    def _requests(self, tasks: Sequence[Task], seed: Sequence[int]) -> tuple[list[list[int]], list[int], Sampling]:
        """What an engine is asked: prompts, the seed of each response, and how to sample."""
        seeds = [stream_seed("sample", *seed, task.prompt_index, task.repeat) for task in tasks]
        return [task.ids for task in tasks], seeds, self.sampling

    def _mask(self, rows: Sequence[Row]) -> Tensor:
        """Where the responses have tokens: (B, T) bool."""
        lengths = torch.tensor([len(row.response) for row in rows], device=self.accelerator.device)
        return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]

    def _sampled_logprobs(self, sampled: Sampled, mask: Tensor) -> Tensor | None:
        """The engine's log-probabilities, (B, T); None if the policy itself samples."""
        if sampled.logprobs is None:
            return None
        grid = torch.zeros(mask.shape, device=mask.device)
        for number, line in enumerate(sampled.logprobs):
            grid[number, : len(line)] = torch.tensor(line)
        return grid

    def _check_gap(self, sampled: Tensor, rows: Sequence[Row], logprobs: Tensor, mask: Tensor) -> None:
        def rounding() -> float:
            return sampler_gap.measure(logprobs, self._in_the_other_type(rows, mask), mask).mean

        sampler_gap.check(sampler_gap.measure(logprobs, sampled, mask), self.config, rounding)

    def _check_for_stale_weights(self, grids: Grids, sampled: Tensor, mask: Tensor) -> None:
        gap = sampler_gap.measure(grids.logprobs, sampled, mask)
        rounded = bool(self.config.training.bf16)
        lag = sampler_gap.lack(grids.logprobs, sampled, grids.ref_logprobs, mask, rounded=rounded)
        sampler_gap.check_lack(lag, gap, self.config)

    def _in_the_other_type(self, rows: Sequence[Row], mask: Tensor) -> Tensor:
        """The policy's log-probabilities, (B, T), in the coarse type where it computes in float32, and the other way
        round."""
        coarse = getattr(torch, self.config.rounded_to)
        with torch.autocast(mask.device.type, coarse, enabled=not self.config.training.bf16):
            return self._policy_logprobs(rows, mask)

    def _policy_logprobs(self, rows: Sequence[Row], mask: Tensor) -> Tensor:
        """The policy's log-probabilities now: (B, T), 0 beyond the responses."""
        grid = torch.zeros(mask.shape, device=mask.device)
        for batch in self._batches(rows):
            logprobs = self.models.trained(batch, "policy", self.config.rollout.temperature).logprobs
            assert logprobs is not None
            batch.put(grid, logprobs)
        return grid

    @torch.no_grad()
    def values(self, rows: Sequence[Row]) -> Tensor:
        """The critic's values before each response token now: (B, T), 0 beyond the responses."""
        trained = self.models.trained
        assert self.models.critic is not None
        width, device = max(len(row.response) for row in rows), self.accelerator.device
        grid = torch.zeros(len(rows), width, device=device)
        with self.accelerator.autocast(), self.models.resident(self.models.critic.modules(), device):
            for batch in self._batches(rows):
                values = trained(batch, "value", self.config.rollout.temperature).values
                assert values is not None
                batch.put(grid, values)
        return grid

    def _batches(self, rows: Sequence[Row]) -> list[Microbatch]:
        """Rows of like length together; where each pass is a collective, as many batches on each process."""
        max_tokens = NO_GRADIENT * self.config.training.microbatch_tokens
        packed, pad = self.models.packed, self.models.tokenizer.pad_token_id
        parts = split_by_tokens(rows, range(len(rows)), max_tokens, packed)
        count = all_reduce_max(len(parts)) if self.models.sharded else len(parts)
        parts = split_further(parts, count)
        batches = [lay_out([rows[n] for n in part], part, packed, pad, self.accelerator.device) for part in parts]
        return batches + batches[:1] * (count - len(batches))

    def _passes(self, rows: Sequence[Row], grids: Grids, with_entropy: bool) -> list[tuple[Role, Callable[[], None]]]:
        """Calls that fill the grids, each with the role whose weights it takes.

        The log-probabilities are computed anew by the path that trains, not taken from sampling: the two differ in the
        last digits (more so in bfloat16), and the first ratio would not be 1.
        """
        models, temperature = self.models, self.config.rollout.temperature
        trained, critic = models.trained, models.critic
        batches = self._batches(rows)

        def run(what: Pass) -> None:
            for batch in batches:
                outputs = trained(batch, what, temperature, with_entropy)
                for grid, column in zip((grids.logprobs, grids.entropy, grids.values), outputs, strict=True):
                    batch.put(grid, column)

        def compare() -> None:
            for batch in batches:
                outputs = models.run(models.reference, models.reference.logprobs, batch, temperature)
                batch.put(grids.ref_logprobs, outputs.logprobs)

        passes = [(models.policy, partial(run, "both" if trained.on_trunk else "policy"))]
        if critic is not None and not trained.on_trunk:
            passes.append((critic, partial(run, "value")))
        return [*passes, (models.reference, compare)]

    def _scores(
        self, tasks: Sequence[Task], rows: Sequence[Row], texts: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sums, and their terms."""
        device, parts = self.accelerator.device, dict[str, Tensor]()
        std, reward = None, self.models.reward
        if reward is not None and reward.heads:
            parts |= zip(reward.heads, self._member_scores(reward, tasks, rows, texts), strict=True)
        elif reward is not None:
            parts["model"], std = self.score_with(reward, tasks, rows, texts)
        prompts = [task.prompt for task in tasks]
        for source in self.sources:
            source_scores = on_every_process(partial(source.score, prompts, texts, rows))
            parts[source.name] = torch.tensor(source_scores, device=device)
        scores = self.components.total(parts)
        if not torch.isfinite(all_reduce_sum(torch.stack(list(parts.values())).double().sum())):  # everywhere alike
            raise ModelError("a reward is not finite; is the reward model broken? No weight was changed by it")
        return scores, parts | ({} if std is None else {"score_std": std})

    def score_with(
        self, model: RewardModel, tasks: Sequence[Task], rows: Sequence[Row], texts: Sequence[str]
    ) -> tuple[Tensor, Tensor | None]:
        """Scores by a reward model, and of an ensemble the members' disagreement: (B,) each."""
        return model.combined(self._member_scores(model, tasks, rows, texts))

    def _member_scores(
        self, model: RewardModel, tasks: Sequence[Task], rows: Sequence[Row], texts: Sequence[str]
    ) -> Tensor:
        """Scores by each member of a reward model, or each head: (n, B)."""
        device = self.accelerator.device
        conversations = [
            [*task.prompt.messages, Message(role="assistant", content=text)]
            for task, text in zip(tasks, texts, strict=True)
        ]
        with self.models.resident(model.modules(), device), self.accelerator.autocast():
            return on_every_process(lambda: model.member_scores(rows, conversations, device))
