"""`alignment compare`: the answers, the judges, and the result that is shown, kept and put into the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.evaluation.bradley_terry import bradley_terry
from alignment.evaluation.figures import Figures, agreement_with_people, by_pair, pair_figures, side_figures
from alignment.evaluation.independence import trained_on
from alignment.evaluation.judgments import AnsweredPrompts, BoutJudge, JudgeIdentity, Judgment, KnownJudgments
from alignment.evaluation.people import PeopleJudge
from alignment.evaluation.prediction_powered import powered_mean
from alignment.evaluation.side_scores import scores_of
from alignment.evaluation.stopping import decide, ratings_forecast
from alignment.files import disk_errors, replace_text
from alignment.registry import Registry

RESULT = "result.json"
JUDGMENTS = "judgments.jsonl"
ANSWERS = "answers.jsonl"
LEVEL = 0.05
"""Probability of a wrong decision by the stopping rule."""


@dataclass(frozen=True)
class ComparisonSetup:
    """What is compared.

    Args:
        identities: who each side is, as the answers file says.
        prompts: name and sha256 of the prompts, for the record.
        settings: how the answers were drawn.
        slices: columns of the prompts.
        prices: of an hour of a side's machine.
    """

    contest: AnsweredPrompts
    identities: dict[str, dict[str, Any]]
    prompts: dict[str, Any]
    settings: dict[str, Any]
    slices: Sequence[str] = ()
    seed: int = 0
    prices: Mapping[str, float] = field(default_factory=dict)


def judge_all(comparison: ComparisonSetup, judges: Sequence[BoutJudge], registry: Registry, folder: Path) -> Figures:
    """Have all judges judge, keep their judgments in `folder`, and return the result.

    Raises:
        UserError: all pairs have the same answers, or a judge cannot judge.
    """
    _refuse_same(comparison.contest)
    known = KnownJudgments(folder / JUDGMENTS)
    folder.mkdir(parents=True, exist_ok=True)
    found = [judge.judge(comparison.contest, known) for judge in judges]
    asked = any(judge.identity.kind == "people" for judge in judges)
    known.write([judgment for judgments in found for judgment in judgments], votes=asked)
    pairs: list[Figures] = []
    for a, b in comparison.contest.pairs:
        said = {judge.identity: by_pair(every).get((a, b), []) for judge, every in zip(judges, found, strict=True)}
        pairs.append({"a": a, "b": b, "judges": _by_judge(comparison, registry, (a, b), said)})
    result: Figures = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sides": {
            side: {**comparison.identities[side], **side_figures(comparison.contest, side, comparison.prices)}
            for side in comparison.contest.sides
        },
        "prompts": {**comparison.prompts, "n": len(comparison.contest.prompts)},
        "settings": comparison.settings,
        "judges": [
            {**asdict(judge.identity), "judged_by": judge.identity.text, "notes": judge.notes} for judge in judges
        ],
        "pairs": pairs,
        "scores": {
            judge.identity.name: scores_of(comparison.contest, judge.measures, comparison.slices)
            for judge in judges
            if judge.measures
        },
        "people": next((asdict(judge.counts) for judge in judges if isinstance(judge, PeopleJudge)), None),
    }
    if len(comparison.contest.sides) > 2:
        result["strengths"] = _strengths(judges, found, comparison.seed)
    return result


def _refuse_same(contest: AnsweredPrompts) -> None:
    """Two sides that say the same everywhere have nothing to judge."""
    for a, b in contest.pairs:
        if all(contest.answers[a][key].text == contest.answers[b][key].text for key in contest.prompts):
            raise UserError(
                f"{a} and {b} gave the same answers to all {len(contest.prompts)} prompts: there is nothing to judge; "
                "are they the same model?"
            )


def _by_judge(
    comparison: ComparisonSetup, registry: Registry, pair: tuple[str, str], said: dict[JudgeIdentity, list[Judgment]]
) -> list[Figures]:
    people = next((votes for judge, votes in said.items() if judge.kind == "people"), [])
    found = []
    for judge, judgments in said.items():
        row: Figures = {"judge": judge.name, "kind": judge.kind, "digest": judge.digest, "judged_by": judge.text}
        if judge.unit != "prompt":
            row["unit"] = judge.unit
        row["trained_on"] = [side for side in pair if trained_on(registry, comparison.identities[side], judge)]
        if judgments:
            row |= pair_figures(comparison.contest, pair, judgments, comparison.slices, comparison.seed)
        if judge.kind == "model":  # its two numbers are the orders that it was asked in, and no scores of the sides
            row.pop("mean_scores", None)
        if judge.kind == "people" and judgments:
            row |= people_figures(judgments) | {"unrated": _unrated(comparison.contest, pair, judgments)}
        elif people and judgments and judge.unit == "prompt":
            row["agreement"] = agreement_with_people(people, judgments, seed=comparison.seed)
            row["with_people"] = powered_figures(people, judgments)
        found.append(row)
    return found


def _unrated(contest: AnsweredPrompts, pair: tuple[str, str], votes: Sequence[Judgment]) -> int:
    """How many pairs of these sides people could still rate: those with unlike answers and without a vote."""
    a, b = (contest.answers[side] for side in pair)
    rated = {vote.prompt for vote in votes}
    return sum(a[key].text != b[key].text and key not in rated for key in contest.prompts)


def people_figures(votes: Sequence[Judgment]) -> Figures:
    """What the stopping rule says of votes in their order; a prompt counts with its first vote."""
    outcomes, prompts = [vote.outcome for vote in votes], [vote.prompt for vote in votes]
    needed = ratings_forecast(outcomes, LEVEL, prompts)
    return {"decision": decide(outcomes, LEVEL, prompts)._asdict(), "more_ratings": needed._asdict()}


def powered_figures(people: Sequence[Judgment], judge: Sequence[Judgment]) -> Figures | None:
    """People's win rate with a judge's help, beside the one from their votes alone."""
    outcome = {judgment.prompt: judgment.expected_outcome for judgment in judge}
    votes = [vote for vote in people if vote.prompt in outcome]
    if not votes:
        return None
    rated = {vote.prompt for vote in votes}
    rest = [judgment for judgment in judge if judgment.prompt not in rated and not _is_same(judgment)]
    estimate = powered_mean(
        [vote.outcome for vote in votes],
        [outcome[vote.prompt] for vote in votes],
        [judgment.expected_outcome for judgment in rest],
        [vote.prompt for vote in votes],
        [judgment.prompt for judgment in rest],
    )
    return {**estimate._asdict(), "votes_bought": estimate.votes_bought, "judged_alone": len(rest)}


def _is_same(judgment: Judgment) -> bool:
    return judgment.answers[0] == judgment.answers[1]


def _strengths(judges: Sequence[BoutJudge], found: Sequence[Sequence[Judgment]], seed: int) -> dict[str, Any]:
    """Bradley-Terry strengths of the sides, by judge."""
    return {
        judge.identity.name: bradley_terry(
            [(each.a, each.b, each.outcome) for each in judgments], [each.prompt for each in judgments], seed=seed
        )
        for judge, judgments in zip(judges, found, strict=True)
        if judgments
    }


def write_result(folder: Path, result: Figures) -> None:
    """Put the result into the comparison's folder."""
    with disk_errors(f"{folder / RESULT}: cannot be written", UserError, "; name another --out"):
        replace_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
