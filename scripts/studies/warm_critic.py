"""Measure the benefit of fitting the critic before PPO: iterations to 90% of the gain, with and without.

    scripts/study.py warm_critic [--seeds 5]

Answers have up to 1,024 tokens, about 64 at the start. A quarter of the words are wanted: the score is their fraction
of the answer, plus an offset that depends only on the prompt's digits. A critic that knows the offsets removes this
noise from the advantages; a new one does not. `iterations` counts until 90% of the new critic's final gain. Rows are
JSON lines on stdout; docs/development/studies/critic.md has the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch

from studies.length_bias import World, run

ITERATIONS = 30
LAST = 5
"""Number of iterations in a mean; an iteration has 32 answers, whose fraction varies by a tenth."""
WORLD = World(vocabulary=64, limit=1024, episodes=32, learning_rate=5e-3)
PROMPTS = tuple(f"{one}{other}" for one in range(1, 10) for other in range(1, 10))
OFFSET = 0.2
"""Standard deviation of a digit's offset; the wanted fraction varies by about 0.06 over answers."""


class WantedWords:
    """A stand-in for a reward model: the fraction of wanted words plus the offsets of the prompt's two digits."""

    members, heads = (), ()

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.wanted = set(range(1, 1 + vocabulary // 4))
        self.added = OFFSET * torch.randn(2, 10, generator=torch.Generator().manual_seed(seed))
        self.shares: list[float] = []

    def member_scores(self, rows: list[Any], conversations: list[Any], device: torch.device) -> torch.Tensor:
        shares = [sum(token in self.wanted for token in row.response) / len(row.response) for row in rows]
        self.shares.append(sum(shares) / len(shares))
        offsets = [float(self.added[0, row.prompt[0]] + self.added[1, row.prompt[1]]) for row in rows]
        return torch.tensor([[share + offset for share, offset in zip(shares, offsets, strict=True)]])

    def combined(self, scores: torch.Tensor) -> tuple[torch.Tensor, None]:
        return scores[0], None

    def modules(self) -> list[torch.nn.Module]:
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    fit = {"value_pretrain": "rollouts"}
    for seed in range(options.seeds):
        wanted = 0.0
        for name, ppo in (("new", {}), ("fitted", fit)):
            shares = [round(share, 4) for share in curve(seed, ppo)]
            last = statistics.fmean(shares[-LAST:])
            wanted = wanted or 0.25 + 0.9 * (last - 0.25)
            row = {"critic": name, "seed": seed, "last": round(last, 3), "iterations": reached(shares, wanted)}
            print(json.dumps(row | {"shares": shares}), flush=True)
    return 0


def reached(shares: list[float], wanted: float) -> int | None:
    """Number of iterations until the mean fraction of the last five reaches `wanted`; None if it never does."""
    means = (statistics.fmean(shares[max(0, n - LAST + 1) : n + 1]) for n in range(len(shares)))
    return next((n for n, mean in enumerate(means) if mean >= wanted), None)


def curve(seed: int, ppo: dict[str, Any]) -> list[float]:
    """Fraction of wanted words in each iteration's answers."""
    scorer = WantedWords(WORLD.vocabulary, seed)
    training = {"value_learning_rate": 5e-3}
    run(
        WORLD, "separate", 0.0, seed, ITERATIONS, scorer, measured=1, asked=PROMPTS,
        ppo={"kl_coef": 0.0, **ppo}, training=training,
    )  # fmt: skip
    first = len(scorer.shares) - ITERATIONS  # the answers for fitting the critic follow the first rollout
    return [scorer.shares[0], *scorer.shares[first + 1 :]]
