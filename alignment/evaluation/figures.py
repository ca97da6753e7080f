"""What a comparison's judgments say: win rates with intervals, by judge, by slice and by labeler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.evaluation.agreement import judge_kappa
from alignment.evaluation.costs import side_costs
from alignment.evaluation.judgments import AnsweredPrompts, Judgment
from alignment.evaluation.slices import by_slice
from alignment.evaluation.win_rates import length_controlled_win_rate, raw_win_rate, sign_test
from alignment.intervals import Estimate

Figures = dict[str, Any]


def pair_figures(
    contest: AnsweredPrompts, pair: tuple[str, str], judgments: Sequence[Judgment], slices: Sequence[str], seed: int
) -> Figures:
    """Wins, ties, losses and win rates of `a` against `b` by one judge; `judgments` are of this pair, one or more.

    Lengths are characters, since sides may have unlike tokenizers.
    """
    outcomes = [judgment.outcome for judgment in judgments]
    prompts = [judgment.prompt for judgment in judgments]
    differences = [_lead(contest, pair, key) for key in prompts]
    figures: Figures = {
        **_rates(outcomes, prompts, seed),
        "length_controlled": length_controlled_win_rate(outcomes, differences, prompts, seed=seed),
        "sign_test": sign_test(outcomes, prompts),
        "slices": {column: _by_slice(contest, judgments, column, seed) for column in slices},
    }
    if scored := [judgment.scores for judgment in judgments if judgment.scores is not None]:
        figures["mean_scores"] = np.mean(scored, axis=0).tolist()
    if labelers := dict.fromkeys(judgment.labeler for judgment in judgments if judgment.labeler is not None):
        figures["labelers"] = {
            who: _part([each for each in judgments if each.labeler == who], seed) for who in labelers
        }
    return figures


def _rates(outcomes: Sequence[float], prompts: Sequence[str], seed: int) -> Figures:
    return {
        "prompts": len(set(prompts)),
        "judgments": len(outcomes),
        "wins": sum(outcome > 0.5 for outcome in outcomes),
        "ties": sum(outcome == 0.5 for outcome in outcomes),
        "losses": sum(outcome < 0.5 for outcome in outcomes),
        "win_rate": raw_win_rate(outcomes, prompts, seed=seed),
    }


def _part(judgments: Sequence[Judgment], seed: int) -> Figures:
    return _rates([judgment.outcome for judgment in judgments], [judgment.prompt for judgment in judgments], seed)


def _by_slice(contest: AnsweredPrompts, judgments: Sequence[Judgment], column: str, seed: int) -> dict[str, Figures]:
    """Figures of each value of a column, the most frequent first."""
    said: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        said.setdefault(judgment.prompt, []).append(judgment)
    parts = by_slice(contest, [judgment.prompt for judgment in judgments], column)
    return {
        value: _part([judgment for key in dict.fromkeys(keys) for judgment in said[key]], seed)
        for value, keys in parts.items()
    }


def _lead(contest: AnsweredPrompts, pair: tuple[str, str], key: str) -> float:
    a, b = (contest.answers[side][key].text for side in pair)
    return float(len(a) - len(b))


def side_figures(contest: AnsweredPrompts, side: str, prices: Mapping[str, float]) -> Figures:
    """Length, endings and costs of one side's answers; `prices` are of an hour, by side."""
    answers = [contest.answers[side][key] for key in contest.prompts]
    tokens = [answer.tokens for answer in answers if answer.tokens is not None]
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    return {
        "mean_characters": float(np.mean([len(answer.text) for answer in answers])),
        "mean_tokens": float(np.mean(tokens)) if tokens else None,
        "ended": float(np.mean([answer.ended for answer in answers])),
        "seconds_per_answer": float(np.mean(seconds)) if seconds else None,
        "costs": side_costs(contest, side, prices),
    }


def agreement_with_people(people: Sequence[Judgment], judge: Sequence[Judgment], *, seed: int = 0) -> Estimate | None:
    """Cohen's kappa of a judge and people's votes on the same pairs: see `alignment.evaluation.agreement`."""
    said = {judgment.prompt: _label(judgment.outcome) for judgment in judge}
    votes = [vote for vote in people if vote.prompt in said]
    prompts = [vote.prompt for vote in votes]
    return judge_kappa([said[key] for key in prompts], [_label(vote.outcome) for vote in votes], prompts, seed=seed)


def _label(outcome: float) -> str:
    return "a" if outcome > 0.5 else "b" if outcome < 0.5 else "tie"


def by_pair(judgments: Sequence[Judgment]) -> Mapping[tuple[str, str], list[Judgment]]:
    """Judgments by their two sides."""
    found: dict[tuple[str, str], list[Judgment]] = {}
    for judgment in judgments:
        found.setdefault((judgment.a, judgment.b), []).append(judgment)
    return found
