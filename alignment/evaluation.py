"""Comparing models honestly: means, shares and win rates with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.generation import complete
from alignment.models import response_logprobs
from alignment.scalar_models import ScalarModel
from alignment.templates import Message, encode_prompt
from alignment.tensors import pad_rows


class Estimate(TypedDict):
    """A figure with its 95% interval and the number of values behind it."""

    value: float
    ci: tuple[float, float]
    n: int


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean with a 95% percentile interval, resampling whole groups (prompts) with replacement.

    Values of one prompt are not independent, so an interval that resamples values is too narrow.

    Args:
        values: one figure each.
        groups: the prompt that each value belongs to; None: each value is its own.
        weights: non-negative; None: all 1.
    """
    assert len(values) > 0, "no values to average"
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    return bootstrap_sums(
        (x * w, w),
        lambda sums, sizes: sums / np.maximum(sizes, 1e-12),
        groups,
        num_resamples=num_resamples,
        seed=seed,
    )


def bootstrap_sums(
    columns: Sequence[NDArray[np.float64]],
    statistic: Callable[..., NDArray[np.float64]],
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A function of sums over rows (a ratio, a correlation), with a 95% percentile interval over whole groups.

    Args:
        columns: what is summed, (N,) each.
        statistic: takes the sum of each column, arrays of any one shape, and gives an array of that shape.
        groups: as `bootstrap_mean`.
    """
    keys = range(len(columns[0])) if groups is None else groups
    index = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    membership = np.array([index[key] for key in keys])
    sums = [np.bincount(membership, column, len(index)) for column in columns]
    rng = np.random.default_rng(seed)
    totals = np.empty((len(columns), num_resamples))
    for number in range(num_resamples):  # one at a time: all draws at once take gigabytes for a large set
        draw = rng.integers(len(index), size=len(index))
        totals[:, number] = [column[draw].sum() for column in sums]
    low, high = np.quantile(statistic(*totals), [0.025, 0.975])
    value = statistic(*(np.asarray(column.sum()) for column in sums))
    return Estimate(value=float(value), ci=(float(low), float(high)), n=len(columns[0]))


def win_rate(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Estimate:
    """Share of prompts on which ours scores higher, ties one half, with a 95% interval over prompts."""
    assert len(ours) == len(theirs)
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    return bootstrap_mean(points, groups, seed=seed)


@dataclass(frozen=True)
class Judged:
    """One sampled answer: its text, whether it ended by itself, its length in tokens with EOS, the reward model's
    score, and its KL from the reference, log(policy / reference) summed over its tokens, in nats."""

    text: str
    ended: bool
    length: int
    score: float
    kl: float


def judge_policy(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    reward_model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Judged]:
    """Sample one answer per prompt, at the temperature of training, and judge it; in the prompts' order."""
    torch.manual_seed(seed)
    answers = complete(
        policy, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size
    )
    rows = [(encode_prompt(tokenizer, prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    judged: dict[int, Judged] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1].ids))
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        ids, mask = pad_rows([rows[i][0] + rows[i][1].ids for i in batch], tokenizer.pad_token_id, "left")
        ids, mask = ids.to(policy.device), mask.to(policy.device)
        longest = max(len(rows[i][1].ids) for i in batch)
        with torch.no_grad():
            scores = reward_model.score(ids, mask)
            ours, theirs = (
                response_logprobs(model, ids, mask, longest, temperature)[0] for model in (policy, reference)
            )
        for row, index in enumerate(batch):
            answer = rows[index][1]
            length = len(answer.ids)
            kl = float((ours - theirs)[row, longest - length :].sum())
            judged[index] = Judged(answer.text, answer.ended, length, float(scores[row]), kl)
    return [judged[index] for index in range(len(rows))]
