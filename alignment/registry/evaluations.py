"""Evaluations of a version, made after it was published: numbered files, never changed.

    models/NAME/evaluations/v000003/00000001.json

A manifest holds what a run knew of its own model. Who won against another model, and how a version does on a task or a
check, is said later, so it stands beside the version. Of several on the same data the newest counts, and of several on
other data the one on the most prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from alignment.registry.aliases import append_entry, entry_numbers
from alignment.registry.errors import RegistryError
from alignment.registry.files import one_line_errors, read_entry
from alignment.registry.layout import STAGING
from alignment.registry.manifest import Digest, first_problem
from alignment.registry.store import Registry
from alignment.registry.version import Version
from alignment.terminal import one_line

EVALUATIONS = "evaluations"
CHANGE = "change"
"""Last part of the name of a difference from another model."""


class _Evaluation(BaseModel):
    """What every evaluation says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    by: str
    """user@host that recorded it."""
    digest: Digest
    """Of the version."""
    judge: str
    """Its name, as in `--by` of `alignment compare`."""
    judged_by: str
    """The judge in words."""
    judge_digest: str | None = None
    trained_on: bool = False
    """Whether the version was trained on this judge."""
    n: int = Field(ge=1)
    """Number of prompts, questions, ... that were judged."""
    low: float | None
    high: float | None
    """Ends of the 95% interval."""


class WinRecord(_Evaluation):
    """One judge's win rate of a version against another model."""

    against: str
    against_digest: str | None = None
    against_is: str | None = None
    """What a label that a user gave stands for, in words."""
    against_identity: str | None = None
    """Hash of what such a label stands for: the model, and all that changes its answers."""
    prompts: str
    """Name of the prompts file."""
    prompts_sha256: str | None = None
    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    length_controlled: float | None = None
    """The win rate at equal length, None where it cannot be told."""

    @property
    def value(self) -> float:
        return self.win_rate

    @property
    def opponent(self) -> str | None:
        """Identifies the other model independently of its name; None where only its name is known."""
        return self.against_identity or self.against_digest

    @property
    def question(self) -> Hashable:
        """The question, without the data that it was asked on."""
        return "win_rate", self.against, self.opponent, self.judge

    @property
    def kind(self) -> Hashable:
        """The question with its data. An answers file that is judged again has another name and the same prompts."""
        return self.question, self.prompts_sha256 or self.prompts

    @property
    def subject(self) -> str:
        """In a sentence, after "its"."""
        return f"win rate against {self.against}{_in_brackets(self.against_is)}"

    @property
    def where(self) -> str:
        """In a sentence, after "on"."""
        return f"{self.n:,} prompts of {self.prompts}"

    @property
    def label(self) -> str:
        """The kind of evaluation, before its text."""
        return "compared"

    @property
    def text(self) -> str:
        """A line for the screen."""
        return one_line(
            f"wins {100 * self.win_rate:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f}%) against {self.against}"
            f"{_in_brackets(self.against_is)} on {self.where}, judged by {self.judged_by}{_trained(self)}, "
            f"{self.at:%Y-%m-%d}"
        )

    @property
    def parts(self) -> tuple[str, tuple[str, ...], str]:
        """The parts of its name: the first; those that may be left out; the last."""
        return "compare", (self.against, self.judge), "win_rate"


class FigureRecord(_Evaluation):
    """One figure of a version by itself; or, with `against`, its difference from that of another model, paired."""

    command: Literal["compare", "eval", "score"]
    """The command of `alignment` that made it."""
    figure: str
    """Its name in words, such as `valid JSON`."""
    value: float
    is_share: bool = False
    unit: str
    """What `n` counts, in the plural."""
    data: str
    """Name of the prompts, the task, or the file."""
    data_sha256: str | None = None
    against: str | None = None
    against_digest: str | None = None

    @property
    def opponent(self) -> str | None:
        """Identifies the other model independently of its name; None where only its name is known."""
        return self.against_digest

    @property
    def question(self) -> Hashable:
        """The question, without the data; a task or a general text is part of a question of `alignment eval`."""
        of_task = self.data if self.command == "eval" else None
        return self.command, self.figure, self.against, self.opponent, self.judge, of_task

    @property
    def kind(self) -> Hashable:
        """The question with its data. An answers file that is judged again has another name and the same prompts."""
        return self.question, self.data_sha256 or self.data

    @property
    def subject(self) -> str:
        """In a sentence, after "its"."""
        return self.figure if self.against is None else f"change of {self.figure} from {self.against}"

    @property
    def where(self) -> str:
        """In a sentence, after "on"."""
        return f"{self.n:,} {self.unit} of {self.data}"

    @property
    def label(self) -> str:
        """The kind of evaluation, before its text."""
        return "measured"

    @property
    def text(self) -> str:
        """A line for the screen."""
        shown = "95% interval unknown"
        if self.low is not None and self.high is not None:
            shown = f"{self._shown(self.low)} to {self._shown(self.high)}"
        return one_line(
            f"{self.subject} {self._shown(self.value)} ({shown}) on {self.where}, judged by "
            f"{self.judged_by}{_trained(self)}, {self.at:%Y-%m-%d}"
        )

    def _shown(self, value: float) -> str:
        sign = "" if self.against is None else "+"
        return f"{100 * value:{sign}.0f}%" if self.is_share else f"{value:{sign}.4g}"

    @property
    def parts(self) -> tuple[str, tuple[str, ...], str]:
        """The parts of its name: the first; those that may be left out; the last."""
        word = re.sub(r"[^\w.]+", "_", self.figure).strip("_").lower()
        if self.against is None:
            return self.command, (self.data, self.judge), word
        return self.command, (self.against, self.data, self.judge), f"{word}.{CHANGE}"


