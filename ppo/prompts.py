"""Prompts in the policy's tokens, the order in which they come, and each process's share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.sections import TooLong
from alignment.data.records import Prompt
from alignment.data.trimming import trim_prompt
from alignment.distributed.processes import Accelerator, say
from alignment.errors import ConfigError
from alignment.seeds import stream_seed
from alignment.templates.rendering import encode_prompt
from ppo.config import PPOStageConfig

EncodedPrompt = tuple[Prompt, list[int]]
"""A prompt with its tokens."""


class Task(NamedTuple):
    """A prompt to respond to.

    Args:
        ids: the prompt in the policy's tokens.
        prompt_index: of the prompt in its set.
        repeat: which of this iteration's responses to it; with the index it decides what is sampled.
    """

    prompt: Prompt
    ids: list[int]
    prompt_index: int
    repeat: int


def prompt_limit(config: PPOStageConfig) -> int:
    """The tokens that a prompt may have."""
    return config.data.max_length - config.rollout.max_new_tokens


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    too_long: TooLong,
    look: Callable[[Prompt, list[int]], None] = lambda prompt, ids: None,
) -> tuple[list[EncodedPrompt], int]:
    """Prompts with their tokens, and how many were longer than `limit`: trimmed (`data/trimming.py`), or left out.

    Args:
        look: is shown each prompt and all of its tokens.

    Raises:
        ConfigError: `too_long` is `raise` and one is too long; or none is left.
    """
    encoded: list[EncodedPrompt] = []
    count = 0
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt.messages)
        if not ids:
            raise ConfigError(f"{prompt.place or 'a prompt'}: is empty in this template; take the row out")
        look(prompt, ids)
        if len(ids) > limit:
            count += 1
            if too_long == "raise":
                raise ConfigError(
                    f"{prompt.place or 'a prompt'}: {len(ids)} tokens, and data.max_length less rollout.max_new_tokens "
                    f"leaves {limit}; raise data.max_length, or set data.too_long to drop or trim_prompt"
                )
            shorter = None if too_long == "drop" else trim_prompt(tokenizer, prompt.messages, limit)
            if shorter is None:
                continue
            ids = encode_prompt(tokenizer, shorter)
        encoded.append((prompt, ids))
    if too_long == "trim_prompt" and 0 < len(encoded) < len(prompts):
        left_out = len(prompts) - len(encoded)
        say(f"ppo: {left_out} of {len(prompts)} prompts cannot be trimmed to {limit} tokens: left out")
    if prompts and not encoded:
        raise ConfigError(
            f"data.too_long={too_long} leaves no prompt: all {count} have more than {limit} tokens (data.max_length "
            "less rollout.max_new_tokens); raise data.max_length"
        )
    return encoded, count


def prompt_batches(num_prompts: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Indexes of each iteration's prompts, from iteration `start` on, without end.

    The stream is one shuffle of all prompts after the other; iteration n's batch depends on n and the seed alone.
    """
    position, epoch, order = start * batch_size, -1, torch.empty(0, dtype=torch.long)
    while True:
        batch: list[int] = []
        while len(batch) < batch_size:
            if position // num_prompts != epoch:
                epoch = position // num_prompts
                generator = torch.Generator().manual_seed(stream_seed("prompts", seed, epoch))
                order = torch.randperm(num_prompts, generator=generator)
            offset = position % num_prompts
            taken = order[offset : offset + batch_size - len(batch)].tolist()
            batch += taken
            position += len(taken)
        yield batch


def make_tasks(prompts: Sequence[EncodedPrompt], prompt_indices: Sequence[int], num_generations: int) -> list[Task]:
    """Tasks of one iteration over all processes; a prompt that comes twice keeps counting its repeats."""
    seen: dict[int, int] = {}
    tasks = []
    for index in prompt_indices:
        for _ in range(num_generations):
            repeat = seen.get(index, 0)
            seen[index] = repeat + 1
            tasks.append(Task(*prompts[index], index, repeat))
    return tasks


def share_of_process(tasks: Sequence[Any], accelerator: Accelerator) -> list[Any]:
    """This process's part of what all processes do together: neighbours, so that responses to a prompt stay
    together."""
    count = len(tasks) // accelerator.num_processes
    start = count * accelerator.process_index
    return list(tasks[start : start + count])
