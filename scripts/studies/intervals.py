"""Intervals of `alignment compare`: how often they hold the truth, in simulated studies whose truth is known.

    scripts/study.py intervals            1,000 studies a row, and docs/development/studies/intervals.md
    scripts/study.py intervals --quick    40 studies a row, rows to stdout alone

A study draws prompts, and people's votes on them, from a world; the truth is the win rate in the world, not in the
study. In a world, prompts differ (a prompt's own logit), a prompt has one to six votes, some are ties, and labelers may
lean to one side. What a judge says is a vote of the world's that was copied with some probability.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation.bradley_terry import bradley_terry, fit_strengths
from alignment.evaluation.prediction_powered import powered_mean
from alignment.evaluation.stopping import log_capital
from alignment.evaluation.win_rates import expit, fit_logistic, length_controlled_win_rate, raw_win_rate, squashed
from alignment.terminal import progress

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "development" / "studies" / "intervals.md"
LARGE = 400_000
"""Prompts of the one large study that tells a truth which no formula gives."""


@dataclass(frozen=True)
class StudiedWorld:
    """Where votes on A against B come from."""

    logit: float = 0.5
    """Mean over prompts of the log-odds that A's answer is voted for."""
    spread: float = 1.0
    """Standard deviation of the log-odds over prompts: votes on one prompt agree more than others do."""
    ties: float = 0.15
    most_votes: int = 6
    """A prompt has 1 to so many votes, fewer more often; 1: one each."""
    leans: tuple[float, ...] = (0.0,)
    """Each labeler's own log-odds for A."""

    def votes(self, rng: np.random.Generator, num_prompts: int) -> tuple[Floats, Ints]:
        """Outcomes of A and the prompt of each, (N,)."""
        sizes = np.minimum(rng.geometric(0.5, num_prompts), self.most_votes)
        prompt = np.repeat(np.arange(num_prompts), sizes)
        logits = rng.normal(self.logit, self.spread, num_prompts)[prompt] + rng.choice(self.leans, len(prompt))
        return draw(rng, logits, self.ties), prompt

    def truth(self) -> float:
        """A's win rate, by quadrature over prompts."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        logits = self.logit + self.spread * nodes[:, None] + np.array(self.leans)
        wins = float((weights / weights.sum()) @ expit(logits).mean(1))
        return self.ties / 2 + (1 - self.ties) * wins


def draw(rng: np.random.Generator, logits: Floats, ties: float) -> Floats:
    """Outcomes of these log-odds; a share is ties."""
    return np.where(rng.random(len(logits)) < ties, 0.5, (rng.random(len(logits)) < expit(logits)).astype(np.float64))


@dataclass(frozen=True)
class StudiedRow:
    """A kind of interval in a world: `study` returns an interval and the truth that it should hold."""

    method: str
    world: str
    prompts: int
    study: Callable[[np.random.Generator], tuple[Interval, float]]


# --- the studies -----------------------------------------------------------------------------------------------------


def raw_study(world: StudiedWorld, prompts: int, rng: np.random.Generator) -> tuple[Interval, float]:
    outcomes, prompt = world.votes(rng, prompts)
    return raw_win_rate(outcomes, prompt.tolist())["ci"], world.truth()


def leaning_study(labelers: int, others: bool, rng: np.random.Generator) -> tuple[Interval, float]:
    """A few labelers who lean: the truth is that of these labelers, or of all whom one might have asked."""
    interval, truth = raw_study(StudiedWorld(leans=tuple(rng.normal(0.0, 0.7, labelers).tolist())), 200, rng)
    return interval, StudiedWorld(spread=(1.0 + 0.7**2) ** 0.5).truth() if others else truth


@functools.cache
def length_truth(slope: float, shift: float) -> float:
    """What the regression of one large study says of equal lengths; squashing leaves no formula for it."""
    rng = np.random.default_rng(1)
    outcomes, difference, _ = length_votes(slope, shift, LARGE, rng)
    x = squashed(difference)
    assert x is not None
    return float(expit(fit_logistic(outcomes, x, np.ones((1, len(x))))[0, 0]))


def length_votes(slope: float, shift: float, prompts: int, rng: np.random.Generator) -> tuple[Floats, Floats, Ints]:
    """A's answers are longer by `shift` standard deviations on average, and length wins votes by `slope`."""
    sizes = np.minimum(rng.geometric(0.5, prompts), 6)
    prompt = np.repeat(np.arange(prompts), sizes)
    difference = (rng.normal(shift, 1.0, prompts) * 20)[prompt]
    logits = rng.normal(0.4, 0.7, prompts)[prompt] + slope * np.tanh(difference / 20)
    return draw(rng, logits, 0.1), difference, prompt


