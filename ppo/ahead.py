"""Responses that are sampled one iteration ahead (`rollout.lag=1`), so that a server samples while an update runs.

With theta_k the weights before update k: iteration k begins to sample the responses of iteration k + 1 by theta_k, then
scores its own responses and takes its update, and last waits for what is sampled. So the responses of iteration k + 1
are from theta_k, one update old, and those of iterations 0 and 1 both from the start (Noukhovitch et al. 2024,
"Asynchronous RLHF": online, and off-policy by one step). Weights go to the server between two iterations
alone, when no request is in flight.

Which weights compute what an update learns from:

| | |
|---|---|
| responses, and the sampler's log-probabilities | theta_k, before update k |
| old log-probabilities, values, reference, rewards | theta_(k+1) and its critic, right before update k + 1 |

The ratio of PPO is to the policy right before the update (the proximal policy), so it begins at 1 and is clipped around
1; each token's policy loss is weighted by min(proximal / sampler, 2). That is the decoupled objective of Hilton et al.
2022, "Batch size-invariance for policy optimization", truncated, which AReaL (Fu et al. 2025) has for older responses.
The KL that is subtracted from the reward is the proximal policy's, since its gradient is to be that of
the policy which is trained. Returns are sums over the sampled tokens, and carry no weights: they are those of the older
policy from each token on, as its states are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from alignment.distributed import heartbeat
from alignment.distributed.processes import gather_lists
from alignment.generation.sampling import Sampled
from alignment.terminal import say
from ppo.config import PPOStageConfig
from ppo.prompts import EncodedPrompt, Task, make_tasks, prompt_batches, share_of_process
from ppo.rollout import Collector


class _Batch(NamedTuple):
    """This process's responses of one iteration.

    Args:
        asked: what they answer (`Ahead._digest`).
    """

    step: int
    asked: str
    sampled: Sampled


class Ahead:
    """Holds the responses of the next iteration."""

    def __init__(self, config: PPOStageConfig, collector: Collector, prompts: Sequence[EncodedPrompt]) -> None:
        self.config, self.collector, self.prompts = config, collector, prompts
        self._ready: _Batch | None = None
        self._waiting: Callable[[], _Batch] | None = None

    def begin(self, step: int) -> None:
        """Begin to sample the responses of an iteration by the weights as they are; every process must call this."""
        assert self._waiting is None
        heartbeat.enter(f"the sampling of iteration {step + 1}")
        num_prompts = self.config.rollout.batch_size // self.config.rollout.num_generations
        tasks = self._tasks(next(prompt_batches(len(self.prompts), num_prompts, self.config.training.seed, step)))
        share, asked = share_of_process(tasks, self.collector.accelerator), self._digest(tasks)
        finish = self.collector.begin(share, self.config.training.seed, step)
        self._waiting = lambda: _Batch(step, asked, finish())

    def finish(self) -> None:
        """Wait for the responses, if any are being sampled: from here on the weights may go to the sampler."""
        if self._waiting is not None:
            heartbeat.enter("the responses of the next iteration")
            self._ready, self._waiting = self._waiting(), None

    def take(self, prompt_indices: Sequence[int], step: int) -> Sampled | None:
        """This process's responses of an iteration; None if none were sampled ahead for it."""
        batch, self._ready = self._ready, None
        if batch is None:
            return None
        if (batch.step, batch.asked) != (step, self._digest(self._tasks(prompt_indices))):
            if self.collector.accelerator.is_main_process:
                say(
                    f"warning: iteration {step + 1}: prompts or settings of sampling have changed since its responses "
                    "were sampled; it samples anew, by the policy of now"
                )
            return None
        return batch.sampled

    def _tasks(self, prompt_indices: Sequence[int]) -> list[Task]:
        return make_tasks(self.prompts, prompt_indices, self.config.rollout.num_generations)

    def _digest(self, tasks: Sequence[Task]) -> str:
        """What is asked of all processes, and how: a resumed run may have been given other prompts or settings."""
        asked = [(task.ids, task.repeat) for task in tasks], replace(self.collector.sampling, batch_size=0)
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any] | None:
        """The responses of all processes, which any number of processes can share out anew; every process must call
        this."""
        assert self._waiting is None
        if self._ready is None:
            return None
        step, asked, (responses, logprobs, seconds) = self._ready
        assert logprobs is not None
        shares = gather_lists(list(zip(responses, logprobs, strict=True)))
        rows = [row for share in shares for row in share]
        return {
            "step": step,
            "asked": asked,
            "seconds": seconds,
            "lengths": torch.tensor([len(ids) for ids, _ in rows]),
            "ids": torch.tensor([token for ids, _ in rows for token in ids]),
            "logprobs": torch.tensor([value for _, line in rows for value in line], dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        self._ready = None
        if state is None or not self.config.rollout.lag:
            return
        lengths = state["lengths"].tolist()
        columns = zip(state["ids"].split(lengths), state["logprobs"].split(lengths), strict=True)
        rows = share_of_process([(ids.tolist(), line.tolist()) for ids, line in columns], self.collector.accelerator)
        sampled = Sampled([ids for ids, _ in rows], [line for _, line in rows], state["seconds"])
        self._ready = _Batch(state["step"], state["asked"], sampled)
