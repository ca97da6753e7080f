"""What a side's answers cost: tokens per second, latency, memory, and the price of 1,000 answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import UserError
from alignment.evaluation.judgments import AnsweredPrompts

PRICED = 1000
"""Answers of which the price is told."""


def parse_prices(given: Sequence[str], sides: Sequence[str]) -> dict[str, float]:
    """The price of an hour of each side's machine: `--price-per-hour 2.5` for all, `SIDE=0.8` for one.

    Raises:
        UserError: no price, or no side of this name.
    """
    prices: dict[str, float] = {}
    named: dict[str, float] = {}
    for text in given:
        side, equals, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not 0 <= price < math.inf:
            raise UserError(f"--price-per-hour {text}: expected a number such as 2.5, or SIDE=2.5")
        if not equals:
            prices |= dict.fromkeys(sides, price)
        elif side in sides:
            named[side] = price
        else:
            raise UserError(f"--price-per-hour {text}: no side is called {side}; the sides are {', '.join(sides)}")
    return prices | named


def side_costs(contest: AnsweredPrompts, side: str, prices: Mapping[str, float]) -> dict[str, Any]:
    """A side's costs; None where the answers do not have what it takes.

    `seconds` of an answer are its share of the time that drawing took, so they add up to it; `latency` is the time from
    its request to its end. A price counts the whole machine for as long as it drew.
    """
    answers = [contest.answers[side][key] for key in contest.prompts]
    timed = [answer for answer in answers if answer.seconds is not None]
    seconds = sum(answer.seconds or 0.0 for answer in timed)
    counted = all(answer.tokens is not None for answer in timed) and seconds > 0
    latencies = [answer.latency for answer in answers if answer.latency is not None]
    peaks = [answer.peak_bytes for answer in answers if answer.peak_bytes is not None]
    price = prices.get(side)
    return {
        "tokens_per_second": sum(answer.tokens or 0 for answer in timed) / seconds if counted else None,
        "latency_p50": float(np.quantile(latencies, 0.5)) if latencies else None,
        "latency_p95": float(np.quantile(latencies, 0.95)) if latencies else None,
        "peak_bytes": max(peaks, default=None),
        "price_per_hour": price,
        "price_per_1000": None if price is None or not timed else seconds / len(timed) * PRICED * price / 3600,
    }
