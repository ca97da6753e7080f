"""Agreement of a judge with people on the same items: Cohen's kappa with an interval over prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from alignment.evaluation.clusters import effective_prompts, prompt_draws, prompt_index, score_interval
from alignment.intervals import Estimate
from alignment.ratings.agreement import cohen_kappa


def judge_kappa(
    judge: Sequence[Hashable], people: Sequence[Hashable], prompts: Sequence[Hashable], *, seed: int = 0
) -> Estimate | None:
    """Cohen's kappa of the judge's labels with people's (`ratings.agreement.cohen_kappa`), with a 95% interval.

    The variance is the bootstrap's over prompts; the interval is a score interval (`clusters.score_interval`) of
    (kappa + 1) / 2, so that full agreement on few prompts is not taken for certainty.

    Args:
        judge: the judge's label of each vote's item, such as "a", "b", "tie"; (N,).
        people: the vote's label, (N,).
        prompts: the prompt of each vote, (N,).

    Returns:
        None without a vote, or if both always give the same one label.
    """
    assert len(judge) == len(people) == len(prompts), "one label of the judge and one prompt for each vote"
    kappa = cohen_kappa([{"judge": a, "people": b} for a, b in zip(judge, people, strict=True)], "judge", "people")
    if kappa is None:
        return None
    labels = {label: position for position, label in enumerate(dict.fromkeys([*judge, *people]))}
    member, num_prompts = prompt_index(prompts)
    tables = np.zeros((num_prompts, len(labels), len(labels)))
    for prompt, one, other in zip(member.tolist(), judge, people, strict=True):
        tables[prompt, labels[one], labels[other]] += 1
    draws = prompt_draws(num_prompts, seed=seed) @ tables.reshape(num_prompts, -1)
    resampled = (draws / draws.sum(-1, keepdims=True)).reshape(-1, len(labels), len(labels))
    observed = np.trace(resampled, axis1=1, axis2=2)
    expected = (resampled.sum(1) * resampled.sum(2)).sum(-1)
    kappas = (observed - expected)[expected < 1] / (1 - expected[expected < 1])
    variance = float(kappas.var()) * num_prompts / max(num_prompts - 1, 1) / 4 if len(kappas) else 0.0
    low, high = score_interval((kappa.value + 1) / 2, variance, effective_prompts(tables.sum((1, 2))))
    return Estimate(value=kappa.value, ci=(2 * low - 1, 2 * high - 1), n=kappa.n)
