"""How many of people's votes the demo's judges save: prediction-powered intervals beside those from votes alone.

    scripts/demo
    cat runs/demo/data/held_out.jsonl runs/demo/data/prompts.jsonl > many.jsonl
    PYTHONPATH=scripts alignment compare sft=help-desk-sft ppo=help-desk-ppo dpo=help-desk-dpo --prompts many.jsonl \
        --temperature 0.8 --max-new-tokens 64 --out many --by python=help_desk.judges:gold \
        --by reward=help-desk-reward --by reward=help-desk-judge
    scripts/study.py saved_votes many/judgments.jsonl --write     # docs/development/studies/saved-votes.md

The labelers of the demo vote on a random share of the prompts, again and again. Widths of intervals shrink with the
root of the number of votes, so the squared ratio of two widths is the share of votes that gives the same width.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from help_desk.labelers import JUDGES, LABELERS, choose

from alignment.errors import UserError
from alignment.evaluation.judgments import Judgment, KnownJudgments
from alignment.evaluation.prediction_powered import powered_mean
from alignment.terminal import progress

PAGE = Path(__file__).resolve().parents[2] / "docs" / "development" / "studies" / "saved-votes.md"
GOLD = "python=help_desk.judges:gold"
SHARES, VOTES, LEAST = (1 / 3, 1 / 10, 1 / 20), (1, 3, 5), 60
"""Shares of the prompts that are voted on, votes on each, and the fewest prompts of a pair of sides."""


class SavedVotes(NamedTuple):
    """One simulated study: the share of votes that is needed with the judge, and whether both intervals are right."""

    needed: float
    holds: bool
    plain_holds: bool


def vote(gold: tuple[float, float], rng: random.Random) -> float:
    """One of the demo's labelers on a pair with these gold scores; 1: for the first."""
    turned = rng.random() < 0.5
    shown = gold[::-1] if turned else gold
    choice = choose(rng.choice((*LABELERS, *JUDGES)), *shown, rng)
    return 0.5 if choice == "tie" else float((choice == "left") != turned)


def study(
    gold: Mapping[str, tuple[float, float]],
    judge: Mapping[str, float],
    truth: float,
    share: float,
    votes: int,
    seed: str,
) -> SavedVotes:
    """Votes on a random share of the prompts, and the judge's outcomes on all."""
    rng = random.Random(seed)
    asked = rng.sample(sorted(gold), round(share * len(gold)))
    prompts = [key for key in asked for _ in range(votes)]
    rest = sorted(gold.keys() - set(asked))
    said = [vote(gold[key], rng) for key in prompts]
    found = powered_mean(said, [judge[key] for key in prompts], [judge[key] for key in rest], prompts, rest)
    (low, high), (plain_low, plain_high) = found.powered["ci"], found.plain["ci"]
    needed = ((high - low) / (plain_high - plain_low)) ** 2
    return SavedVotes(needed, low <= truth <= high, plain_low <= truth <= plain_high)


def rows(judgments: Sequence[Judgment], repeats: int) -> Iterator[tuple[float, int, str, list[list[SavedVotes]]]]:
    """Share, votes, judge, and the studies of each pair of sides."""
    by_pair: dict[tuple[str, str], dict[str, dict[str, Judgment]]] = {}
    for each in judgments:
        if each.scores is not None and each.answers[0] != each.answers[1]:
            by_pair.setdefault((each.a, each.b), {}).setdefault(each.judge, {})[each.prompt] = each
    pairs = [judges for judges in by_pair.values() if len(judges.get(GOLD, ())) >= LEAST]
    if not pairs:
        raise UserError(f"no pair of sides with {LEAST} judgments by {GOLD}; compare with --by {GOLD}")
    golds = [{key: each.scores for key, each in judges[GOLD].items() if each.scores} for judges in pairs]
    rng = random.Random("truth")
    truths = [statistics.fmean(vote(scores, rng) for scores in gold.values() for _ in range(200)) for gold in golds]
    names = sorted({name for judges in pairs for name in judges})
    kinds = [(name, text) for name in names for text in ("verdict", "probability") if name != GOLD or text == "verdict"]
    with progress("rows", len(SHARES) * len(VOTES) * len(kinds)) as line:
        for share in SHARES:
            for votes in VOTES:
                for name, text in kinds:
                    found = []
                    for index, (judges, gold, truth) in enumerate(zip(pairs, golds, truths, strict=True)):
                        said = judges[name].items()
                        outcomes = {k: e.expected_outcome if text == "probability" else e.outcome for k, e in said}
                        seeds = [f"{index} {number} {share} {votes}" for number in range(repeats)]
                        found.append([study(gold, outcomes, truth, share, votes, seed) for seed in seeds])
                    line.advance(1)
                    yield share, votes, f"{name}, {text}", found


def page(judgments: Sequence[Judgment], repeats: int) -> str:
    """The study as Markdown."""
    prompts = len({each.prompt for each in judgments})
    sides = len({(each.a, each.b) for each in judgments})
    lines = [
        "# How many votes the demo's judges save",
        "",
        f"`scripts/study.py saved_votes` on one seed of the demo: {prompts} prompts, {sides} pairs of sides, {repeats} "
        "studies of each pair and row.",
        "The demo's six labelers vote on a random share of the prompts, and a judge says of all prompts who wins.",
        "*Needed* is the share of their votes that gives the same width of the interval with the judge: the mean, and",
        "the pairs of sides for which it is least and most. Both intervals should hold the truth in 95% of studies.",
        "",
        "| voted on | votes each | judge | needed | by pair of sides | hold the truth | plain ones |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for (share, votes), part in groupby(rows(judgments, repeats), key=lambda row: row[:2]):
        for _, _, judge, found in part:
            every = [each for pair in found for each in pair]
            means = [statistics.fmean(each.needed for each in pair) for pair in found]
            held, plain = (statistics.fmean(map(bool, column)) for column in list(zip(*every, strict=True))[1:])
            lines.append(
                f"| 1/{round(1 / share)} | {votes} | {judge} | {statistics.fmean(means):.2f} | {min(means):.2f} to "
                f"{max(means):.2f} | {held:.1%} | {plain:.1%} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("judgments", type=Path, help="judgments.jsonl of a comparison")
    parser.add_argument("--repeats", type=int, default=40, help="studies of each pair of sides and row (default 40)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} in place of stdout")
    options = parser.parse_args(argv)
    if not options.judgments.is_file():
        parser.error(f"{options.judgments}: no such file")
    try:
        text = page(KnownJudgments(options.judgments).rows, options.repeats)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.write:
        notes = PAGE.read_text(encoding="utf-8").partition("\n## ") if PAGE.exists() else ("", "", "")
        PAGE.write_text(text + "".join(notes[1:]), encoding="utf-8")
    else:
        print(text)
    return 0
