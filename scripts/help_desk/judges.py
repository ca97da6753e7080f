"""The last step: SFT, PPO, best-of-16, DPO and a better prompt answer the held-out questions, and judges say who won.

`gold` is a judge of `alignment compare --by python=help_desk.judges:gold`, with scripts/ on the PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.ratings import RatingsStore
from help_desk.gold import gold_score
from help_desk.labelers import JUDGES, LABELERS
from help_desk.rating import item_gold, take_turns

BEST_OF = 16
DPO = ("training.learning_rate=1e-4", "training.adam_beta2=0.98", "data.max_length=160")
VOTED_SHARE = 1 / 3
"""Share of the pairs that the simulated labelers vote on; prediction-powered inference has the judges for the rest."""
PROMPT = (
    "You are the library's help desk. Answer in one short sentence, politely, with the facts of the handbook alone."
)


def gold(prompts: Sequence[Any], responses: Sequence[str], *, fact: Sequence[str], **columns: Any) -> list[float]:
    """Gold scores of answers, which count as ended where their last sentence does."""
    return [gold_score(each, text, ended=True).total for each, text in zip(fact, responses, strict=True)]


@dataclass(frozen=True)
class DemoFiles:
    """Where the comparison finds and leaves its files: the demo's folder, prompts, ratings; and DPO's name."""

    home: Path
    prompts: Path
    ratings: Path
    dpo: str


def compare(
    models: Mapping[str, str | None],
    places: DemoFiles,
    seed: int,
    limits: Mapping[str, Any],
    *,
    by_hand: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compare PPO with its alternatives, as a user would: DPO on the same ratings, best-of-16, and a better prompt.

    Args:
        limits: options of `alignment compare` on how answers are drawn.
        by_hand: a person rated the answers: DPO learns from all ratings, and nobody simulated votes.
    """
    whose = [] if by_hand else [part for each in LABELERS for part in ("--labeler", each.name)]
    settings = [f"training.seed={seed}", *DPO]
    sft, ppo, reward = (str(models[name]) for name in ("sft", "ppo", "reward"))
    command(say, "baseline", "dpo", sft, str(places.ratings), "--name", places.dpo, *whose, *settings)
    votes = places.home / "votes.db"
    judges = ["python=help_desk.judges:gold", f"reward={reward}"]
    judges += [] if by_hand else [f"reward={models['judge']}", "people"]
    asked = [
        *sides(sft, ppo, places.dpo, reward),
        *["--prompts", str(places.prompts), "--seed", str(seed), "--out", str(places.home / "compare")],
        *(part for name, value in limits.items() for part in (f"--{name}", str(value))),
        *(part for each in judges for part in ("--by", each)),
        *([] if by_hand else ["--db", str(votes)]),
    ]
    command(say, "compare", *asked)
    if not by_hand:
        say(f"{vote(votes, seed)} votes by SIMULATED labelers on a third of the pairs; the same command again")
        command(say, "compare", *asked)
    return outcome(json.loads((places.home / "compare" / "result.json").read_text(encoding="utf-8")))


def command(say: Callable[[str], None], *arguments: str) -> None:
    """Run a command of `alignment`. Its result is shown at the demo's end.

    Raises:
        UserError: it failed; its own message is on stderr.
    """
    say("$ alignment " + shlex.join(arguments))
    scripts = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "alignment.cli.main", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise UserError(f"alignment {arguments[0]} failed with exit code {done.returncode}; its message is above")


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
