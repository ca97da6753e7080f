"""Warnings about label quality, as sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from alignment.terminal import one_line

Figures = dict[str, Any]

MIN_ANSWERS = 10
"""Minimum number of answers of a kind for a warning about a labeler."""
BIAS_P_VALUE = 0.01
"""p-value of a significant preference for a side, divided by the number of labelers that are tested."""
MIN_BIAS = 0.55
"""Lower end of the 95% interval of a preference that matters: with thousands of decisions, 52% is significant but
harmless."""
GOLD_MARGIN = 0.5
"""Point between guessing (0) and all right (1) that the 95% interval of a labeler's gold answers must reach."""
SLIGHT_ALPHA = 0.2
"""Krippendorff's alpha below which agreement is slight at best (Landis and Koch 1977, for kappa)."""
HASTY = 1 / 3
"""Fraction of the others' median seconds below which a labeler is hasty."""
MIN_SELF_AGREEMENT = 0.6
"""Fraction of repeats answered the same way below which a labeler is inconsistent."""
MAX_SKIPS = 0.25
"""Fraction of skipped items above which a labeler gets a warning."""


def warnings_of(quality: Figures) -> list[str]:
    """Warnings, the most serious first; empty if there are none."""
    return [*_overall(quality), *(warning for name in quality["labelers"] for warning in _individual(quality, name))]


def _overall(quality: Figures) -> Iterator[str]:
    agreement, position = quality["agreement"], quality["position"]
    simulated = quality["ratings"]["simulated"]
    if simulated:
        names = ", ".join(map(one_line, simulated))
        yield f"Some ratings are made by programs ({names}); a model trained on them says so."
    if quality["ratings"]["counting"] and not agreement["overlap"] and not _has_scores(quality):
        yield "No item was rated by two people, so agreement cannot be measured; raise need for some items."
    alpha = agreement["alpha_nominal"]
    if alpha and alpha["n"] >= MIN_ANSWERS:
        low, high = alpha["ci"]
        estimate = f"alpha {alpha['value']:.2f}, 95%: {low:.2f} to {high:.2f}, {alpha['n']} items"
        if high < SLIGHT_ALPHA:
            yield (
                f"Labelers agree hardly more than by chance ({estimate}); look at the guideline, and at items on which "
                "they differ."
            )
        elif low <= 0:
            yield f"It is not known yet whether labelers agree more than by chance ({estimate}); rate more items twice."
    if biased := _side_preferred(position, BIAS_P_VALUE):
        yield f"Position bias: {biased}; sides are random, so labelers prefer that side."


def _side_preferred(position: Figures | None, p_value: float) -> str | None:
    """A text about a significant preference for a side that is large enough to matter; else None."""
    if not position or position["p_value"] >= p_value:
        return None
    (low, high), first = position["ci"], position["value"] > 0.5
    share, ends = (position["value"], (low, high)) if first else (1 - position["value"], (1 - high, 1 - low))
    if ends[0] <= MIN_BIAS:
        return None
    side = "first" if first else "second"
    return (
        f"the answer shown {side} was chosen in {share:.0%} of {position['n']} decisions (95%: {ends[0]:.0%} to "
        f"{ends[1]:.0%}, 50% without a bias)"
    )


def _has_scores(quality: Figures) -> bool:
    return any(value for scale in ("ranks", "scores") for value in quality["ordered"][scale].values())


def _individual(quality: Figures, labeler: str) -> Iterator[str]:
    labelers = quality["labelers"]
    own, name = labelers[labeler], one_line(labeler)
    position, gold, repeats, reliability = (own[key] for key in ("position", "gold", "self_agreement", "reliability"))
    tested = sum(labeler_quality["position"] is not None for labeler_quality in labelers.values())
    if len(labelers) > 1 and (biased := _side_preferred(position, BIAS_P_VALUE / max(1, tested))):
        yield f"{name}: {biased}."
    if gold and gold["items"] >= MIN_ANSWERS:
        limit = gold["guessing"] + GOLD_MARGIN * (1 - gold["guessing"])
        if gold["value"] <= gold["guessing"] or gold["ci"][1] < limit:
            yield (
                f"{name} is right on {round(gold['value'] * gold['n'])} of {gold['n']} "
                f"{'answers to ' * (gold['n'] > gold['items'])}gold items (95%: "
                f"{gold['ci'][0]:.0%} to {gold['ci'][1]:.0%}), where guessing gives {gold['guessing']:.0%}."
            )
    if repeats and repeats["n"] >= MIN_ANSWERS and repeats["value"] < MIN_SELF_AGREEMENT:
        same = round(repeats["value"] * repeats["n"])
        yield f"{name} gave the same answer to {same} of {repeats['n']} flipped repeats."
    if reliability and reliability["weight"] == 0 and reliability["overlaps"] >= MIN_ANSWERS:
        yield (
            f"{name} does not agree with the others measurably more than a coin does; their votes have weight 0 in "
            "training."
        )
    others = [
        labeler_quality["seconds"]["median"]
        for other, labeler_quality in labelers.items()
        if other != labeler and labeler_quality["seconds"]
    ]
    seconds = own["seconds"]
    usual = statistics.median(others) if others else 0
    if seconds and seconds["n"] >= MIN_ANSWERS and seconds["median"] < HASTY * usual:
        yield f"{name} takes {seconds['median']:.0f} s an answer where the others take {usual:.0f} s."
    total = own["rated"] + own["skips"]
    if own["skips"] >= MIN_ANSWERS and own["skips"] > MAX_SKIPS * total:
        yield f"{name} skipped {own['skips']} of {total} items."
