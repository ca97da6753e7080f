"""The last step: SFT, PPO, best-of-16, DPO and a better prompt answer the held-out questions, and judges say who won.

`gold` is a judge of `alignment compare --by python=help_desk.judges:gold`, with scripts/ on the PYTHONPATH.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.ratings import RatingsStore
from help_desk.gold import gold_score
from help_desk.labelers import JUDGES, LABELERS
from help_desk.rating import item_gold, take_turns

BEST_OF = 16
VOTED_SHARE = 1 / 3
"""Share of the pairs that the simulated labelers vote on; prediction-powered inference has the judges for the rest."""
PROMPT = (
    "You are the library's help desk. Answer in one short sentence, politely, with the facts of the handbook alone."
)


def gold(prompts: Sequence[Any], responses: Sequence[str], *, fact: Sequence[str], **columns: Any) -> list[float]:
    """Gold scores of answers, which count as ended where their last sentence does."""
    return [gold_score(each, text, ended=True).total for each, text in zip(fact, responses, strict=True)]


def sides(sft: str, ppo: str, dpo: str, reward: str) -> list[str]:
    """The sides, as arguments of `alignment compare`."""
    best = f"best-of-{BEST_OF}={sft}?best_of={BEST_OF}&chosen_by={reward}"
    return [f"sft={sft}", f"ppo={ppo}", best, f"dpo={dpo}", f"prompted={sft}?system={PROMPT}"]


def outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """By judge, how often PPO wins against each other side, with the interval; and each side's mean gold score."""
    wins: dict[str, dict[str, Any]] = {}
    for pair in result["pairs"]:
        if "ppo" not in (pair["a"], pair["b"]):
            continue
        other = pair["b"] if pair["a"] == "ppo" else pair["a"]
        for row in pair["judges"]:
            if "win_rate" in row:
                value, (low, high) = row["win_rate"]["value"], row["win_rate"]["ci"]
                if other == pair["a"]:
                    value, low, high = 1 - value, 1 - high, 1 - low
                wins.setdefault(row["judge"], {})[other] = {"value": value, "ci": [low, high], "n": row["prompts"]}
    means = next(measures[0]["sides"] for judge, measures in result["scores"].items() if judge.startswith("python="))
    return {"gold": means, "ppo_wins": wins}


def vote(db: Path, seed: int) -> int:
    """Let the simulated labelers vote on a share of the pairs in the file; returns the number of votes."""
    with RatingsStore(db) as store, store.transaction():
        store.settings.repeat_share = 0.0
        for labeler in (*LABELERS, *JUDGES):
            store.people.mark_simulated(labeler.name)
        items = store.items()
        scores = {item.id: item_gold(item) for item in items}
        most = round(VOTED_SHARE * len(items))
        return take_turns(store, (*LABELERS, *JUDGES), scores, random.Random(seed), most)
