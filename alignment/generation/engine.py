"""Sampling from a policy: an engine on transformers' forward pass, and completions as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.generation.choosing import choose_tokens, record_logprobs, to_host
from alignment.generation.kv_cache import PreallocatedLayer, keep_rows, make_cache
from alignment.generation.sampler_check import find_way
from alignment.generation.sampling import (
    GenerationError,
    Sampled,
    SampledCompletion,
    Sampling,
    Way,
    has_ended,
    response_text,
    set_way,
    way_of,
)
from alignment.models.adapters import without_adapter
from alignment.models.forward import eval_mode, options_of
from alignment.models.onednn import linear_layers, packed_weights
from alignment.models.packing import ATTENTION, row_arguments
from alignment.models.packing import positions as packed_positions
from alignment.models.tokenizers import vocabulary_of
from alignment.seeds import stream_seed
from alignment.templates.ends import end_token_ids
from alignment.templates.rendering import Message, encode_prompt
from alignment.tensors import pad_rows, position_ids

TOKENS_A_LOOK = 16
"""On a GPU, which computes ahead of the host: a look at each token would let it wait for the host each time. A finished
response takes part for 15 tokens more at most."""


class TransformersEngine:
    """Samples from a transformers model, or from a PEFT model with its active adapters.

    The longest prompts come first, so that a batch has prompts of similar length and running out of memory shows at
    once. A prompt that occurs several times in a batch is prefilled once, and a finished response leaves the batch. The
    model's own generation config is ignored (Qwen's sets top-20). Models that `make_cache` does not support are sampled
    by transformers' `generate`, with the same random numbers.

    A response depends on the weights, its prompt and its seed. The batch matters only through rounding: it changes the
    last digits of the logits, which can matter if a random number falls very close to a boundary.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        heard: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        """`heard` gets a response as it grows, after each token, and ends it by returning true."""
        self._policy, self._tokenizer, self._heard = policy, tokenizer, heard

    @property
    def _looked_at_every(self) -> int:
        """Tokens between two looks at what was sampled. On a CPU, which waits for each token anyway, every token lets
        finished responses leave at once; so must somebody who hears the response as it grows."""
        return 1 if self._policy.device.type == "cpu" or self._heard is not None else TOKENS_A_LOOK

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Sampled:
        """Sample one response per prompt: chooses the way that is right for this model, then calls `sample`.

        Raises:
            GenerationError: the policy's logits are NaN or infinite, or its adapter cannot be sampled from.
        """
        if isinstance(self._policy, PeftModel) and self._policy.active_peft_config.is_prompt_learning:
            kind = self._policy.active_peft_config.peft_type.value
            raise GenerationError(
                f"a {kind} adapter puts learned tokens before the prompt, and PEFT samples wrongly if prompts of "
                "different lengths are padded; use an adapter of the weights, such as lora"
            )
        if prompts and way_of(self._policy) is None:
            set_way(self._policy, find_way(self._policy, prompts, sampling, self.sample))
        return Sampled(self.sample(prompts, seeds, sampling, way_of(self._policy) or "padded"), None)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        way: Way,
        logprobs: list[list[float]] | None = None,
    ) -> list[list[int]]:
        """Sample by a given way; responses in the prompts' order.

        Args:
            logprobs: an empty list per prompt, which gets the log-probability of each token at the temperature, before
                `top_k` and `top_p` cut the distribution. A finished response may get more values than tokens.
        """
        samples = list(zip(map(tuple, prompts), seeds, strict=True))
        order = sorted(range(len(samples)), key=lambda i: (-len(samples[i][0]), samples[i][0]))
        responses: list[list[int]] = [[] for _ in samples]
        lengths = [len(samples[i][0]) for i in order]
        rows = min(len(samples), sampling.batch_size)
        with eval_mode(self._policy), linear_layers(), packed_weights(self._policy, rows):
            for start, end in _batch_bounds(lengths, sampling.batch_size, alike=way in ("by_length", "uncached")):
                batch = order[start:end]
                uniforms = _uniforms([samples[i][1] for i in batch], sampling.max_new_tokens).to(self._policy.device)
                recorded = None if logprobs is None else [logprobs[i] for i in batch]
                drawn = _sample(
                    self._policy,
                    [samples[i][0] for i in batch],
                    uniforms,
                    sampling,
                    partial(self._is_ended, sampling),
                    way,
                    recorded,
                    self._looked_at_every,
                )
                for i, response in zip(batch, drawn, strict=True):
                    responses[i] = response
        return responses

    def _is_ended(self, sampling: Sampling, response: Sequence[int]) -> bool:
        stopped = self._heard is not None and self._heard(response)
        return stopped or has_ended(response, sampling, self._tokenizer)


