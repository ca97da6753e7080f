"""Moving an alias on conditions, and moving it back."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from alignment.registry.aliases import ANY, Anything, version_before
from alignment.registry.errors import RegistryError
from alignment.registry.evaluations import (
    Evaluation,
    evaluation_values,
    evaluations_by_metric,
    newest_evaluations,
)
from alignment.registry.references import nearest
from alignment.registry.reviews import check_reviewed, reviews_of
from alignment.registry.store import Registry
from alignment.registry.version import Version
from alignment.registry.words import judge_in
from alignment.terminal import one_line

_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_REQUIREMENT = re.compile(r"\s*(\S.*?)\s*(>=|<=|==|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A condition such as `metric>=bound`; `text` is its spelling."""

    metric: str
    sign: str
    bound: float
    text: str

    def met_by(self, value: float) -> bool:
        """Whether a value meets the bound; NaN never does."""
        return bool(_COMPARE[self.sign](value, self.bound))


def parse_requirement(text: str) -> Requirement:
    """Read `eval_win_rate_low>=0.5`.

    Raises:
        RegistryError: the text is not such a condition.
    """
    match = _REQUIREMENT.fullmatch(text)
    try:
        if match and not math.isnan(bound := float(match[3])):
            return Requirement(match[1], match[2], bound, f"{match[1]}{match[2]}{match[3]}")
    except ValueError:
        pass
    raise RegistryError(f"{text!r:.80} is not a requirement: write METRIC>=NUMBER (or <=, >, <, ==), as in eval_kl<=8")


def promote(
    registry: Registry,
    ref: str,
    alias: str,
    *,
    require: Sequence[str] = (),
    require_review: bool = False,
    reviewed_by: str | None = None,
    expect: int | Anything | None = ANY,
) -> Version:
    """Verify a version, check its reviews and required metrics, and point the alias at it.

    A version whose last review is a rejection is always refused; `require_review` also refuses one without a review.

    Raises:
        RegistryError: a requirement is not met or names no metric; the version is rejected, not reviewed or damaged;
            or the alias points elsewhere than expected.
    """
    requirements = [parse_requirement(text) for text in require]
    version = registry.load(ref)
    review = check_reviewed(registry, version, require_review)
    by_metric, ambiguous = evaluations_by_metric(newest_evaluations(registry, version) if requirements else ())
    values = dict(metric_values(version.manifest.metrics or {})) | evaluation_values(by_metric)
    unmet = []
    for requirement in requirements:
        if fitting := ambiguous.get(_stem(requirement.metric)):
            raise RegistryError(
                f"{requirement.metric} of {version.ref} may be {' or '.join(fitting)}; name one of them"
            )
        if requirement.metric not in values:
            hint = nearest(requirement.metric, values) if values else "it has no metrics"
            raise RegistryError(f"{version.ref} has no metric {requirement.metric!r}; {hint}")
        if not requirement.met_by(values[requirement.metric]):
            unmet.append(f"{requirement.metric} is {values[requirement.metric]:g}, required {requirement.text}")
    if unmet:
        raise RegistryError(
            f"{version.ref} is not promoted to {alias!r}: {'; '.join(unmet)}; name another version or require less"
        )
    required = [*(requirement.text for requirement in requirements), *(["review"] if require_review else [])]
    if reviewed_by is None and review is not None:
        reviewed_by = review.reviewer
    registry.set_alias(version.name, alias, version.number, expect, reviewed_by=reviewed_by, required=required)
    return version


def caveats(registry: Registry, version: Version, require: Sequence[str] = ()) -> list[str]:
    """Caveats of a promotion: checks that the reviewed run lacks, and the judge behind a required evaluation."""
    notes = []
    reviews = reviews_of(registry, version)
    if reviews and (caveat := reviews[-1].caveat):
        notes.append(f"{version.ref}: {caveat}")
    metrics = [parse_requirement(text).metric for text in require]
    by_metric = evaluations_by_metric(newest_evaluations(registry, version) if metrics else ())[0]
    judged = [by_metric[stem] for metric in metrics if (stem := _stem(metric)) in by_metric]
    notes += [f"{version.ref}: {_told(each)}" for each in dict.fromkeys(judged)]
    if any("win_rate" in metric and _stem(metric) not in by_metric for metric in metrics):
        notes.append(f"{version.ref}: its win rate is judged by {one_line(judge_in(version.manifest.metrics or {}))}")
    judges = [each for each in judged if each.parts[0] == "compare"]
    if judges and all(each.trained_on for each in judges):
        notes.append(
            f"{version.ref}: no other judge was required than the one that it was trained on, whose score says that "
            "training worked, not that the answers are better; have people compare, or a judge that training never saw"
        )
    return notes


def _told(evaluation: Evaluation) -> str:
    """Who judged, of what, and how much."""
    trained = ", which it was trained on" if evaluation.trained_on else ""
    return one_line(f"its {evaluation.subject} is judged by {evaluation.judged_by} on {evaluation.where}{trained}")


def _stem(metric: str) -> str:
    """A metric's name without the end of its interval that it asks for."""
    for ending in (".low", ".high", ".n"):
        metric = metric.removesuffix(ending)
    return metric


def roll_back(registry: Registry, name: str, alias: str) -> tuple[int, Version]:
    """Point an alias at the version chosen before this one, as a new entry; returns the number it left and the version.

    Raises:
        RegistryError: there is no earlier version, or it was removed, is damaged, or was rejected since.
    """
    moves = registry.alias_history(name, alias)
    before, now, demoted = version_before(moves), moves[-1].version, moves[-1].demoted
    if before is None:
        says = "cannot be rolled back: v{} is the first version that it points to; `alignment models demote {} {}`"
        if demoted:
            says = "was taken away from v{}, the first version it pointed to; alignment models promote {}@vN {} sets it"
        raise RegistryError(f"{name}@{alias} {says.format(now, name, alias)}")
    try:
        version = registry.load(f"{name}@v{before}")
        check_reviewed(registry, version, required=False)
    except RegistryError as error:
        stays = f"points nowhere, since it was taken away from v{now}" if demoted else f"stays at v{now}"
        raise RegistryError(f"{name}@{alias} {stays}: {error}") from None
    registry.set_alias(name, alias, before, expect=None if demoted else now, rollback=True)
    return now, version


def metric_values(metrics: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number with its dotted key, as in `flat_metrics`; the ends of an interval are `.low` and `.high`."""
    for key, value in metrics.items():
        name = prefix + one_line(key)
        if not isinstance(value, dict):
            if (number := _number(value)) is not None:
                yield name, number
        elif (number := _number(value.get("value"))) is None:
            yield from metric_values(value, f"{name}.")
        else:
            yield name, number
            ends = value.get("ci")
            if isinstance(ends, list) and len(ends) == 2:
                for end, place in zip(ends, (f"{name}.low", f"{name}.high"), strict=True):
                    if (number := _number(end)) is not None:
                        yield place, number


def _number(value: JsonValue) -> float | None:
    if value in ("nan", "inf", "-inf"):  # a manifest spells them so
        return float(str(value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
