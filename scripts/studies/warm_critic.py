#!/usr/bin/env python3
"""What fitting the critic before the policy moves brings: iterations to 90% of the gain, with and without.

    scripts/studies/warm_critic.py [--seeds 5]

Answers of up to 1,024 tokens, about 256 at the start. A quarter of the words are wanted: the score is their share of
the answer, and each prompt adds an offset of its own that no answer can change. A critic that knows the offsets takes
this noise out of the advantages; one that knows nothing does not. JSON lines on stdout; docs/studies/critic.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import length_bias as world_of
import torch

ITERATIONS = 40
PROMPTS = 8
OFFSET = 0.1
"""Standard deviation of the prompts' offsets; the share of wanted words varies by about 0.03 over answers."""


class WantedWords:
    """In a reward model's place: the share of wanted words, and the prompt's offset."""

    members = ()

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.wanted = set(range(1, 1 + vocabulary // 4))
        self.offsets = OFFSET * torch.randn(PROMPTS + 1, generator=torch.Generator().manual_seed(seed))
        self.shares: list[float] = []

    def member_scores(self, rows: list[Any], conversations: list[Any], device: torch.device) -> torch.Tensor:
        shares = [sum(token in self.wanted for token in row.response) / len(row.response) for row in rows]
        self.shares.append(sum(shares) / len(shares))
        return torch.tensor(
            [[share + float(self.offsets[row.prompt[0]]) for share, row in zip(shares, rows, strict=True)]]
        )

    def combined(self, scores: torch.Tensor) -> tuple[torch.Tensor, None]:
        return scores[0], None

    def modules(self) -> list[torch.nn.Module]:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    for seed in range(options.seeds):
        for name, ppo in (("cold", {}), ("warm", {"value_pretrain": "rollouts", "value_pretrain_episodes": 256})):
            shares = curve(seed, ppo)
            print(
                json.dumps({"critic": name, "seed": seed, "shares": [round(share, 4) for share in shares]}), flush=True
            )


def curve(seed: int, ppo: dict[str, Any]) -> list[float]:
    """Share of wanted words in each iteration's answers."""
    rewards = WantedWords(world_of.LONG.vocabulary, seed)
    world_of.run(
        world_of.LONG, "separate", 0.0, seed, ITERATIONS, rewards, measured=1,
        ppo={"kl_coef": 0.0, **ppo}, training={"learning_rate": 1e-3, "value_learning_rate": 1e-3},
    )  # fmt: skip
    return rewards.shares[-ITERATIONS:]


if __name__ == "__main__":
    main()
