"""SIMULATED labelers, so that the demo can run unattended. No human is behind them.

The reward model is trained on the four of `LABELERS`. The two of `JUDGES` rate some of the same pairs, and the held-out
reward model, which evaluates PPO, is trained on them: their errors are on other pairs.

A labeler perceives `slope * (gold_left - gold_right) + left_bias` plus logistic noise, and calls it a tie within the
`tie_band`. Without a band this is the Bradley-Terry model, with one it is that of Rao and Kupper (1967). With
probability `lapse` the choice is random.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right", "tie"]


@dataclass(frozen=True)
class SimulatedLabeler:
    """One simulated labeler; slope is in units of perception per gold point, left_bias and tie_band of perception."""

    name: str
    slope: float
    lapse: float
    tie_band: float
    left_bias: float = 0.0


LABELERS = (
    SimulatedLabeler("simulated-careful", slope=2.5, lapse=0.02, tie_band=0.6),
    SimulatedLabeler("simulated-quick", slope=1.8, lapse=0.06, tie_band=0.2),
    SimulatedLabeler("simulated-leaning", slope=1.8, lapse=0.04, tie_band=0.4, left_bias=0.3),
    SimulatedLabeler("simulated-tired", slope=1.2, lapse=0.12, tie_band=0.4),
)

JUDGES = (
    SimulatedLabeler("simulated-patient", slope=2.2, lapse=0.03, tie_band=0.5),
    SimulatedLabeler("simulated-brisk", slope=1.6, lapse=0.08, tie_band=0.3, left_bias=-0.1),
)


def choose(labeler: SimulatedLabeler, gold_left: float, gold_right: float, rng: random.Random) -> Side:
    """The choice ("left", "right" or "tie") between answers with these gold totals; draws two numbers from rng."""
    attention, chance = rng.random(), rng.random()
    if attention < labeler.lapse:
        return "left" if chance < 0.5 else "right"
    noise = math.log(max(chance, 1e-12) / (1.0 - chance))
    perceived = labeler.slope * (gold_left - gold_right) + labeler.left_bias + noise
    if abs(perceived) < labeler.tie_band:
        return "tie"
    return "left" if perceived > 0 else "right"
