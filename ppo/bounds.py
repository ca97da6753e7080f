"""Bounds on the mean of a component of the score, as `rewards.constraints` has them: `{harmless: ">= 0.2"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

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