def length_study(slope: float, shift: float, prompts: int, rng: np.random.Generator) -> tuple[Interval, float]:
    outcomes, difference, prompt = length_votes(slope, shift, prompts, rng)
    found = length_controlled_win_rate(outcomes, difference, prompt.tolist(), num_resamples=400)
    return (0.0, 1.0) if found is None else found["ci"], length_truth(slope, shift)


STRENGTHS = {3: (0.6, 0.0, -0.6), 5: (1.2, 0.4, 0.0, -0.6, -1.0)}


def tournament(sides: int, prompts: int, rng: np.random.Generator) -> list[tuple[int, int, Floats, Ints]]:
    """For each pair of sides the outcomes and their prompts; a side is better on some prompts than on others."""
    own = np.array(STRENGTHS[sides]) + rng.normal(0.0, 0.5, (prompts, sides))
    found = []
    for a in range(sides):
        for b in range(a + 1, sides):
            prompt = np.flatnonzero(rng.random(prompts) < 0.7)  # not every pair is asked about on every prompt
            found.append((a, b, draw(rng, own[prompt, a] - own[prompt, b], 0.15), prompt))
    return found


@functools.cache
def strength_truth(sides: int) -> float:
    """The first side's strength in one large study: the prompts' own differences leave no formula for it."""
    wins = np.zeros((1, sides, sides))
    for a, b, outcomes, _ in tournament(sides, LARGE, np.random.default_rng(2)):
        wins[0, a, b] += outcomes.sum()
        wins[0, b, a] += (1 - outcomes).sum()
    return float(fit_strengths(wins)[0, 0])


def strength_study(sides: int, prompts: int, rng: np.random.Generator) -> tuple[Interval, float]:
    pairs, keys = [], []
    for a, b, outcomes, prompt in tournament(sides, prompts, rng):
        pairs += [(str(a), str(b), outcome) for outcome in outcomes.tolist()]
        keys += prompt.tolist()
    return bradley_terry(pairs, keys)["0"]["ci"], strength_truth(sides)


def powered_study(
    world: StudiedWorld, quality: float, prompts: int, rng: np.random.Generator
) -> tuple[Interval, float]:
    """People vote on `prompts` prompts, and a judge speaks of these and three times as many others."""
    outcomes, prompt = world.votes(rng, 4 * prompts)
    judged = copies(rng, outcomes, quality)
    mine = prompt < prompts
    found = powered_mean(outcomes[mine], judged[mine], judged[~mine], prompt[mine].tolist(), prompt[~mine].tolist())
    return found.powered["ci"], world.truth()


def copies(rng: np.random.Generator, outcomes: Floats, quality: float) -> Floats:
    """A judge's outcomes: a vote copied with probability 2 * quality - 1, else a coin; .5 is useless, 1 perfect."""
    guess = (rng.random(len(outcomes)) < 0.5).astype(np.float64)
    return np.where(rng.random(len(outcomes)) < 2 * quality - 1, outcomes, guess)


def rows() -> Iterator[StudiedRow]:
    """All rows of the page."""
    close, clear, sure = StudiedWorld(logit=0.0), StudiedWorld(logit=1.0), StudiedWorld(logit=2.5)
    alike = StudiedWorld(spread=0.0, ties=0.0, most_votes=1)
    worlds = {
        "equal sides, 15% ties": close,
        "A better, 15% ties": clear,
        "A far better, 15% ties": sure,
        "half are ties": StudiedWorld(logit=1.0, ties=0.5),
        "one vote a prompt, no ties": alike,
        "prompts decide, labelers agree": StudiedWorld(spread=4.0),
    }
    for name, world in worlds.items():
        for prompts in (20, 50, 200):
            yield StudiedRow("win rate", name, prompts, functools.partial(raw_study, world, prompts))
    for labelers in (4, 8):
        for others in (False, True):
            whom = "all whom one might ask" if others else "these labelers"
            text = f"{labelers} labelers who lean; truth of {whom}"
            yield StudiedRow("win rate", text, 200, functools.partial(leaning_study, labelers, others))
    for slope, shift in ((0.0, 0.0), (1.0, 0.5), (1.0, 1.0)):
        name = f"A longer by {shift:g} deviations, length worth {slope:g} logits"
        for prompts in (50, 200):
            yield StudiedRow("at equal length", name, prompts, functools.partial(length_study, slope, shift, prompts))
    for sides in STRENGTHS:
        for prompts in (20, 50, 200):
            yield StudiedRow(
                "Bradley-Terry", f"{sides} sides", prompts, functools.partial(strength_study, sides, prompts)
            )
    for quality in (0.5, 0.7, 0.85, 0.95, 1.0):
        for name, world in (("unequal votes", clear), ("one vote a prompt, no ties", alike)):
            for prompts in (50, 200):
                text = f"judge copies {2 * quality - 1:.0%}, {name}"
                yield StudiedRow(
                    "with a judge", text, prompts, functools.partial(powered_study, world, quality, prompts)
                )


