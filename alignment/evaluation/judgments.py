"""Judgments of pairs of answers: who won, said by whom. A JSON-lines file beside the answers keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.evaluation.answers import SideAnswer
from alignment.files import disk_errors, new_file

JudgeKind = Literal["people", "reward model", "function", "model", "references", "check"]
Scores = Mapping[tuple[str, str], float]
"""A judge's score of each side's answer to each prompt."""


@dataclass(frozen=True)
class JudgeIdentity:
    """Who judges. `name` is as `--by` names it; `digest` tells one version of it from another, if it has one.

    Args:
        description: a check in a sentence, after "judged by".
        unit: what one judgment is about, in the singular.
    """

    name: str
    kind: JudgeKind
    digest: str | None = None
    description: str = ""
    unit: str = "prompt"

    @property
    def text(self) -> str:
        """In a sentence, after "judged by"."""
        what = self.name.partition("=")[2]
        match self.kind:
            case "people":
                return "people" if self.name == "people" else "simulated people, which are a program"
            case "reward model":
                return f"the reward model {what}"
            case "function":
                return f"the function {what}"
            case "model":
                return f"the model {what}"
            case "references":
                return {
                    "exact": "exact match with the reference",
                    "f1": "words shared with the reference (F1)",
                    "chrf": "characters shared with the reference (chrF)",
                }[what]
            case "check":
                return self.description


@dataclass(frozen=True)
class Judgment:
    """One judge's word on the answers of `a` and `b` to one prompt. `outcome` is 1 where `a` is better, 0.5 for a tie.

    Args:
        scores: what the judge gave the two, if it gives scores.
        labeler: the hash of the person, for people.
        answers: digests of the two answers that were judged.
    """

    prompt: str
    a: str
    b: str
    judge: str
    digest: str | None
    outcome: float
    scores: tuple[float, float] | None = None
    labeler: str | None = None
    answers: tuple[str, str] = ("", "")

    @property
    def expected_outcome(self) -> float:
        """What the judge expects people's votes to be on average, in [0, 1].

        A reward model learned the Bradley-Terry probability of a vote, the sigmoid of its scores' difference, which
        says more than who won (docs/development/studies/saved-votes.md). Scores of other judges have no such unit.
        """
        if self.scores is None or not self.judge.startswith("reward="):
            return self.outcome
        first, second = self.scores
        return 1 / (1 + math.exp(min(second - first, 700.0)))


class Bout(NamedTuple):
    """Two answers to one prompt."""

    id: str
    prompt: Prompt
    a: str
    b: str
    first: SideAnswer
    second: SideAnswer

    @property
    def is_same(self) -> bool:
        """Whether both answers are the same text."""
        return self.first.text == self.second.text

    def judged(
        self,
        judge: JudgeIdentity,
        outcome: float,
        scores: tuple[float, float] | None = None,
        labeler: str | None = None,
    ) -> Judgment:
        """A judge's word on it."""
        digests = (self.first.digest, self.second.digest)
        return Judgment(self.id, self.a, self.b, judge.name, judge.digest, outcome, scores, labeler, digests)


@dataclass(frozen=True)
class AnsweredPrompts:
    """The answers of all sides to the same prompts."""

    prompts: Mapping[str, Prompt]
    sides: Sequence[str]
    answers: Mapping[str, Mapping[str, SideAnswer]]
    """By side and prompt; each side has answered each prompt."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(combinations(self.sides, 2))

    def measure(self, name: str, scores: Scores, *, is_share: bool = True) -> Measure:
        """The scores as a measure."""
        values: dict[str, dict[str, float]] = {side: {} for side in self.sides}
        for (side, key), score in scores.items():
            values[side][key] = score
        return Measure(name, values, is_share)

    def bouts(self) -> Iterator[Bout]:
        """Every pair of sides on every prompt."""
        for a, b in self.pairs:
            for key, prompt in self.prompts.items():
                yield Bout(key, prompt, a, b, self.answers[a][key], self.answers[b][key])


@dataclass(frozen=True)
class Measure:
    """A figure of each side's answers by themselves.

    Args:
        values: by side and prompt; each side has the same prompts, unless the figure is of some answers only.
        is_share: the values are in [0, 1], so that their mean is a share.
    """

    name: str
    values: Mapping[str, Mapping[str, float]]
    is_share: bool = True


class BoutJudge(Protocol):
    """Says which answer is better."""

    identity: JudgeIdentity
    notes: list[str]
    """What a reader must know of its judgments."""
    measures: list[Measure]
    """Figures of each side by itself, known after `judge`; empty for a judge who only compares."""

    def judge(self, contest: AnsweredPrompts, known: KnownJudgments) -> list[Judgment]: ...


class KnownJudgments:
    """The judgments of a comparison's folder: a judge is not asked again what it has said of the same answers.

    A judge that is slow or paid for adds each of its judgments at once; the file is rewritten when all are there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[Judgment] = []
        if path.is_file():
            with disk_errors(f"{path}: cannot be read", UserError), path.open("rb") as file:
                for line in file:
                    try:
                        fields = json.loads(line)
                        for name in ("scores", "answers"):
                            fields[name] = None if fields[name] is None else tuple(fields[name])
                        self._rows.append(Judgment(**fields))
                    except (ValueError, TypeError, KeyError, RecursionError):
                        continue  # half a line of a killed run: it costs one more judgment
        self._said = {_key(row): row for row in self._rows}
        self._scored: dict[tuple[str, str | None, str, str], float] = {}
        for row in self._rows:
            for digest, score in zip(row.answers, row.scores or (), strict=False):
                self._scored[row.judge, row.digest, row.prompt, digest] = score

    @property
    def rows(self) -> list[Judgment]:
        """All that were on disk when it was opened, people's votes too."""
        return list(self._rows)

    def of(self, judge: JudgeIdentity, bout: Bout) -> Judgment | None:
        """What the judge said of these two answers, if it did; never a person's word."""
        return self._said.get(_key(bout.judged(judge, 0.5)))

    def score(self, judge: JudgeIdentity, prompt: str, answer: SideAnswer) -> float | None:
        """What the judge gave this answer, if it did."""
        return self._scored.get((judge.name, judge.digest, prompt, answer.digest))

    def add(self, judgment: Judgment) -> None:
        """Keep a judgment, on disk when this returns."""
        self._said[_key(judgment)] = judgment
        with disk_errors(f"{self.path}: cannot be written", UserError), self.path.open("ab") as file:
            # The newline comes first too, so that half a line of a killed run spoils no other.
            file.write(b"\n" + json.dumps(asdict(judgment)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self, judgments: Sequence[Judgment], votes: bool = False) -> None:
        """Put these judgments in place of their judges' others; those of judges who did not judge now stay.

        Args:
            votes: people were asked, so that votes which are not among these were taken back.
        """
        now = {judgment.judge for judgment in judgments}
        known = KnownJudgments(self.path)._said  # another judge may have added some meanwhile
        kept = [row for row in known.values() if row.judge not in now and not (votes and row.labeler is not None)]
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in [*judgments, *kept])
        with disk_errors(f"{self.path}: cannot be written", UserError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.path, replace=True) as part:
                part.write_text(lines, encoding="utf-8")


def _key(row: Judgment) -> tuple[object, ...]:
    return row.prompt, row.a, row.b, row.judge, row.digest, row.labeler, row.answers
