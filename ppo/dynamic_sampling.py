"""Dynamic sampling: prompts whose responses all have one score are replaced (Yu et al. 2025, DAPO, section 3.2)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from alignment.distributed.processes import all_reduce_max, all_reduce_sum
from alignment.seeds import stream_seed
from ppo.algorithm import without_spread
from ppo.config import PPOStageConfig
from ppo.prompts import EncodedPrompt, make_tasks, prompt_batches, share_of_process
from ppo.rollout import Collector, Rollout, join
from ppo.targets import TargetBuilder


class DynamicSampling:
    """Replaces prompts of a rollout, as far as `rollout.dynamic_sampling` allows."""

    def __init__(
        self,
        config: PPOStageConfig,
        collector: Collector,
        target_builder: TargetBuilder,
        prompts: Sequence[EncodedPrompt],
    ) -> None:
        self.config, self.collector, self.target_builder, self.prompts = config, collector, target_builder, prompts

    def replace(self, rollout: Rollout, asked: set[int], step: int) -> tuple[Rollout, dict[str, float]]:
        """The rollout, with prompts whose responses all have one score replaced by others than were `asked` (indices of
        prompts); and what fraction of the prompts was without spread, by its name in the journal.

        Every process takes part in as many rounds and keeps as many prompts, since the passes are collectives.
        """
        rounds, group = self.config.rollout.dynamic_sampling, self.config.rollout.num_generations
        accelerator, seed = self.collector.accelerator, self.config.training.seed
        wanted, sampled = len(rollout) // group, [rollout]
        good = [(0, index) for index in self._with_spread(rollout)]
        counts = torch.tensor([wanted - len(good), wanted], dtype=torch.float64)
        for attempt in range(1, rounds + 1):
            missing = all_reduce_max(max(0, wanted - len(good)))
            if not missing:
                break
            count = missing * accelerator.num_processes
            stream = prompt_batches(len(self.prompts), 1, stream_seed("replacements", seed, step, attempt))
            seen = asked if len(asked) + count <= len(self.prompts) else set[int]()
            fresh = (index for index in itertools.chain.from_iterable(stream) if index not in seen)
            prompt_indices = list(itertools.islice(fresh, count))
            asked |= set(prompt_indices)
            tasks = share_of_process(make_tasks(self.prompts, prompt_indices, group), accelerator)
            more = self.collector.collect(tasks, seed, step, attempt, with_entropy=True)
            kept = self._with_spread(more)
            counts += torch.tensor([missing - len(kept), missing], dtype=torch.float64)
            good += [(len(sampled), index) for index in kept]
            sampled.append(more)
        alike, total = all_reduce_sum(counts.to(accelerator.device)).tolist()
        metrics = {"rollout/without_spread": alike / total}
        if not rounds:
            return rollout, metrics
        others = [(0, index) for index in range(wanted) if (0, index) not in good]
        chosen = (good + others)[:wanted]
        pieces = [(sampled[which], range(index * group, (index + 1) * group)) for which, index in chosen]
        return join(pieces), metrics

    def _with_spread(self, rollout: Rollout) -> list[int]:
        """The prompts of a rollout whose responses differ in score."""
        alike = without_spread(self.target_builder.constrained_scores(rollout), self.config.rollout.num_generations)
        return [index for index, same in enumerate(alike.tolist()) if not same]
