"""How good the ratings are: agreement, habits and labelers, in plain numbers. No model is named in it.

`alignment rate report` shows them, and the reward stage journals them (`journalled`) with labelers hashed.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.config.sections import DataConfig
from alignment.data.formats import Choice
from alignment.data.records import Comparison
from alignment.intervals import bootstrap_mean
from alignment.ratings import Gold, Item, Rating, RatingsStore, is_ratings_file, is_right
from alignment.ratings.agreement import (
    Preference,
    alpha_estimate,
    binomial_test,
    cohen_kappas,
    fleiss_kappa,
    preference,
    reliability,
    three_way_agreement,
    wilson,
)
from alignment.ratings.pairs import Pair, judged_pairs
from alignment.ratings.reachable import agreement_shares
from alignment.ratings.records import CONTROLS
from alignment.ratings.warnings import warnings_of

Figures = dict[str, Any]


def report(store: RatingsStore, hashed: bool = False, labelers: Collection[str] = ()) -> Figures:
    """All figures of a store, ready for JSON. A figure that cannot be computed is None.

    Args:
        hashed: labelers are named as in models' manifests (`RatingsStore.labeler_hash`), not by their names.
        labelers: whose ratings count, named as in the result; empty: everybody's.

    A figure with an interval is {"value", "ci" (95%), "n"}. Agreement, length and reliability are of the ratings that
    models learn from; position, seconds and skips of all that labelers did here.
    """
    items = {item.id: item for item in store.items()}
    ratings, simulated = store.ratings(skips=True), store.simulated()
    if hashed:
        ratings = [replace(rating, labeler=store.labeler_hash(rating.labeler)) for rating in ratings]
        simulated = frozenset(map(store.labeler_hash, simulated))
    if labelers:
        ratings = [rating for rating in ratings if rating.labeler in labelers]
    counting = [rating for rating in ratings if rating.why not in CONTROLS and rating.choice != "skip"]
    pairs = list(judged_pairs(list(items.values()), counting))
    found: Figures = {
        "db": str(store.path),
        "items": _items(list(items.values()), counting),
        "ratings": {
            "counting": len(counting),
            "controls": sum(rating.why in CONTROLS and rating.choice != "skip" for rating in ratings),
            "skips": sum(rating.choice == "skip" for rating in ratings),
            "simulated": sorted(simulated & {rating.labeler for rating in ratings}),
        },
        "agreement": agreement([pair.choices for pair in pairs], [_prompt(pair.item) for pair in pairs]),
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


def agreement(ballots: Sequence[Mapping[str, Choice]], groups: Sequence[Hashable]) -> Figures:
    """Of choices between two answers: pair items, and each two answers of a ranking.

    Args:
        groups: the prompt of each ballot.
    """
    fleiss = fleiss_kappa(ballots)
    votes, labelers = [list(ballot.values()) for ballot in ballots], [list(ballot) for ballot in ballots]
    shares = agreement_shares(votes, groups, labelers=labelers)
    return {
        "overlap": sum(len(ballot) >= 2 for ballot in ballots),
        "alpha_nominal": alpha_estimate(ballots, "nominal", groups),
        "fleiss_kappa": fleiss._asdict() if fleiss else None,
        "cohen_kappa": [{"labelers": list(names), **kappa._asdict()} for names, kappa in cohen_kappas(ballots).items()],
        "three_way": three_way_agreement(ballots, groups),
        "one_human": shares.one_human if shares else None,
        "best_reachable": shares.best if shares else None,
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
    trusted = reliability([pair.choices for pair in pairs])
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
                "accuracy": None if math.isnan(trusted.accuracy[name]) else trusted.accuracy[name],
                "overlaps": trusted.overlaps[name],
                "weight": trusted.weights[name],
            }
            if name in trusted.weights
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


# --- in the journal of a run -----------------------------------------------------------------------------------------


def journalled(
    config: DataConfig, comparisons: Sequence[Comparison], labelers: Collection[str] = ()
) -> Iterator[Figures]:
    """The fields of `labels` events: of each ratings database that a run learns from, and of the other files together
    if they say who voted. Labelers are hashed, models and texts not in it.

    Args:
        labelers: those whose ratings are learned from (`reward.labelers.resolved`); empty: everybody.
    """
    for part in config.parts:
        if is_ratings_file(part.path):
            with RatingsStore(part.path) as store:
                yield _shortened(store.path.name, report(store, hashed=True, labelers=labelers))
    if not any(is_ratings_file(part.path) for part in config.parts):
        named = [row for row in comparisons if all(vote.labeler for vote in row.votes)]
        ballots = [{str(vote.labeler): vote.choice for vote in row.votes} for row in named]
        if any(len(ballot) > 1 for ballot in ballots):
            yield {"source": "votes", **_agreement_figures(agreement(ballots, [row.group for row in named]))}


def _agreement_figures(found: Figures) -> Figures:
    kappas = [kappa["value"] for kappa in found["cohen_kappa"]]
    return {
        "overlap": found["overlap"],
        "alpha": found["alpha_nominal"],
        "fleiss_kappa": found["fleiss_kappa"],
        "cohen_kappa": {"median": statistics.median(kappas), "min": min(kappas), "n": len(kappas)} if kappas else None,
        "three_way": found["three_way"],
        "one_human": found["one_human"],
        "best_reachable": found["best_reachable"],
    }


def _shortened(source: str, found: Figures) -> Figures:
    labelers = {
        name: {
            "rated": of["rated"],
            "skips": of["skips"],
            "seconds": of["seconds"] and of["seconds"]["median"],
            "position": of["position"],
            "weight": of["reliability"] and of["reliability"]["weight"],
        }
        for name, of in found["labelers"].items()
    }
    return {
        "source": source,
        "ratings": found["ratings"] | {"simulated": len(found["ratings"]["simulated"])},
        **_agreement_figures(found["agreement"]),
        "position": found["position"],
        "length": found["length"],
        "seconds": found["seconds"],
        "labelers": labelers,
        "warnings": found["warnings"],
    }


def as_metrics(found: Figures) -> dict[str, float]:
    """The figures of a `labels` event that dashboards show as metrics, by their declared names."""
    named = {
        name: found.get(name) for name in ("alpha", "three_way", "one_human", "best_reachable", "position", "length")
    }
    metrics = {f"labels/{name}": estimate["value"] for name, estimate in named.items() if estimate}
    if found.get("seconds"):
        metrics["labels/seconds"] = found["seconds"]["median"]
    if "ratings" in found:
        metrics["labels/answers"] = float(found["ratings"]["counting"])
    return metrics
