"""Best-of-n by the reward as the reference line of the evaluations: drawn once, from the policy as it starts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.evaluation.best_of_n import MOST, best_of_n_table
from ppo.config import PPOStageConfig

SHARE = 0.05
"""The share of the run's episodes that the draws may cost, where its evaluations cost less."""


class StartDraws(NamedTuple):
    """Answers of the policy as it starts, a list for each held-out prompt; as in `ppo.evaluation.HeldOutAnswers`."""

    raw_scores: list[list[float]]
    ended: list[list[bool]]
    scores: list[list[float]]
    held_out_scores: list[list[float]] | None


def number_of_draws(config: PPOStageConfig, num_prompts: int) -> int:
    """Answers to each held-out prompt, 0 without any: the largest power of two, at most 64, whose draws cost no more
    than the evaluations of the run, or than a twentieth of its episodes."""
    if not num_prompts:
        return 0
    steps, every = config.training.max_steps, config.training.eval_steps
    evaluations = 1 + (math.ceil(steps / every) if every else 1)
    affordable = max(evaluations, int(SHARE * steps * config.rollout.batch_size / num_prompts))
    return min(MOST, 2 ** (affordable.bit_length() - 1))


def table(draws: StartDraws, groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """Score and bound of the KL for each n."""
    return best_of_n_table(draws.scores, groups, draws.held_out_scores)


def line(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What each evaluation shows: the scores for the largest n."""
    names = {"score": "best_of_n_score", "held_out_score": "best_of_n_held_out_score"}
    return {ours: rows[-1][name] for name, ours in names.items() if rows and name in rows[-1]}