def _batch_bounds(lengths: Sequence[int], size: int, *, alike: bool) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of each batch of at most `size`; with `alike` its prompts all have the same length."""
    start = 0
    while start < len(lengths):
        end = min(start + size, len(lengths))
        if alike:
            end = next((i for i in range(start, end) if lengths[i] != lengths[start]), end)
        yield start, end
        start = end


def _uniforms(seeds: Sequence[int], number: int) -> Tensor:
    """Random numbers in [0, 1), one per token: (len(seeds), number), float64.

    NumPy's generator is used, since torch's on the CPU reads only the low 32 bits of a seed: among 100,000 samples two
    would be expected to share their numbers.
    """
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(number) for seed in seeds]))


def _sample(
    policy: PreTrainedModel | PeftModel,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Tensor,
    sampling: Sampling,
    is_ended: Callable[[Sequence[int]], bool],
    way: Way,
    recorded: list[list[float]] | None,
    looked_at_every: int,
) -> list[list[int]]:
    """One response per prompt, in one batch; `uniforms` (B, max_new_tokens). After `looked_at_every` tokens the host
    waits for the device, and finished responses leave."""
    base = without_adapter(policy)
    distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    ids, mask = pad_rows(list(distinct), sampling.pad_token_id, "left")
    width = ids.shape[1]
    rows = torch.tensor([distinct[prompt] for prompt in prompts])
    cache = None if way == "uncached" else make_cache(base, width + sampling.max_new_tokens)
    if cache is None:
        chooser = _TokenChooser(width, uniforms, sampling, recorded)
        drawn = _sample_by_transformers(policy, base, ids[rows], mask[rows], chooser, cached=way != "uncached")
        return [next((row[:n] for n in range(1, len(row)) if is_ended(row[:n])), row) for row in drawn]
    forward = _make_forward(policy, base, cache, padded=not bool(mask.all()))  # on the host: a GPU would be waited for
    rows, mask = rows.to(policy.device), mask.to(policy.device)
    attention = torch.nn.functional.pad(mask, (0, sampling.max_new_tokens), value=True).long()
    if way == "packed" and _fits_packed_row(base, cache):
        logits = _read_packed_row(policy, base, list(distinct), rows, cache)
    else:
        logits = forward(ids.to(policy.device), attention[:, :width], position_ids(mask))[rows]
        if len(distinct) < len(prompts):
            cache.batch_select_indices(rows)
    attention, positions = attention[rows], mask.sum(1)[rows]  # positions of the next tokens
    active = list(range(len(prompts)))  # the response of each row in the batch
    responses: list[list[int]] = [[] for _ in prompts]
    done, tokens = 0, positions  # no tokens yet: the first are chosen by the prompts' logits
    while done < sampling.max_new_tokens:
        chosen: list[Tensor] = []
        for step in range(done, min(done + looked_at_every, sampling.max_new_tokens)):
            if step:
                width += 1  # what is not a token is seen by `to_host`; as an index it would break the device
                logits = forward(tokens.clamp(min=0)[:, None], attention[:, :width], positions[:, None])
                positions = positions + 1
            tokens = choose_tokens(logits, uniforms[:, step], sampling)
            chosen.append(tokens)
            if recorded is not None:
                record_logprobs([recorded[index] for index in active], logits, tokens, sampling)
        done += len(chosen)
        drawn = to_host(torch.stack(chosen, dim=1))
        unfinished = [row for row, index in enumerate(active) if not _grow(responses[index], drawn[row], is_ended)]
        if not unfinished:
            break
        if len(unfinished) < len(active) and done < sampling.max_new_tokens:
            kept = _compacted(unfinished)
            active = [active[row] for row in kept]
            keep_rows(cache, kept)
            rows = torch.tensor(kept, device=policy.device)
            tokens, uniforms, attention, positions = (x[rows] for x in (tokens, uniforms, attention, positions))
    return responses


def _fits_packed_row(base: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether no layer has a window, and the logits of the last tokens alone can be had."""
    keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
    return keeps and all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


def _read_packed_row(
    policy: PreTrainedModel | PeftModel,
    base: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    rows: Tensor,
    cache: DynamicCache,
) -> Tensor:
    """Read prompts as one packed row, so that no padding is computed; returns the logits after the prompts, (B, V).

    Args:
        prompts: of distinct tokens, for a model that attends by group.
        rows: the prompt of each response, (B,).
        cache: gets a row for each response, with its prompt on the right.
    """
    lengths, order = [len(prompt) for prompt in prompts], rows.tolist()
    groups = [(0, length) for length in lengths]
    read = DynamicCache()
    logits: Tensor = policy(
        input_ids=torch.tensor([[token for prompt in prompts for token in prompt]], device=rows.device),
        position_ids=packed_positions(groups).to(rows.device),
        past_key_values=read,
        logits_to_keep=torch.tensor(lengths, device=rows.device).cumsum(0) - 1,
        **{**options_of(base), "use_cache": True},
        **row_arguments(groups),
    ).logits[0]
    for layer in cache.layers:
        row = read.layers.pop(0)  # frees the layer, so that only one is held twice
        layer.unpack(row.keys, row.values, lengths, order)
    return logits[rows]


