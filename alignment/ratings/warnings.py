"""What in a report a person should know, in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from alignment.terminal import one_line

Figures = dict[str, Any]

ENOUGH = 10
"""Answers of a kind from which a labeler is told on for them; fewer say nothing."""
BIAS = 0.01
"""p-value below which a preference for a side is no accident; shared among the labelers that are tested."""
MATTERS = 0.55
"""Share of decisions for one side from which its whole 95% interval must lie: with thousands of decisions a preference
of 52% is no accident, and harms nothing."""
HALF_WAY = 0.5
"""Where between guessing and all right the whole 95% interval of a labeler's gold answers must lie below."""
SLIGHT = 0.2
"""Krippendorff's alpha below which people agree slightly at best (Landis and Koch 1977, of kappa)."""
HURRY = 1 / 3
"""Share of the others' median seconds below which a labeler hurries."""
STEADY = 0.6
"""Share of own repeats answered the same below which a labeler contradicts themselves."""
SKIPS = 0.25
"""Share of skips from which they are worth a word."""


def warnings_of(found: Figures) -> list[str]:
    """Sentences, the gravest first; none where nothing was found."""
    return [*_of_all(found), *(warning for name in found["labelers"] for warning in _of_one(found, name))]


def _of_all(found: Figures) -> Iterator[str]:
    agreement, position = found["agreement"], found["position"]
    simulated = found["ratings"]["simulated"]
    if simulated:
        names = ", ".join(map(one_line, simulated))
        yield f"Some ratings are made by programs ({names}); a model trained on them says so."
    if found["ratings"]["counting"] and not agreement["overlap"] and not _has_scores(found):
        yield "Nothing was rated by two people, so nobody knows how far they agree; raise need for some items."
    alpha = agreement["alpha_nominal"]
    if alpha and alpha["n"] >= ENOUGH:
        low, high = alpha["ci"]
        said = f"alpha {alpha['value']:.2f}, 95%: {low:.2f} to {high:.2f}, {alpha['n']} items"
        if high < SLIGHT:
            yield (
                f"Labelers agree hardly more than by chance ({said}); look at the guideline, and at items that they "
                "see differently."
            )
        elif low <= 0:
            yield f"It is not known yet whether labelers agree more than by chance ({said}); rate more items twice."
    if biased := _side_preferred(position, BIAS):
        yield f"Position bias: {biased}; sides are random, so this is habit."


def _side_preferred(position: Figures | None, p_value: float) -> str | None:
    """A preference for a side that is no accident and large enough to matter, with its size; else None."""
    if not position or position["p_value"] >= p_value:
        return None
    (low, high), first = position["ci"], position["value"] > 0.5
    share, ends = (position["value"], (low, high)) if first else (1 - position["value"], (1 - high, 1 - low))
    if ends[0] <= MATTERS:
        return None
    side = "first" if first else "second"
    return (
        f"the answer shown {side} was chosen in {share:.0%} of {position['n']} decisions (95%: {ends[0]:.0%} to "
        f"{ends[1]:.0%}, 50% without a bias)"
    )


def _has_scores(found: Figures) -> bool:
    return any(value for scale in ("ranks", "scores") for value in found["ordered"][scale].values())


def _of_one(found: Figures, labeler: str) -> Iterator[str]:
    labelers = found["labelers"]
    mine, name = labelers[labeler], one_line(labeler)
    position, gold, again, trusted = (mine[key] for key in ("position", "gold", "self_agreement", "reliability"))
    tested = sum(each["position"] is not None for each in labelers.values())
    if len(labelers) > 1 and (biased := _side_preferred(position, BIAS / max(1, tested))):
        yield f"{name}: {biased}."
    if gold and gold["n"] >= ENOUGH:
        limit = gold["guessing"] + HALF_WAY * (1 - gold["guessing"])
        if gold["value"] <= gold["guessing"] or gold["ci"][1] < limit:
            yield (
                f"{name} is right on {round(gold['value'] * gold['n'])} of {gold['n']} gold items (95%: "
                f"{gold['ci'][0]:.0%} to {gold['ci'][1]:.0%}), where guessing gives {gold['guessing']:.0%}."
            )
    if again and again["n"] >= ENOUGH and again["value"] < STEADY:
        yield f"{name} gave the same answer to {round(again['value'] * again['n'])} of {again['n']} flipped repeats."
    if trusted and trusted["weight"] == 0 and trusted["overlaps"] >= ENOUGH:
        yield (
            f"{name} is not shown to agree with the others more often than a coin does; their votes weigh nothing in "
            "training."
        )
    others = [each["seconds"]["median"] for who, each in labelers.items() if who != labeler and each["seconds"]]
    seconds = mine["seconds"]
    usual = statistics.median(others) if others else 0
    if seconds and seconds["n"] >= ENOUGH and seconds["median"] < HURRY * usual:
        yield f"{name} takes {seconds['median']:.0f} s an answer where the others take {usual:.0f} s."
    seen = mine["rated"] + mine["skips"]
    if mine["skips"] >= ENOUGH and mine["skips"] > SKIPS * seen:
        yield f"{name} skipped {mine['skips']} of {seen} items."
