"""What an update reads of its episodes, gathered from all processes and shared out anew for each optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from itertools import groupby

import torch
from torch import Tensor

from alignment.distributed.processes import all_reduce_max, gather_lists, gather_rows, world_size
from ppo.algorithm import ScoreStats
from ppo.rollout import Rollout
from ppo.rows import Row
from ppo.targets import Targets


@dataclass(frozen=True)
class Episodes:
    """What an update reads of B episodes; tensors are (B, T).

    Args:
        old_values, returns: the critic's (`CriticTargets`); None without one.
        sampled_logprobs: None unless an engine of its own sampled.
    """

    rows: list[Row]
    response_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    sampled_logprobs: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None
    head_stats: ScoreStats
    loss_kl_coef: float

    @classmethod
    def of(cls, rollout: Rollout, targets: Targets) -> Episodes:
        """Those of this process."""
        critic = targets.critic
        return cls(
            rollout.rows, rollout.response_mask, rollout.old_logprobs, rollout.ref_logprobs, targets.advantages,
            rollout.sampled_logprobs,
            old_values=None if critic is None else critic.old_values,
            returns=None if critic is None else critic.returns,
            head_stats=ScoreStats() if critic is None else critic.head_stats,
            loss_kl_coef=targets.loss_kl_coef,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def of_all_processes(self) -> Episodes:
        """Those of all processes, in their order, on each; as many come from each."""
        if world_size() == 1:
            return self
        width = all_reduce_max(self.response_mask.shape[1])
        grids: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                missing = width - value.shape[1]
                grids[name] = gather_rows(torch.nn.functional.pad(value, (0, missing)))
        rows = [row for share in gather_lists(self.rows) for row in share]
        return replace(self, rows=rows, **grids)  # type: ignore[arg-type]


def shares_by_tokens(rows: Sequence[Row], row_indices: Sequence[int], count: int) -> list[list[int]]:
    """Row indices in `count` parts, one for each process, of as equal numbers of tokens as a greedy choice finds.

    The rows of one prompt stay together, since it is computed once for all of them, unless fewer prompts than parts are
    there. Every part has a row if there are as many.
    """
    if count == 1:
        return [list(row_indices)]
    by_prompt = sorted(row_indices, key=lambda each: (rows[each].prompt, each))
    groups = [list(same) for _, same in groupby(by_prompt, key=lambda each: rows[each].prompt)]

    def size(group: Sequence[int]) -> int:
        return len(rows[group[0]].prompt) + sum(len(rows[each].response) for each in group)

    while len(groups) < count:
        largest = max(groups, key=lambda group: (len(group) > 1, size(group)))
        if len(largest) == 1:
            break
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    heapify(loads)
    for group in sorted(groups, key=lambda group: (-size(group), group)):  # longest first, to the lightest share
        tokens, number = loads[0]
        shares[number] += group
        heapreplace(loads, (tokens + size(group), number))
    return shares
