"""Evaluating a policy: sampled answers with scores and KL; `alignment.intervals` has means and win rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.generation.engine import complete
from alignment.intervals import Estimate as Estimate
from alignment.intervals import bootstrap_mean as bootstrap_mean
from alignment.intervals import win_rate as win_rate
from alignment.models.ensembles import RewardEnsemble
from alignment.models.policies import response_logprobs
from alignment.models.scalar import ScalarModel
from alignment.templates.rendering import Message, encode_prompt
from alignment.tensors import pad_rows


@dataclass(frozen=True)
class SampledAnswer:
    """One sampled answer with its scores.

    Args:
        ended: whether it ended by itself.
        length: tokens, with EOS.
        score: the reward model's.
        kl: from the reference, log(policy / reference) summed over its tokens, in nats.
        held_out_score: score of a reward model that training never saw, if there is one.
    """

    text: str
    ended: bool
    length: int
    score: float
    kl: float
    held_out_score: float | None = None


def judge_policy(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    reward_model: ScalarModel | RewardEnsemble,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    held_out_reward: ScalarModel | RewardEnsemble | None = None,
) -> list[SampledAnswer]:
    """Sample one answer per prompt, at the temperature of training, and judge it; in the prompts' order."""
    answers = complete(
        policy,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
    )
    rows = [(encode_prompt(tokenizer, prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    judged: dict[int, SampledAnswer] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1].ids))
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        ids, mask = pad_rows([rows[i][0] + rows[i][1].ids for i in batch], tokenizer.pad_token_id, "left")
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        longest = max(len(rows[i][1].ids) for i in batch)
        with torch.no_grad():
            scores = reward_model.score(ids, mask)
            others = held_out_reward.score(ids, mask).tolist() if held_out_reward else [None] * len(batch)
            ours, theirs = (
                response_logprobs(model, ids, mask, longest, temperature)[0] for model in (policy, reference)
            )
        for row, index in enumerate(batch):
            answer = rows[index][1]
            length = len(answer.ids)
            kl = float((ours - theirs)[row, longest - length :].sum())
            judged[index] = SampledAnswer(answer.text, answer.ended, length, float(scores[row]), kl, others[row])
    return [judged[index] for index in range(len(rows))]
