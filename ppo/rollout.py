"""Collecting episodes: sample responses, then score them with every model by the path that training takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from alignment.data import Prompt
from alignment.distributed import Accelerator
from alignment.ensembles import RewardEnsemble, disagreement
from alignment.generation import generate, stream_seed
from alignment.models import response_logprobs
from alignment.templates import encode_prompt
from alignment.tensors import pad_rows, through_eos
from ppo.algorithm import final_scores
from ppo.config import RolloutConfig
from ppo.models import Models


@dataclass(frozen=True)
class Rollout:
    """B episodes of one process: prompts left-padded to P, responses right-padded to T.

    input_ids, attention_mask (B, P+T); response_mask (B, T) tokens through EOS; old_logprobs, ref_logprobs, entropy,
    old_values (B, T) at rollout; scores (B,) with unfinished responses' replaced; ended (B,) bool; score_std (B,) how
    far the members of a reward ensemble disagree, before that.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    old_values: Tensor
    scores: Tensor
    ended: Tensor
    score_std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_response(self) -> int:
        """T."""
        return self.response_mask.shape[1]

    @property
    def kl(self) -> Tensor:
        """k1 at each token, in nats: (B, T), 0 where masked."""
        return torch.where(self.response_mask, self.old_logprobs - self.ref_logprobs, 0.0)

    @property
    def response_ids(self) -> Tensor:
        return self.input_ids[:, -self.num_response :]

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each episode, EOS included: (B,)."""
        return self.response_mask.sum(1)


def trim(input_ids: Tensor, attention_mask: Tensor, num_response: int) -> tuple[slice, int]:
    """The columns of a batch that hold any real token, and how many response columns are among them."""
    used = attention_mask.any(0).nonzero().squeeze(1)
    start, stop = int(used[0]), int(used[-1]) + 1
    return slice(start, stop), num_response - (input_ids.shape[1] - stop)


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


def collect_rollout(
    models: Models,
    engine: nn.Module,
    accelerator: Accelerator,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    max_length: int,
    seed: int,
) -> Rollout:
    """Sample one response per prompt and score it.

    Args:
        prompts: this process's share.
        max_length: longest prompt and response together, in tokens.
        seed: of the sampling; the same seed, weights and prompts give the same responses.
    """
    torch.manual_seed(seed)
    tokenizer = models.tokenizer
    limit = max_length - config.max_new_tokens
    rows = [encode_prompt(tokenizer, prompt.messages, limit) for prompt in prompts]
    prompt_ids, prompt_mask = pad_rows(rows, tokenizer.pad_token_id, "left")
    prompt_ids, prompt_mask = prompt_ids.to(accelerator.device), prompt_mask.to(accelerator.device)
    by_length = prompt_mask.sum(1).argsort(stable=True)
    responses = []
    with accelerator.autocast():
        for batch in by_length.split(config.generation_batch_size):
            columns, _ = trim(prompt_ids[batch], prompt_mask[batch], 0)
            responses.append(
                generate(
                    models.policy,
                    prompt_ids[batch, columns],
                    prompt_mask[batch, columns],
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
    response_ids = torch.cat(responses)[by_length.argsort()]
    is_eos = response_ids == tokenizer.eos_token_id
    response_mask = through_eos(response_ids, tokenizer.eos_token_id)
    longest = int(response_mask.sum(1).max())
    response_ids, response_mask = response_ids[:, :longest], response_mask[:, :longest]
    input_ids = torch.cat([prompt_ids, response_ids], dim=1)
    attention_mask = torch.cat([prompt_mask, response_mask], dim=1)
    (old_logprobs, entropy, old_values, ref_logprobs), scores, score_std = _score(
        models, engine, accelerator, input_ids, attention_mask, longest, config
    )
    ended = is_eos.any(1)
    return Rollout(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        old_values=old_values,
        scores=final_scores(scores, ended, config.missing_eos_score),
        ended=ended,
        score_std=score_std,
    )


@torch.no_grad()
def _score(
    models: Models,
    engine: nn.Module,
    accelerator: Accelerator,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_response: int,
    config: RolloutConfig,
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Old log-probabilities, entropy, values and reference log-probabilities; scores; and of a reward ensemble the
    disagreement. Rows of like length together.

    The log-probabilities are computed anew by the engine that trains, not taken from sampling: the two differ in the
    last digits (more so in bfloat16), and the first ratio would not be 1.
    """
    by_length = attention_mask.sum(1).argsort(stable=True)
    shape = (len(input_ids), num_response)
    tokens = [torch.zeros(shape, device=input_ids.device) for _ in range(4)]
    scores = torch.zeros(len(input_ids), device=input_ids.device)
    reward_model = models.reward_model
    score_std = torch.zeros_like(scores) if isinstance(reward_model, RewardEnsemble) else None
    for batch in by_length.split(config.generation_batch_size):
        columns, kept = trim(input_ids[batch], attention_mask[batch], num_response)
        ids, mask = input_ids[batch, columns], attention_mask[batch, columns]
        with accelerator.autocast():
            logprobs, entropy, values = engine(ids, mask, kept, config.temperature, with_entropy=True)
            ref_logprobs, _ = response_logprobs(models.ref_policy, ids, mask, kept, config.temperature)
            if isinstance(reward_model, RewardEnsemble):
                assert score_std is not None
                each = reward_model.member_scores(ids, mask)
                scores[batch], score_std[batch] = reward_model.combined(each), disagreement(each)
            else:
                scores[batch] = reward_model.score(ids, mask)
        for target, source in zip(tokens, (logprobs, entropy, values, ref_logprobs), strict=True):
            target[batch, :kept] = source
    return tokens, scores, score_std


def select(rollout: Rollout, rows: Tensor) -> Rollout:
    """The given episodes, cut to the columns that they use."""
    found = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    part = {name: value[rows] for name, value in found.items() if value is not None}
    columns, kept = trim(part["input_ids"], part["attention_mask"], rollout.num_response)
    for name in ("input_ids", "attention_mask"):
        part[name] = part[name][:, columns]
    for name in ("response_mask", "old_logprobs", "ref_logprobs", "entropy", "old_values"):
        part[name] = part[name][:, :kept]
    return Rollout(**part)
