"""Bounds on the mean of a component of the score, as `rewards.constraints` has them: `{harmless: ">= 0.2"}`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from alignment.errors import did_you_mean

_BOUND = re.compile(r"\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


class Bound(NamedTuple):
    """The mean of a component is to stay above `at`, or with a sign of -1 below it."""

    name: str
    sign: int
    at: float

    def slack(self, mean: float) -> float:
        """How far a mean is on the right side; below 0 it is on the wrong one."""
        return self.sign * (mean - self.at)

    @property
    def text(self) -> str:
        return f"{'>=' if self.sign > 0 else '<='} {self.at:g}"


def parse_bounds(constraints: Mapping[str, str]) -> tuple[Bound, ...]:
    """The bounds of a config.

    Raises:
        ValueError: one is no bound.
    """
    bounds = []
    for name, text in constraints.items():
        found = _BOUND.fullmatch(text)
        if found is None:
            raise ValueError(f'{name}: {text!r} is no bound; write ">= 0.2" or "<= 0.1", in points of that component')
        bounds.append(Bound(name, 1 if found[1] == ">=" else -1, float(found[2])))
    return tuple(bounds)


def check_components(weights: Mapping[str, float], constraints: Collection[str], each: bool) -> None:
    """Refuse weights and bounds that leave nothing to maximise, or are of no component of the score.

    Args:
        weights: of every component, by its name in the journal.
        each: each is to be normalised by itself.

    Raises:
        ValueError: names the key, and the nearest component that there is.
    """
    for name in constraints:
        if name not in weights:
            raise ValueError(
                f"rewards.constraints: {name!r} is no component of the score; there are {', '.join(weights)}"
                + did_you_mean(name, weights)
            )
    if not any(weights.values()):
        raise ValueError("every component of the score has weight 0, so there is nothing to maximise; raise one")
    if each and sum(map(bool, weights.values())) < 2:
        raise ValueError(
            "rewards.normalize=each is for several components of the score, and there is one; set it to reference"
        )
