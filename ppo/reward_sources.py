"""Rewards beside the reward model's: Python functions, services (`ppo.reward_services`), and the sum of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.data.records import Prompt
from alignment.evaluation.reward_functions import OWN, FunctionReward
from alignment.evaluation.reward_values import TokenIds
from ppo.config import RewardsConfig
from ppo.reward_services import HTTPReward


class Source(Protocol):
    """One of several rewards."""

    name: str
    weight: float

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], tokens: Sequence[TokenIds] = ()
    ) -> list[float]:
        """A finite number for each response.

        Args:
            tokens: the same prompts and responses as token ids, for who reads them.

        Raises:
            RewardError: it did not give one.
        """
        ...


def load_sources(
    config: RewardsConfig,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt] = (),
    answered: Sequence[Prompt] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    heads: Collection[str] = (),
) -> list[Source]:
    """The rewards that `rewards.others` names; functions are imported now, so that a mistake stops no training.

    Args:
        prompts, held_out: all that there are. Every batch has the columns of any of them, whichever are in it.
        answered: the prompts of `ppo.value_pretrain`, which bring no columns.
        tokenizer: the policy's, for services that get the token ids too.
        heads: of the reward model (`model.reward_weights`).

    Raises:
        ConfigError: a module or function that cannot be had, or one that takes a column which no prompt, or no held-out
            one, has.
    """
    sets = {"data.train": _columns(prompts)} | ({"the held-out prompts": _columns(held_out)} if held_out else {})
    sets |= {"ppo.value_pretrain": _columns(answered)} if answered else {}
    columns = list(dict.fromkeys(name for names in sets.values() for name in names))
    sources: list[Source] = []
    taken = {"model", "score_std", *heads}  # names of the reward model's own parts
    for number, entry in enumerate(config.others):
        source: Source
        if entry.function is None:
            source = HTTPReward(entry, columns, tokenizer=tokenizer)
        else:
            key = f"rewards.others.{number}.function"
            source = function = FunctionReward(entry.function, key, columns, entry.weight)
            for where, names in sets.items():
                function.check_columns(where, names)
        if source.name in taken:
            source.name = f"{source.name}-{number}"
        taken.add(source.name)
        sources.append(source)
    return sources


def _columns(prompts: Sequence[Prompt]) -> list[str]:
    return [name for name in dict.fromkeys(name for prompt in prompts for name in prompt.columns) if name not in OWN]


def weighted(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the parts by their weights: (B,) each -> (B,) float32."""
    return torch.stack([weights[name] * part.float() for name, part in parts.items()]).sum(0)
