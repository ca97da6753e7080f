"""Checking the sampler, before the first rollout, against a plain forward pass over its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from alignment.distributed.processes import say
from alignment.generation.sampling import WAYS, GenerationError, Sampling, Way
from alignment.models.adapters import without_adapter
from alignment.models.packing import ATTENTION
from alignment.models.selfcheck import max_row_difference, plain_logits, tolerance, tried, undisturbed
from alignment.tensors import logprobs_from_logits

Sampler = Callable[[Sequence[Sequence[int]], Sequence[int], Sampling, Way, "list[list[float]]"], "list[list[int]]"]
"""The signature of `TransformersEngine.sample`: prompts, seeds, settings, way, and lists for log-probabilities."""
LENGTHS = (15, 7, 7)
"""Tokens of the test prompts, whose results neither padding nor the other rows may change."""
NEW_TOKENS = 6
"""Tokens sampled after each."""


def find_way(
    policy: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], sampling: Sampling, sample: Sampler
) -> Way:
    """The first of `WAYS` that samples from the same distribution as the plain model; prints it if it is a slow one.

    Raises:
        GenerationError: none of them does.
    """
    longest = max(prompts, key=len)
    test_prompts = [list(longest[-LENGTHS[0] :]), list(longest[: LENGTHS[1]]), list(longest[-LENGTHS[2] :])]
    settings = replace(sampling, max_new_tokens=NEW_TOKENS, batch_size=len(LENGTHS), top_k=0, top_p=1.0)
    if settings.temperature == 0:
        settings = replace(settings, temperature=1.0)
    reason = ""
    base = without_adapter(policy)
    # On a GPU one padded batch takes fewer kernels than the attention of each prompt by itself.
    packs = base.config._attn_implementation == ATTENTION and base.device.type == "cpu"
    with undisturbed(policy):
        for way in WAYS[0 if packs else 1 :]:
            difference, failed = tried(partial(_difference_from_plain, policy, test_prompts, settings, way, sample))
            if failed is None and difference <= tolerance(policy):
                if way in ("by_length", "uncached"):
                    how = "one length at a time" + (" and without a cache" if way == "uncached" else "")
                    say(f"{type(base).__name__}: prompts are sampled from {how}, as {reason}")
                return way
            reason = reason or failed or "its output for one depends on padding or on the others"
    raise GenerationError(
        f"{type(base).__name__} cannot be sampled from: its output step by step differs from its "
        f"output for the whole text ({reason}); name another model"
    )


def _difference_from_plain(
    policy: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    way: Way,
    sample: Sampler,
) -> float:
    """The `max_row_difference` of the sampler's log-probabilities from the plain model's."""
    recorded: list[list[float]] = [[] for _ in prompts]
    responses = sample(prompts, range(len(prompts)), sampling, way, recorded)
    actual, expected = [], []
    for prompt, response, logprobs in zip(prompts, responses, recorded, strict=True):
        actual.append(torch.tensor(logprobs[: len(response)]))
        expected.append(_plain(policy, prompt, response, sampling))
    return max_row_difference(actual, expected)


def _plain(policy: torch.nn.Module, prompt: Sequence[int], response: Sequence[int], sampling: Sampling) -> Tensor:
    logits = plain_logits(policy, [*prompt, *response])[len(prompt) - 1 : -1, : sampling.vocabulary]
    ids = torch.tensor(list(response), device=logits.device)
    return logprobs_from_logits(logits, ids, sampling.temperature).cpu()
