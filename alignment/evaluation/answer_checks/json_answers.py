"""Answers that must be JSON, of a schema or of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from alignment.data.check import parse_json, read_schema
from alignment.data.records import Prompt
from alignment.data.row_files import DataError
from alignment.errors import UserError
from alignment.evaluation.answers import SideAnswer
from alignment.evaluation.judgments import AnsweredPrompts, JudgeIdentity, Measure, Scores
from alignment.evaluation.replies import unfenced


class JsonScorer:
    """1 for an answer that is valid JSON, 0 for another. One in a code fence counts, and is told apart.

    Args:
        schema: a file with a JSON schema; None: any JSON will do. What it refers to must be in it: nothing is fetched.

    Raises:
        UserError: no such file, or no schema in it.
    """

    def __init__(self, schema: str | None) -> None:
        self._problem: Callable[[str], str | None]
        if schema is None:
            self._problem = _any_json_problem
            self.identity = JudgeIdentity("json", "check", description="valid JSON")
            return
        path, name = Path(schema).expanduser(), f"json={schema}"
        self._problem = read_schema(path, f"--by {name}")
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.identity = JudgeIdentity(name, "check", digest, f"valid JSON by {path.name}")

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> list[float]:
        """Raises UserError if the schema refers to another file."""
        return [float(self._problem_of(answer) is None) for answer in answers]

    def _problem_of(self, answer: SideAnswer) -> str | None:
        try:
            return self._problem(unfenced(answer.text).strip())
        except DataError as error:
            raise UserError(str(error)) from None

    def measures(self, contest: AnsweredPrompts, scores: Scores) -> list[Measure]:
        bare = {
            (side, key): score * (unfenced(contest.answers[side][key].text) == contest.answers[side][key].text)
            for (side, key), score in scores.items()
        }
        return [contest.measure("valid JSON", scores), contest.measure("and not fenced", bare)]

    def remarks(self, contest: AnsweredPrompts) -> list[str]:
        """What is wrong with the first wrong answer of each side, and how many answers were cut off."""
        told = []
        for side in contest.sides:
            answers = [contest.answers[side][key] for key in contest.prompts]
            problems = [problem for answer in answers if (problem := self._problem_of(answer))]
            if problems:
                cut = sum(not answer.ended for answer in answers)
                more = f"; {cut} answers were cut off by their length limit" if cut else ""
                told.append(f"{side}: {len(problems)} of {len(answers)} answers are wrong, first: {problems[0]}{more}")
        return told


def _any_json_problem(text: str) -> str | None:
    try:
        parse_json(text)
    except ValueError:
        return "not JSON"
    return None
