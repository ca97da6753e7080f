"""The sampler against a plain forward pass of the model over what it sampled, before the first rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from alignment.generation.sampling import WAYS, GenerationError, Sampling, Way
from alignment.models.adapters import without_adapter
from alignment.models.selfcheck import apart, plain_logits, say, tolerance, tried, undisturbed
from alignment.tensors import logprobs_from_logits

Sampler = Callable[[Sequence[Sequence[int]], Sequence[int], Sampling, Way, "list[list[float]]"], "list[list[int]]"]
"""As `TransformersEngine.sample`: prompts, seeds, settings, way, and where log-probabilities go."""
LENGTHS, NEW_TOKENS = (15, 7, 7), 6
"""Tokens of the prompts that are tried, which neither padding nor company must change, and of what is sampled."""


def find_way(
    policy: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], sampling: Sampling, sample: Sampler
) -> Way:
    """The first of `WAYS` that samples from what the model says of a prompt alone; says so where it is not the first.

    Raises:
        GenerationError: none does.
    """
    longest = max(prompts, key=len)
    tried_prompts = [list(longest[-LENGTHS[0] :]), list(longest[: LENGTHS[1]]), list(longest[-LENGTHS[2] :])]
    how = replace(sampling, max_new_tokens=NEW_TOKENS, batch_size=len(LENGTHS), top_k=0, top_p=1.0)
    if how.temperature == 0:
        how = replace(how, temperature=1.0)
    reason = ""
    with undisturbed(policy):
        for way in WAYS:
            off, failed = tried(partial(_apart, policy, tried_prompts, how, way, sample))
            if failed is None and off <= tolerance(policy):
                if way != WAYS[0]:
                    how_slow = "one length at a time" + (" and without a cache" if way == "uncached" else "")
                    say(f"{type(without_adapter(policy)).__name__}: prompts are sampled from {how_slow}, as {reason}")
                return way
            reason = reason or failed or "what it says of one depends on padding or on the others"
    raise GenerationError(
        f"{type(without_adapter(policy)).__name__} cannot be sampled from: what it says step by step is not what it "
        f"says of the whole text ({reason}); name another model"
    )


def _apart(
    policy: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    way: Way,
    sample: Sampler,
) -> float:
    """By how much the sampler's log-probabilities are off, as `alignment.models.selfcheck.apart`."""
    heard: list[list[float]] = [[] for _ in prompts]
    responses = sample(prompts, range(len(prompts)), sampling, way, heard)
    found, expected = [], []
    for prompt, response, line in zip(prompts, responses, heard, strict=True):
        found.append(torch.tensor(line[: len(response)]))
        expected.append(_plain(policy, prompt, response, sampling))
    return apart(found, expected)


def _plain(policy: torch.nn.Module, prompt: Sequence[int], response: Sequence[int], sampling: Sampling) -> Tensor:
    logits = plain_logits(policy, [*prompt, *response])[len(prompt) - 1 : -1, : sampling.vocabulary]
    ids = torch.tensor(list(response), device=logits.device)
    return logprobs_from_logits(logits, ids, sampling.temperature).cpu()
