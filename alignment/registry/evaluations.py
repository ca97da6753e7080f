"""Evaluations of a version, made after it was published: numbered files, never changed.

    models/NAME/evaluations/v000003/00000001.json

A manifest holds what a run knew of its own model. Who won against another model is said later, by people or by a judge,
so it stands beside the version. Of several with the same opponent and judge the newest counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

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
PREFIX = "compare"
"""First part of the names that `promote --require` knows."""


class WinRecord(BaseModel):
    """One judge's win rate of a version against another model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    by: str
    """user@host that recorded it."""
    digest: Digest
    """Of the version."""
    against: str
    against_digest: str | None = None
    judge: str
    """As `alignment compare --by` names it, with the model's reference."""
    judged_by: str
    """The judge in words."""
    judge_digest: str | None = None
    trained_on: bool = False
    """Whether the version was trained on this judge."""
    prompts: str
    """Name of the prompts file."""
    prompts_sha256: str | None = None
    n: int = Field(ge=1)
    """Number of prompts that were judged."""
    win_rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    length_controlled: float | None = None
    """The win rate at equal length, None where it cannot be told."""

    @property
    def text(self) -> str:
        """A line for the screen."""
        trained = ", which it was trained on" if self.trained_on else ""
        return one_line(
            f"wins {100 * self.win_rate:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f}%) against {self.against} "
            f"on {self.n} prompts of {self.prompts}, judged by {self.judged_by}{trained}, {self.at:%Y-%m-%d}"
        )


def add_evaluation(registry: Registry, version: Version, evaluation: WinRecord) -> bool:
    """Put an evaluation beside its version; returns False if it says what the newest of its kind says.

    Raises:
        RegistryError: it cannot be written.
    """
    newest = {_kind(each): each for each in evaluations_of(registry, version)}.get(_kind(evaluation))
    unlike = {"at", "by"}
    if newest is not None and newest.model_dump(exclude=unlike) == evaluation.model_dump(exclude=unlike):
        return False
    folder = registry.path / "models" / version.name / EVALUATIONS / f"v{version.number:06d}"
    data = json.dumps(evaluation.model_dump(mode="json"), allow_nan=False).encode() + b"\n"
    with one_line_errors(f"the evaluation of {version.ref} cannot be written in {registry.path}"):
        append_entry(folder, registry.path / STAGING, data)
    return True


def evaluations_of(registry: Registry, version: Version) -> list[WinRecord]:
    """All evaluations of a version, the oldest first.

    Raises:
        RegistryError: one is damaged, or is of other weights.
    """
    folder = registry.path / "models" / version.name / EVALUATIONS / f"v{version.number:06d}"
    found: list[WinRecord] = []
    for number in entry_numbers(folder):
        path = folder / f"{number:08d}.json"
        try:
            with one_line_errors(f"{path} cannot be read"):
                found.append(WinRecord.model_validate_json(read_entry(path)))
        except ValidationError as error:
            raise RegistryError(f"{path} is damaged: {first_problem(error)}; compare again and remove it") from None
        if found[-1].digest != version.digest:
            raise RegistryError(f"{path} is an evaluation of {found[-1].digest}, and {version.ref} is {version.digest}")
    return found


def newest_evaluations(registry: Registry, version: Version) -> list[WinRecord]:
    """The newest evaluation of each opponent and judge, in the order in which they were first made."""
    return list({_kind(each): each for each in evaluations_of(registry, version)}.values())


def evaluations_by_metric(
    evaluations: Sequence[WinRecord],
) -> tuple[dict[str, WinRecord], dict[str, list[str]]]:
    """The evaluation behind each name of a win rate, without `.low`, `.high` and `.n`.

    The whole name is `compare.OPPONENT.JUDGE.win_rate`. The opponent, the judge or both may be left out where only one
    evaluation is meant.

    Returns:
        The evaluations by name; and, for a short name that fits several, their whole names.
    """
    named: dict[str, list[WinRecord]] = {}
    for each in evaluations:
        for parts in ((each.against, each.judge), (each.against,), (each.judge,), ()):
            named.setdefault(".".join([PREFIX, *map(one_line, parts), "win_rate"]), []).append(each)
    single = {name: fitting[0] for name, fitting in named.items() if len(fitting) == 1}
    several = {name: [whole_name(each) for each in fitting] for name, fitting in named.items() if len(fitting) > 1}
    return single, several


def whole_name(evaluation: WinRecord) -> str:
    """`compare.OPPONENT.JUDGE.win_rate`."""
    return ".".join([PREFIX, one_line(evaluation.against), one_line(evaluation.judge), "win_rate"])


def evaluation_values(by_metric: Mapping[str, WinRecord]) -> dict[str, float]:
    """Each name with its number; the ends of the interval are `.low` and `.high`, the number of prompts `.n`."""
    values: dict[str, float] = {}
    for name, each in by_metric.items():
        values |= {name: each.win_rate, f"{name}.low": each.low, f"{name}.high": each.high, f"{name}.n": float(each.n)}
    return values


def _kind(evaluation: WinRecord) -> tuple[str, str]:
    return evaluation.against, evaluation.judge