Evaluation = WinRecord | FigureRecord


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _trained(evaluation: Evaluation) -> str:
    return ", which it was trained on" if evaluation.trained_on else ""


def add_evaluation(registry: Registry, version: Version, evaluation: Evaluation) -> bool:
    """Put an evaluation beside its version; returns False if it says what the newest of its kind says.

    Raises:
        RegistryError: it cannot be written.
    """
    unlike = {"at", "by"}
    for newest in newest_evaluations(registry, version):
        if newest.model_dump(exclude=unlike) == evaluation.model_dump(exclude=unlike):
            return False
    folder = registry.path / "models" / version.name / EVALUATIONS / f"v{version.number:06d}"
    data = json.dumps(evaluation.model_dump(mode="json"), allow_nan=False).encode() + b"\n"
    with one_line_errors(f"the evaluation of {version.ref} cannot be written in {registry.path}"):
        append_entry(folder, registry.path / STAGING, data)
    return True


def evaluations_of(registry: Registry, version: Version) -> list[Evaluation]:
    """All evaluations of a version, the oldest first.

    Raises:
        RegistryError: one is damaged, or is of other weights.
    """
    folder = registry.path / "models" / version.name / EVALUATIONS / f"v{version.number:06d}"
    found: list[Evaluation] = []
    for number in entry_numbers(folder):
        path = folder / f"{number:08d}.json"
        try:
            with one_line_errors(f"{path} cannot be read"):
                found.append(_parsed(read_entry(path)))
        except ValidationError as error:
            raise RegistryError(f"{path} is damaged: {first_problem(error)}; evaluate again and remove it") from None
        if found[-1].digest != version.digest:
            raise RegistryError(f"{path} is an evaluation of {found[-1].digest}, and {version.ref} is {version.digest}")
    return found


def _parsed(entry: str | bytes) -> Evaluation:
    try:
        fields = json.loads(entry)
    except (ValueError, RecursionError):
        fields = None  # the record's own parser says what is wrong
    record = FigureRecord if isinstance(fields, dict) and "figure" in fields else WinRecord
    return record.model_validate_json(entry)


def newest_evaluations(registry: Registry, version: Version) -> list[Evaluation]:
    """The newest evaluation of each question on each data, in the order in which they were first made."""
    return list({each.kind: each for each in evaluations_of(registry, version)}.values())


def largest_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sorted by the number of prompts; of equal ones the newest first."""
    return sorted(evaluations, key=lambda each: (-each.n, -each.at.timestamp()))


@dataclass(frozen=True)
class NamedEvaluations:
    """Which evaluation each name of a figure means, without `.low`, `.high` and `.n`.

    The whole names are `compare.OPPONENT.JUDGE.win_rate`, `COMMAND.DATA.JUDGE.FIGURE` and, for a difference,
    `COMMAND.OTHER.DATA.JUDGE.FIGURE.change`. What stands between the first and the last part may be left out where only
    one question is meant; of one question, the evaluation on the most prompts counts.
    """

    single: dict[str, Evaluation]
    several: dict[str, list[str]]
    """The whole names of the questions that a short name fits, grouped by opponent."""
    names: list[str]
    """All whole names, grouped by opponent."""


def name_evaluations(evaluations: Sequence[Evaluation]) -> NamedEvaluations:
    """The names of the evaluations of a version."""
    fitting: dict[str, list[Evaluation]] = {}
    for each in largest_first(evaluations):
        first, between, last = each.parts
        opponents = [each.against, _with_hash(each)] if each.against else []
        for kept in product((True, False), repeat=len(between)):
            parts = [part for part, stays in zip(between, kept, strict=True) if stays]
            for opponent in opponents if parts and parts[0] == each.against else [None]:
                name = _joined(first, *([opponent, *parts[1:]] if opponent else parts), last)
                if each not in fitting.setdefault(name, []):
                    fitting[name].append(each)
    single, several = {}, {}
    for name, found in fitting.items():
        questions = {each.question: each for each in reversed(found)}
        if len(questions) == 1:
            single[name] = found[0]
        else:
            several[name] = _sorted_names(list(questions.values()), fitting)
    return NamedEvaluations(single, several, _sorted_names(evaluations, fitting))


def _sorted_names(evaluations: Sequence[Evaluation], fitting: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """Whole names, each of which means one question; those of an opponent stand together."""
    named = {}
    for each in evaluations:
        first, between, last = each.parts
        name = _joined(first, *between, last)
        if len({other.question for other in fitting[name]}) > 1:
            name = _joined(first, _with_hash(each), *between[1:], last)
        named[name] = each.against or ""
    return sorted(named, key=lambda name: (named[name], name))


def _with_hash(evaluation: Evaluation) -> str:
    """An opponent's label with the beginning of its hash, for a label that stood for several."""
    opponent = (evaluation.opponent or "unknown").removeprefix("sha256:")[:8]
    return f"{evaluation.against}#{opponent}"


def _joined(*parts: str) -> str:
    return ".".join(map(one_line, parts))


def evaluation_values(by_metric: Mapping[str, Evaluation]) -> dict[str, float]:
    """Each name with its number; the ends of the interval are `.low` and `.high`, how many were judged is `.n`."""
    values: dict[str, float] = {}
    for name, each in by_metric.items():
        numbers = {name: each.value, f"{name}.low": each.low, f"{name}.high": each.high, f"{name}.n": float(each.n)}
        values |= {key: number for key, number in numbers.items() if number is not None}
    return values
