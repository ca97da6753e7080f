"""Sampling from a policy with transformers' `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.errors import UserError
from alignment.templates import Message, encode_prompt
from alignment.tensors import pad_rows, through_eos


class GenerationError(UserError):
    """A model that cannot be sampled from."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `ended` says whether the model stopped by itself (EOS) within the limit."""

    text: str
    ids: list[int]
    ended: bool


def stream_seed(purpose: str, *key: int) -> int:
    """Seed of one random stream: `stream_seed("sampling", seed, step, rank)`.

    Seeds made by adding (`seed + step`) give run 1 the streams of run 0 one step later, and the spread over seeds that
    a learning claim rests on would be too small.
    """
    return int.from_bytes(hashlib.sha256(repr((purpose, *key)).encode()).digest()[:8], "big")


class _FiniteLogits(LogitsProcessor):
    """Notes logits that cannot be sampled from and puts numbers in their place: `torch.multinomial` would end in a
    traceback on a CPU, and on a GPU in an assertion after which the device is lost. One look at the end suffices."""

    def __init__(self, device: torch.device) -> None:
        self.met = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.met |= ~(scores < torch.inf).all()  # a NaN is not below infinity either
        return scores.nan_to_num()


@torch.no_grad()
def generate(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
) -> Tensor:
    """Sample one response per prompt from softmax(logits / temperature), with no other filter; 0 is greedy.

    top-k, top-p, repetition penalty and the like would sample from another distribution than the one whose
    log-probabilities PPO uses, and make the KL biased or negative. A model's own generation config may set them
    (Qwen's does), so it is put aside for the call.

    Args:
        prompt_ids, attention_mask: (B, P), left-padded.

    Returns:
        (B, max_new_tokens), pad after EOS.

    Raises:
        GenerationError: the policy says NaN or infinity.
    """
    config = GenerationConfig(
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        top_p=1.0 if temperature > 0 else None,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=True,
    )
    finite = _FiniteLogits(prompt_ids.device)
    own, was_training = policy.generation_config, policy.training
    policy.generation_config = GenerationConfig()
    policy.eval()
    try:
        output = policy.generate(
            input_ids=prompt_ids,
            attention_mask=attention_mask.long(),
            generation_config=config,
            logits_processor=LogitsProcessorList([finite]),
        )
    finally:
        policy.generation_config = own
        policy.train(was_training)
    if finite.met:
        raise GenerationError(
            "the policy's logits are not finite any more: its training diverged; lower training.learning_rate"
        )
    responses = output[:, prompt_ids.shape[1] :]
    return torch.nn.functional.pad(responses, (0, max_new_tokens - responses.shape[1]), value=pad_token_id)


def complete(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    max_prompt_length: int | None = None,
) -> list[Completion]:
    """Sample one completion per prompt, in order. Prompts of similar length share a batch."""
    rows = [encode_prompt(tokenizer, prompt, max_prompt_length) for prompt in prompts]
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    done: dict[int, Completion] = {}
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        ids, mask = pad_rows([rows[index] for index in batch], tokenizer.pad_token_id, "left")
        responses = generate(
            policy,
            ids.to(policy.device),
            mask.to(policy.device),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).cpu()
        kept = through_eos(responses, tokenizer.eos_token_id)
        for index, response, mask_row in zip(batch, responses, kept, strict=True):
            tokens = response[mask_row].tolist()
            ended = tokens[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            done[index] = Completion(text, tokens, ended)
    return [done[index] for index in range(len(rows))]
