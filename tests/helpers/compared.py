"""A made comparison with several judges, for what shows a result."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers.comparing import question

from alignment.evaluation.answers import SideAnswer, prompt_id
from alignment.evaluation.comparison import JUDGMENTS, ComparisonSetup, judge_all, write_result
from alignment.evaluation.judgments import AnsweredPrompts, Bout, JudgeIdentity, Judgment, KnownJudgments
from alignment.evaluation.people import PEOPLE
from alignment.registry import Registry

WORDS = ["please", "restart", "the", "router", "and", "wait", "a", "minute", "then", "call", "us", "again"]


class MadeJudge:
    """A judge whose word is a function of two answers: an outcome, its scores or None, and a labeler or None."""

    def __init__(
        self, identity: JudgeIdentity, say: Callable[[Bout], Sequence[tuple[float, Any, str | None]]], *notes: str
    ) -> None:
        self.identity, self._say, self.notes = identity, say, list(notes)
        self.measures: list[Any] = []

    def judge(self, contest: AnsweredPrompts, known: KnownJudgments) -> list[Judgment]:
        judgments = [
            bout.judged(self.identity, outcome, scores, labeler)
            for bout in contest.bouts()
            for outcome, scores, labeler in self._say(bout)
        ]
        if self.identity.kind == "reward model":
            by_side = {
                (side, each.prompt): score
                for each in judgments
                for side, score in zip((each.a, each.b), each.scores or (), strict=False)
            }
            self.measures = [contest.measure("score", by_side, is_share=False)] if by_side else []
        return judgments


def made_comparison(
    folder: Path,
    names: Sequence[str] = ("sft", "ppo"),
    num_prompts: int = 40,
    *,
    text: Callable[[str], str] = str,
    length: int = 12,
) -> tuple[dict[str, Any], AnsweredPrompts, list[Judgment]]:
    """A result in `folder`: people rate half of the prompts twice, a reward model and another model judge all.

    Args:
        text: changes each text that a user could have written.
        length: words of an answer.
    """
    seeded = random.Random(0)
    prompts = [question(text(f"Question {n}?"), topic=text("abc"[n % 3])) for n in range(num_prompts)]
    answers = {}
    for place, name in enumerate(names):
        drawn = [
            [seeded.choice(WORDS) if seeded.random() < 0.3 else WORDS[at % len(WORDS)] for at in range(length)]
            for _ in prompts
        ]
        answers[name] = {
            prompt_id(prompt.messages): SideAnswer(text(" ".join(words)), seeded.random() < 0.9, length, 0.1 + place)
            for prompt, words in zip(prompts, drawn, strict=True)
        }
    contest = AnsweredPrompts({prompt_id(prompt.messages): prompt for prompt in prompts}, list(names), answers)
    luck = {bout[:1] + bout[2:4]: seeded.random() for bout in contest.bouts()}

    def scores(bout: Bout) -> tuple[float, float]:
        return luck[bout.id, bout.a, bout.b], 0.6

    def rated(bout: Bout) -> list[tuple[float, None, str]]:
        place = list(contest.prompts).index(bout.id)
        other = (0.0, 0.5, 1.0)[place % 3]
        return [] if place % 2 else [(float(scores(bout)[0] > 0.6), None, "a1" * 8), (other, None, "b2" * 8)]

    judges = [
        MadeJudge(PEOPLE, rated),
        MadeJudge(
            JudgeIdentity("reward=rm@v1", "reward model", "sha256:" + "0" * 64),
            lambda bout: [(float(scores(bout)[0] > 0.6), scores(bout), None)],
        ),
        MadeJudge(
            JudgeIdentity(text("model=http://127.0.0.1:8000/v1#judge"), "model"),
            lambda bout: [((0.0, 0.5, 1.0)[int(3 * scores(bout)[0])], None, None)],
            text("its two orders disagreed on 7% of the pairs, which count as ties"),
        ),
    ]
    identities = {
        name: {
            "kind": "model",
            "model": text(f"{name}@v1"),
            "digest": "sha256:" + "1" * 64,
            "system": text("Be brief."),
        }
        for name in names
    }
    setup = ComparisonSetup(contest, identities, {"name": text("p.jsonl"), "sha256": "2" * 64}, {"seed": 0}, ["topic"])
    result = judge_all(setup, judges, Registry(folder / "registry"), folder)
    write_result(folder, result)
    return result, contest, KnownJudgments(folder / JUDGMENTS).rows
