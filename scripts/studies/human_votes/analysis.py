"""From rows to figures: how reward models agree, and how the methods compare in their eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from alignment.intervals import Estimate, bootstrap_mean
from studies.human_votes.statistics import Floats, length_controlled, matched, over_seeds, vote_shares, wins

Rows = Mapping[str, Mapping[str, Any]]


# --- the votes -----------------------------------------------------------------------------------------------------


def reward_rows(rows: Rows, half: str) -> list[Mapping[str, Any]]:
    """Those of one half's reward models, by seed."""
    found = [row for name, row in rows.items() if name.startswith(f"reward-{half}-")]
    return sorted(found, key=lambda row: row["seed"])


def alike(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]] | None = None) -> Estimate | None:
    """Share of the held-out pairs that two reward models order alike, mean over pairs of models.

    Args:
        theirs: models of the other half; None: pairs of two of ours.
    """
    couples = list(combinations(ours, 2) if theirs is None else product(ours, theirs))
    if not couples:
        return None
    margins = {id(row): {pair["pair"]: pair["margin"] for pair in row["pairs"]} for couple in couples for row in couple}
    pairs = couples[0][0]["pairs"]
    same = np.mean(
        [
            [(np.sign(margins[id(one)][p["pair"]]) * np.sign(margins[id(two)][p["pair"]]) + 1) / 2 for p in pairs]
            for one, two in couples
        ],
        0,
    )
    return bootstrap_mean(same, [pair["group"] for pair in pairs])


def mean_vote(models: Sequence[Mapping[str, Any]]) -> Estimate | None:
    """Accuracy of the mean of several models' margins: what the judges are worth together."""
    if not models:
        return None
    margins = [{pair["pair"]: pair["margin"] for pair in row["pairs"]} for row in models]
    scales = [float(np.std(list(each.values()))) or 1.0 for each in margins]
    pairs = models[0]["pairs"]
    total = [sum(each[p["pair"]] / scale for each, scale in zip(margins, scales, strict=True)) for p in pairs]
    return bootstrap_mean((np.sign(total) + 1) / 2, [pair["group"] for pair in pairs])


# --- the methods ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """One seed's answers to the held-out prompts and what the judges say of them, by method: `start`, `ppo`, or n."""

    seed: int
    lengths: dict[str, Floats]
    ended: dict[str, Floats]
    kl: Floats
    """PPO's from the start, of each answer."""
    scores: dict[str, dict[str, Floats]]
    """By reward model (`a-0`) and method."""

    @property
    def prompts(self) -> int:
        return len(self.kl)

    @property
    def judges(self) -> list[str]:
        """Those of the other half."""
        return sorted(name for name in self.scores if name.startswith("b-"))

    def judged(self, method: str) -> Floats:
        """Mean of the judges' scores, each in standard deviations of its scores of the start's answers: (prompts,)."""
        assert self.judges
        return np.mean([self.scores[j][method] / (self.scores[j]["start"].std() or 1.0) for j in self.judges], 0)


def read_seed(rows: Rows, seed: int, counts: Sequence[int]) -> Seed | None:
    """None where no judge of the other half has scored that seed's answers yet."""
    answers, chooser = rows.get(f"answers-{seed}"), rows.get(f"score-{seed}-by-a-{seed}")
    judged = {name.split("-by-")[1]: row for name, row in rows.items() if name.startswith(f"score-{seed}-by-")}
    if answers is None or chooser is None or not any(name.startswith("b-") for name in judged):
        return None
    told, kept = answers["answers"], len(answers["kl"]) - answers["own"]

    def of(what: str) -> dict[str, Floats]:
        single = {name: np.array([row[0] for row in told[name][what][:kept]], dtype=float) for name in ("start", "ppo")}
        pool, picks = told["pool"][what], chooser["picks"]
        best = {str(n): np.array([pool[i][picks[str(n)][i]] for i in range(kept)], dtype=float) for n in counts}
        return single | best

    scores = {
        name: {method: np.array(values[:kept]) for method, values in row["scores"].items()}
        for name, row in judged.items()
    }
    return Seed(seed, of("lengths"), of("ended"), np.array(answers["kl"][:kept]), scores)


@dataclass(frozen=True)
class Contest:
    """One method against another by the judges, over all seeds; intervals are over prompts unless they say seeds."""

    won: Estimate
    controlled: Estimate
    matched: Estimate | None
    votes: Estimate
    """The share of people's votes that the judges' own probabilities come to."""
    seeds_won: list[float]
    seeds_controlled: list[float]
    lead: Estimate | None
    """Of the length-controlled win rate over one half, with its interval over seeds."""


def contest(seeds: Sequence[Seed], ours: str, theirs: str) -> Contest:
    """Prompts are the same for all seeds, so an interval over prompts draws a prompt with all its seeds."""
    won = [wins(seed.judged(ours), seed.judged(theirs)) for seed in seeds]
    ratio = [np.log(seed.lengths[ours] / seed.lengths[theirs]) for seed in seeds]
    groups = [prompt for seed in seeds for prompt in range(seed.prompts)]
    votes = [vote_shares([s.scores[j][ours] - s.scores[j][theirs] for j in s.judges]) for s in seeds]
    controlled = [length_controlled(w, r)["value"] for w, r in zip(won, ratio, strict=True)]
    every, ratios = np.concatenate(won), np.concatenate(ratio)
    return Contest(
        won=bootstrap_mean(every, groups),
        controlled=length_controlled(every, ratios, groups),
        matched=matched(every, ratios, groups),
        votes=bootstrap_mean(np.concatenate(votes), groups),
        seeds_won=[float(each.mean()) for each in won],
        seeds_controlled=controlled,
        lead=over_seeds([value - 0.5 for value in controlled]),
    )


def gain_by(seeds: Sequence[Seed], method: str, whose: str) -> Estimate | None:
    """How far a method's scores are above the start's by one kind of reward model, in that model's standard deviations.

    Args:
        whose: `own`: the one that PPO went against and best-of-n chose by; `same`: of the same votes, other seeds;
            `other`: of the other half.
    """
    values: list[Floats] = []
    groups: list[int] = []
    for seed in seeds:
        kinds = {"own": [f"a-{seed.seed}"], "other": seed.judges}
        kinds["same"] = [name for name in seed.scores if name.startswith("a-") and name not in kinds["own"]]
        for judge in kinds[whose]:
            scores = seed.scores[judge]
            values.append((scores[method] - scores["start"]) / (scores["start"].std() or 1.0))
            groups += range(seed.prompts)
    return bootstrap_mean(np.concatenate(values), groups) if values else None
