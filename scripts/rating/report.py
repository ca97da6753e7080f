"""How good the ratings are: what `rate.py report` computes and shows. No model is named in it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.intervals import bootstrap_mean
from alignment.ratings import Gold, Item, Rating, RatingsStore, is_right
from alignment.ratings.records import CONTROLS
from alignment.terminal import one_line
from rating.pairs import Pair, judged_pairs
from rating.warnings import warnings_of
from reward.agreement import (
    Ballot,
    Preference,
    alpha_estimate,
    binomial_test,
    cohen_kappas,
    dawid_skene,
    fleiss_kappa,
    human_ceiling,
    preference,
    three_way_agreement,
    vote_weights,
    wilson,
)

Figures = dict[str, Any]


def report(store: RatingsStore) -> Figures:
    """All figures of a store, ready for JSON. A figure that cannot be computed is None.

    A figure with an interval is {"value", "ci" (95%), "n"}. Agreement, length and reliability are of the ratings that
    models learn from; position, seconds and skips of all that labelers did here.
    """
    items = {item.id: item for item in store.items()}
    ratings = store.ratings(skips=True)
    counting = [rating for rating in ratings if rating.why not in CONTROLS and rating.choice != "skip"]
    pairs = list(judged_pairs(list(items.values()), counting))
    found: Figures = {
        "db": str(store.path),
        "items": _items(list(items.values()), counting),
        "ratings": {
            "counting": len(counting),
            "controls": sum(rating.why in CONTROLS and rating.choice != "skip" for rating in ratings),
            "skips": sum(rating.choice == "skip" for rating in ratings),
            "simulated": sorted(store.simulated() & {rating.labeler for rating in ratings}),
        },
        "agreement": _agreement(pairs),
        "ordered": _ordered(items, counting),
        "position": _preference(preference(_first_shown(ratings))),
        "length": _longer(pairs),
        "seconds": _seconds(ratings),
        "flags": _flags(ratings),
        "labelers": _labelers(items, ratings, pairs),
    }
    return found | {"warnings": warnings_of(found)}


# --- what there is -------------------------------------------------------------------------------------------------


def _items(items: Sequence[Item], counting: Sequence[Rating]) -> Figures:
    """How many items there are, and how many answers the ordinary ones have."""
    answers = Counter(rating.item for rating in counting)
    ordinary = [item for item in items if item.gold is None]
    return {
        "kinds": dict(Counter(item.kind for item in ordinary)),
        "gold": len(items) - len(ordinary),
        "answers": dict(sorted(Counter(answers[item.id] for item in ordinary).items())),
        "complete": sum(answers[item.id] >= item.need for item in ordinary),
        "wanted": sum(max(0, item.need - answers[item.id]) for item in ordinary),
    }


def _flags(ratings: Sequence[Rating]) -> Figures:
    """How often each flag was set, and the items that somebody should look at."""
    return {
        "counts": dict(Counter(flag for rating in ratings for flag in rating.flags)),
        "comments": sum(bool(rating.comment) for rating in ratings),
        "look_at": sorted({rating.item for rating in ratings if "flagged" in rating.flags}),
    }


def _seconds(ratings: Sequence[Rating]) -> Figures | None:
    times = [rating.seconds for rating in ratings if rating.seconds is not None and rating.choice != "skip"]
    if not times:
        return None
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median": middle, "quartiles": (low, high), "n": len(times)}


# --- agreement -----------------------------------------------------------------------------------------------------


def _agreement(pairs: Sequence[Pair]) -> Figures:
    """Of choices between two answers: pair items, and each two answers of a ranking."""
    ballots: list[Ballot] = [pair.choices for pair in pairs]
    groups = [_prompt(pair.item) for pair in pairs]
    fleiss = fleiss_kappa(ballots)
    ceiling = human_ceiling([list(pair.choices.values()) for pair in pairs], groups)
    return {
        "overlap": sum(len(ballot) >= 2 for ballot in ballots),
        "alpha_nominal": alpha_estimate(ballots, "nominal", groups),
        "fleiss_kappa": fleiss._asdict() if fleiss else None,
        "cohen_kappa": [{"labelers": list(names), **kappa._asdict()} for names, kappa in cohen_kappas(ballots).items()],
        "three_way": three_way_agreement(ballots, groups),
        "human_ceiling": ceiling.accuracy if ceiling else None,
    }


def _ordered(items: dict[int, Item], counting: Sequence[Rating]) -> Figures:
    """Agreement where labels have an order: how much better, which rank, which score."""
    scales: dict[str, dict[Hashable, dict[str, int]]] = {"strength": {}, "ranks": {}, "scores": {}}
    for rating in counting:
        if rating.score is not None:
            scales["scores"].setdefault(rating.item, {})[rating.labeler] = rating.score
        for place, rank in enumerate(rating.ranks or ()):
            scales["ranks"].setdefault((rating.item, place), {})[rating.labeler] = rank
        if rating.choice in ("first", "second", "tie"):
            sign = {"first": 1, "second": -1, "tie": 0}[rating.choice]
            scales["strength"].setdefault(rating.item, {})[rating.labeler] = sign * (rating.strength or 2)
    found: Figures = {}
    for name, ballots in scales.items():
        groups = [_prompt(items[key[0] if isinstance(key, tuple) else key]) for key in ballots]  # type: ignore[index]
        found[name] = {"alpha_ordinal": alpha_estimate(list(ballots.values()), "ordinal", groups)}
        if name == "scores":
            found[name]["alpha_interval"] = alpha_estimate(list(ballots.values()), "interval", groups)
    return found


def _prompt(item: Item) -> Hashable:
    return tuple(turn["content"] for turn in item.prompt)


# --- habits --------------------------------------------------------------------------------------------------------


def _first_shown(ratings: Sequence[Rating]) -> list[bool]:
    """Of each decided pair whose order on the screen is known: whether the answer shown first was chosen.

    Sides are drawn anew for each labeler, so that without a bias each is a fair coin. Repeats are not drawn.
    """
    return [
        (rating.choice == "first") == (rating.order_shown[0] == 0)
        for rating in ratings
        if rating.choice in ("first", "second") and rating.order_shown and rating.why != "repeat"
    ]


def _preference(found: Preference | None) -> Figures | None:
    return {**found.share, "p_value": found.p_value} if found else None


def _longer(pairs: Sequence[Pair], labeler: str | None = None) -> Figures | None:
    """Share of decisions for the answer with more characters, where they differ; the interval is by prompt."""
    values, groups = [], []
    for pair in pairs:
        one, other = (len(pair.item.completions[place].text) for place in (pair.first, pair.second))
        for name, choice in pair.choices.items():
            if one != other and choice != "tie" and labeler in (None, name):
                values.append(float((choice == "first") == (one > other)))
                groups.append(_prompt(pair.item))
    return dict(bootstrap_mean(values, groups)) if values else None


# --- labelers ------------------------------------------------------------------------------------------------------


def _labelers(items: dict[int, Item], ratings: Sequence[Rating], pairs: Sequence[Pair]) -> dict[str, Figures]:
    ballots: list[Ballot] = [pair.choices for pair in pairs]
    coin = dawid_skene(ballots)
    weights = vote_weights(coin)
    found = {}
    for name in sorted({rating.labeler for rating in ratings}):
        mine = [rating for rating in ratings if rating.labeler == name]
        answered = [rating for rating in mine if rating.choice != "skip"]
        choices = [pair.choices[name] for pair in pairs if name in pair.choices]
        found[name] = {
            "rated": len(answered),
            "skips": len(mine) - len(answered),
            "flags": dict(Counter(flag for rating in mine for flag in rating.flags)),
            "seconds": _seconds(mine),
            "ties": dict(wilson(choices.count("tie"), len(choices))) if choices else None,
            "position": _preference(preference(_first_shown(mine))),
            "length": _longer(pairs, name),
            "gold": _gold(items, answered),
            "self_agreement": _self_agreement(answered),
            "reliability": {
                "accuracy": None if math.isnan(coin.accuracy[name]) else coin.accuracy[name],
                "overlaps": coin.overlaps[name],
                "weight": weights[name],
            }
            if name in weights
            else None,
        }
    return found


def _gold(items: dict[int, Item], answered: Sequence[Rating]) -> Figures | None:
    """Share of control items answered right (see `alignment.ratings.is_right`), and the p-value of blind guessing."""
    told = [
        (gold, is_right(gold, rating.choice, rating.ranks, rating.score))
        for rating in answered
        if (gold := items[rating.item].gold) is not None and rating.why in ("gold", "calibration")
    ]
    if not told:
        return None
    right = sum(each for _, each in told)
    guess = statistics.fmean(_guess(gold) for gold, _ in told)
    return {**wilson(right, len(told)), "guessing": guess, "p_value": binomial_test(right, len(told), guess)}


def _guess(gold: Gold) -> float:
    """How often a blind guess is right: one side of a pair, an order without ties, one of seven scores."""
    if gold.ranks is not None:
        alike = math.prod(math.factorial(count) for count in Counter(gold.ranks).values())
        return alike / math.factorial(len(gold.ranks)) if len(set(gold.ranks)) > 1 else 0.5
    if gold.score is not None:
        return sum(abs(score - gold.score) <= 1 for score in range(1, 8)) / 7
    return 1 / 2


def _self_agreement(answered: Sequence[Rating]) -> Figures | None:
    """Share of own pairs answered the same when they came again with the sides flipped."""
    before = {rating.item: rating.choice for rating in answered if rating.why != "repeat"}
    same = [rating.choice == before[rating.item] for rating in answered if _is_again(rating, before)]
    return dict(wilson(sum(same), len(same))) if same else None


def _is_again(rating: Rating, before: dict[int, Any]) -> bool:
    return rating.why == "repeat" and rating.item in before


# --- on the screen -------------------------------------------------------------------------------------------------

NAME_WIDTH = 16
MAX_KAPPAS = 6
NONE = "-   nothing to compute it from"


def show(found: Figures, console: Console) -> None:
    """Print a report, readable at 80 columns."""
    items, ratings = found["items"], found["ratings"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in items["kinds"].items()) or "none"
    _line(console, "Items", f"{kinds}; {items['gold']} gold")
    _line(
        console,
        "Answers",
        f"{ratings['counting']} that count, {ratings['controls']} controls, {ratings['skips']} skips",
    )
    depth = ", ".join(f"{count} with {number}" for number, count in items["answers"].items())
    _line(console, "Overlap", f"{depth}; {items['complete']} complete, {items['wanted']} answers still wanted")
    if ratings["simulated"]:
        _line(console, "Programs", f"{', '.join(map(one_line, ratings['simulated']))}: simulated, not people")
    _show_agreement(found, console)
    _show_habits(found, console)
    if found["labelers"]:
        _show_labelers(found["labelers"], console)
    console.print()
    if not found["warnings"]:
        console.print("Nothing to worry about was found.")
    for warning in found["warnings"]:
        console.print(Text.assemble(("! ", "bold red"), warning))


def _line(console: Console, name: str, said: str) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=22, no_wrap=True)
    table.add_column()
    table.add_row(Text(name, style="bold"), Text(said))
    console.print(table)


def _show_agreement(found: Figures, console: Console) -> None:
    agreement, ordered = found["agreement"], found["ordered"]
    console.print(Text("\nAgreement on which of two answers is better", style="bold underline"))
    _line(console, "Krippendorff's alpha", _estimate(agreement["alpha_nominal"], "with 2 votes or more"))
    fleiss = agreement["fleiss_kappa"]
    _line(console, "Fleiss' kappa", f"{fleiss['value']:.4f}   {fleiss['n']} items" if fleiss else NONE)
    kappas = sorted(agreement["cohen_kappa"], key=lambda kappa: kappa["value"])
    if len(kappas) > MAX_KAPPAS:
        middle = statistics.median(kappa["value"] for kappa in kappas)
        _line(console, "Cohen's kappa", f"{middle:.4f} in the middle of {len(kappas)} pairs of labelers; the lowest:")
        kappas = kappas[: MAX_KAPPAS // 2]
    for kappa in kappas:
        names = ", ".join(map(one_line, kappa["labelers"]))
        _line(console, "Cohen's kappa", f"{kappa['value']:.4f}   {kappa['n']} items: {names}")
    _line(console, "All three agree", _estimate(agreement["three_way"], "with 3 votes or more"))
    _line(console, "One against the rest", _estimate(agreement["human_ceiling"], "votes: a model's ceiling"))
    scales = {"strength": "pairs, by strength", "ranks": "ranked answers", "scores": "scored answers"}
    for name, words in scales.items():
        for level, value in ordered[name].items():
            if value is not None:
                kind = level.removeprefix("alpha_")
                _line(console, f"alpha, {kind}", _estimate(value, words))


def _show_habits(found: Figures, console: Console) -> None:
    console.print(Text("\nHabits", style="bold underline"))
    position = found["position"]
    p_value = f", p = {position['p_value']:.2g}" if position else ""
    _line(console, "Chose what came first", _percent(position, f"decided pairs{p_value}"))
    _line(console, "Chose the longer one", _percent(found["length"], "decisions"))
    seconds = found["seconds"]
    if seconds:
        low, high = seconds["quartiles"]
        said = f"{seconds['median']:.0f}, half of them {low:.0f} to {high:.0f}   {seconds['n']} answers"
        _line(console, "Seconds an answer", said)
    flags = found["flags"]
    if flags["counts"] or flags["comments"]:
        counts = ", ".join(f"{count} {one_line(flag)}" for flag, count in flags["counts"].items())
        _line(console, "Flags", f"{counts or 'none'}; {flags['comments']} comments")
    if flags["look_at"]:
        shown = ", ".join(map(str, flags["look_at"][:10])) + (", ..." if len(flags["look_at"]) > 10 else "")
        _line(console, "Items to look at", shown)


def _estimate(found: Figures | None, counted: str) -> str:
    if found is None:
        return NONE
    low, high = found["ci"]
    return f"{found['value']:.4f} [{low:.3f}, {high:.3f}]   {found['n']} {counted}"


def _percent(found: Figures | None, counted: str) -> str:
    if found is None:
        return NONE
    low, high = found["ci"]
    return f"{found['value']:.1%} [{low:.1%}, {high:.1%}]   {found['n']} {counted}"


def _show_labelers(labelers: dict[str, Figures], console: Console) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(Text("labeler", style="bold"), width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    for name in ("rated", "skip", "sec", "first", "longer", "gold", "self", "right", "weight"):
        table.add_column(Text(name, style="bold"), justify="right", no_wrap=True)
    for name, mine in labelers.items():
        trusted = mine["reliability"]
        table.add_row(
            Text(one_line(name)),
            str(mine["rated"]),
            str(mine["skips"]),
            f"{mine['seconds']['median']:.0f}" if mine["seconds"] else "-",
            *(f"{mine[key]['value']:.0%}" if mine[key] else "-" for key in ("position", "length")),
            *(_of(mine[key]) for key in ("gold", "self_agreement")),
            f"{trusted['accuracy']:.3f}" if trusted and trusted["accuracy"] is not None else "-",
            f"{trusted['weight']:.2f}" if trusted else "-",
        )
    console.print()
    console.print(table)
    console.print(
        Text(
            "first, longer: share of decisions for the answer shown first, for the longer one. gold, self: right on "
            "control items, the same on flipped repeats. right: probability that their choice is the true one, from "
            "the overlap (Dawid-Skene). weight: of their votes in training.",
            style="dim",
        )
    )


def _of(found: Figures | None) -> str:
    return f"{round(found['value'] * found['n'])}/{found['n']}" if found else "-"