def _grow(response: list[int], tokens: Sequence[int], is_ended: Callable[[Sequence[int]], bool]) -> bool:
    """Append tokens through the end; whether there is one. What was sampled behind it counts for nothing."""
    for token in tokens:
        response.append(token)
        if is_ended(response):
            return True
    return False


def _compacted(rows: Sequence[int]) -> list[int]:
    """The same rows ordered so that the last fill the gaps among the first, and few of them move."""
    stay = {row for row in rows if row < len(rows)}
    last = iter([row for row in rows if row >= len(rows)])
    return [row if row in stay else next(last) for row in range(len(rows))]


def _make_forward(
    policy: PreTrainedModel | PeftModel, base: PreTrainedModel, cache: Any, *, padded: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function that reads new tokens into the cache and returns the logits after the last one, (B, V).

    Its arguments are the new ids (B, L), the mask of all tokens so far, and the new tokens' positions (B, L).
    """
    accepted = inspect.signature(base.forward).parameters
    # transformers waits for the device to see whether a mask masks anything; one that it takes as it is spares that.
    as_is = base.device.type != "cpu" and base.config._attn_implementation in ("sdpa", ATTENTION)
    as_is &= all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)  # none has a window of its own

    def forward(ids: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "past_key_values": cache, **options_of(base), "use_cache": True}
        if padded:  # attention is faster without a mask, and RoBERTa's own positions begin at 2
            alone = as_is and ids.shape[1] == 1
            inputs["attention_mask"] = attention[:, None, None].bool() if alone else attention
        if padded and "position_ids" in accepted:
            inputs["position_ids"] = positions
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = 1
        logits: Tensor = policy(**inputs).logits[:, -1]
        return logits

    return forward


class _TokenChooser(LogitsProcessor):
    """Chooses the tokens inside transformers' `generate`, by masking all others."""

    def __init__(self, width: int, uniforms: Tensor, sampling: Sampling, recorded: list[list[float]] | None) -> None:
        self._width, self._uniforms, self.sampling, self._recorded = width, uniforms, sampling, recorded

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = choose_tokens(scores, self._uniforms[:, input_ids.shape[1] - self._width], self.sampling)
        to_host(tokens[:, None])
        if self._recorded is not None:
            record_logprobs(self._recorded, scores, tokens, self.sampling)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _sample_by_transformers(
    policy: PreTrainedModel | PeftModel,
    base: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    chooser: _TokenChooser,
    *,
    cached: bool,
) -> list[list[int]]:
    """As `_sample`, through transformers' `generate`; responses may continue after their end.

    Args:
        ids, mask: (B, P) prompts, left-padded.
    """
    sampling = chooser.sampling
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(sampling.end_token_ids),
        pad_token_id=sampling.pad_token_id,
        use_cache=cached,
    )
    originals = [(model, model.generation_config) for model in (policy, base)]
    for model, _ in originals:
        model.generation_config = GenerationConfig()
    try:
        output = policy.generate(
            input_ids=ids.to(policy.device),
            attention_mask=mask.long().to(policy.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
            **{name: value for name, value in options_of(base).items() if name != "use_cache"},
        )
    finally:
        for model, original in originals:
            model.generation_config = original
    rows: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return rows


def complete(
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> list[SampledCompletion]:
    """Sample one completion per prompt, in order.

    Args:
        seed: shared by the prompts, which differ by their index; the same seed, weights, prompt and index give the same
            completion in any batch, up to rounding (see `TransformersEngine`).
        indices: of the prompts, if they are a part of a longer list; the default counts from 0.
    """
    ends, pad = end_token_ids(tokenizer), tokenizer.pad_token_id
    sampling = Sampling(max_new_tokens, temperature, ends, pad, batch_size, vocabulary=vocabulary_of(tokenizer))
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    seeds = [stream_seed("complete", seed, index) for index in indices or range(len(rows))]
    responses = TransformersEngine(policy, tokenizer).generate(rows, seeds, sampling).responses
    return [
        SampledCompletion(
            text=response_text(tokens, sampling, tokenizer).strip(),
            ids=tokens,
            ended=has_ended(tokens, sampling, tokenizer),
        )
        for tokens in responses
    ]