def coverage(row: StudiedRow, studies: int) -> tuple[float, float]:
    """The share of studies whose interval holds the truth, and the mean width."""
    held, width = 0, 0.0
    for number in range(studies):
        (low, high), truth = row.study(np.random.default_rng([number, row.prompts]))
        held += low <= truth <= high
        width += (high - low) / studies
    return held / studies, width


# --- stopping and votes saved ----------------------------------------------------------------------------------------


def stopping_errors(streams: int, votes: int = 400) -> dict[str, float]:
    """How often equal sides are decided at 5%, looked at after each vote, by what the votes are like."""
    found = {}
    for ties in (0.0, 0.15, 0.5):
        rng = np.random.default_rng(3)
        decided = 0
        for _ in range(streams):
            outcomes = draw(rng, np.zeros(votes), ties)
            decided += bool(log_capital(outcomes, 0.5).max() >= np.log(1 / 0.05))
        found[f"{ties:.0%} ties"] = decided / streams
    return found


def votes_needed(quality: float, votes_each: int, studies: int, rest: int = 10) -> float:
    """Share of the human votes that give the same variance with a judge who knows each answer's worth.

    People's votes are right with probability `quality`; the judge is always right. So this is the most that any judge
    saves among such people, with `rest` times as many prompts that only the judge has seen.
    """
    shares = []
    for number in range(studies):
        rng = np.random.default_rng([number, votes_each])
        better = (rng.random((rest + 1) * 200) < 0.7).astype(np.float64)
        right = rng.random((200, votes_each)) < quality
        voted = np.where(right, better[:200, None], 1 - better[:200, None])
        found = powered_mean(voted.mean(1), better[:200], better[200:])
        shares.append(found.plain["n"] / found.effective_votes)
    return float(np.median(shares))


def page(table: list[tuple[StudiedRow, float, float]], errors: dict[str, float], saved: list[str], studies: int) -> str:
    """docs/development/studies/intervals.md."""
    noise = 196 * (0.05 * 0.95 / studies) ** 0.5
    text = f"""# Do the intervals of `compare` hold the truth?

`scripts/study.py intervals`. Each row is {studies:,} simulated studies whose truth is known. A right 95% interval holds
it in 95% of studies; so many studies show that to {noise:.1f} points in 19 of 20 rows. Prompts differ by a logit, and
have one to six votes, unless a row says otherwise. A judge copies that share of people's votes, and is a coin for the
others; it has seen three times as many prompts as people.

| interval | world | prompts | holds the truth | mean width |
| --- | --- | ---: | ---: | ---: |
"""
    for row, share, width in table:
        text += f"| {row.method} | {row.world} | {row.prompts} | {share:.1%} | {width:.3f} |\n"
    text += """
Labelers who lean are the exception: intervals are over prompts, so they speak of *these* labelers. For the labelers
whom one might have asked they are too narrow. Ask more labelers, and look at `compare`'s table by labeler.

## Stopping

Equal sides, looked at after each of 400 votes at a level of 5%; the share of streams that were decided, of 2,000:

| votes | decided |
| --- | ---: |
"""
    for name, share in errors.items():
        text += f"| {name} | {share:.1%} |\n"
    return text + "\n## Votes that a judge saves\n\n" + "\n".join(saved) + "\n"


def saved_votes(studies: int) -> list[str]:
    """The lines of the page's last part."""
    lines = [
        "The most that any judge saves: it is always right, and has seen ten times as many prompts. The share of human",
        "votes that gives the same width, against votes alone:",
        "",
        "| people are right in | 1 vote a prompt | 3 votes | 5 votes |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for quality in (0.75, 0.8, 0.86, 0.9, 0.95):
        shares = [f"{votes_needed(quality, each, studies):.2f}" for each in (1, 3, 5)]
        lines.append(f"| {quality:.0%} | {' | '.join(shares)} |")
    return lines


def main() -> int:
    """All rows, on stdout as JSON lines, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 studies a row, no page")
    quick = parser.parse_args().quick
    studies = 40 if quick else 1000
    table, every = [], list(rows())
    with progress("intervals", len(every)) as line:
        for row in every:
            share, width = coverage(row, studies)
            print(json.dumps({"method": row.method, "world": row.world, "prompts": row.prompts, "held": share}))
            table.append((row, share, width))
            line.advance()
    text = page(table, stopping_errors(200 if quick else 2000), saved_votes(20 if quick else 200), studies)
    if quick:
        print(text, file=sys.stderr)
    else:
        PAGE.write_text(text, encoding="utf-8")
    return 0
