"""Consistency: whether a side says the same to one question in several wordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.evaluation.answers import prompt_id
from alignment.evaluation.judgments import AnsweredPrompts, Bout, JudgeIdentity, Judgment, KnownJudgments, Measure
from alignment.evaluation.score_judges import likeness_by


class ConsistencyJudge:
    """The side whose answers to the wordings of one question are more alike (mean F1 of their words, by pairs) wins it.

    A judgment is about a question, which goes by its first wording. It says nothing of whether the answers are right.

    Args:
        column: rows that share its value are wordings of one question.

    Raises:
        UserError: no value is shared by two prompts.
    """

    def __init__(self, column: str, prompts: Sequence[Prompt]) -> None:
        self.identity = JudgeIdentity(
            f"consistency={column}", "check", None, f"agreement of answers to one question ({column})", "question"
        )
        self.notes: list[str] = []
        self.measures: list[Measure] = []
        self._column = column
        if not self._questions({prompt_id(prompt.messages): prompt for prompt in prompts}):
            known = ", ".join(dict.fromkeys(name for prompt in prompts for name in map(str, prompt.columns))) or "none"
            raise UserError(
                f"--by {self.identity.name}: no two prompts share a value of {column}; give the wordings of one "
                f"question the same value; columns of the prompts: {known}"
            )

    def _questions(self, prompts: Mapping[str, Prompt]) -> list[list[str]]:
        """The prompts of each question that has two wordings or more."""
        found: dict[str, list[str]] = {}
        for key, prompt in prompts.items():
            value = prompt.columns.get(self._column)
            if value is not None and value != "":
                found.setdefault(str(value), []).append(key)
        return [keys for keys in found.values() if len(keys) > 1]

    def judge(self, contest: AnsweredPrompts, known: KnownJudgments) -> list[Judgment]:
        """A judgment of each pair of sides on each question; none is kept, since a score depends on all wordings."""
        questions = self._questions(contest.prompts)
        f1, exact = likeness_by("f1"), likeness_by("exact")
        alike = {side: _agreement(contest, side, questions, f1) for side in contest.sides}
        same = {side: _agreement(contest, side, questions, exact) for side in contest.sides}
        self.measures = [Measure("alike (F1)", alike), Measure("the same", same)]
        if len(questions) > 1:
            across = {side: _across(contest, side, questions, f1) for side in contest.sides}
            self.measures.append(Measure("other questions", across))
        self.notes = ["answers that agree may be wrong; --temperature 0 leaves the wordings as the only difference"]
        if alone := len(contest.prompts) - sum(map(len, questions)):
            self.notes.append(f"{alone} prompts are the only wording of their question and are left out")
        judgments = []
        for (a, b), (first, *_) in product(contest.pairs, questions):
            bout = Bout(first, contest.prompts[first], a, b, contest.answers[a][first], contest.answers[b][first])
            ours, theirs = alike[a][first], alike[b][first]
            outcome = 1.0 if ours > theirs else 0.0 if ours < theirs else 0.5
            judgments.append(bout.judged(self.identity, outcome, (ours, theirs)))
        return judgments


def _agreement(
    contest: AnsweredPrompts, side: str, questions: Sequence[Sequence[str]], likeness: Callable[[str, str], float]
) -> dict[str, float]:
    """Mean likeness of a side's answers to each question, over all pairs of wordings, by the first wording."""
    found = {}
    for keys in questions:
        texts = [contest.answers[side][key].text for key in keys]
        values = [likeness(one, other) for one, other in combinations(texts, 2)]
        found[keys[0]] = sum(values) / len(values)
    return found


def _across(
    contest: AnsweredPrompts, side: str, questions: Sequence[Sequence[str]], likeness: Callable[[str, str], float]
) -> dict[str, float]:
    """Likeness of a side's answers to different questions: a model that always says the same is consistent too."""
    following = [*questions[1:], questions[0]]
    return {
        keys[0]: likeness(contest.answers[side][keys[0]].text, contest.answers[side][other[0]].text)
        for keys, other in zip(questions, following, strict=True)
    }
