"""Label quality: agreement, biases and labelers. No model is named.

`alignment rate report` shows it, and the reward stage journals it (`label_events`) with labelers hashed.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.config.sections import DataConfig
from alignment.data.formats import Choice
from alignment.data.records import Comparison
from alignment.intervals import bootstrap_mean
from alignment.ratings import Item, Rating, RatingsStore, is_ratings_file
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
from alignment.ratings.grading import graded
from alignment.ratings.pairs import Pair, pairs_with_choices
from alignment.ratings.question_figures import question_figures
from alignment.ratings.reachable import agreement_shares
from alignment.ratings.records import CONTROLS, NO_VOTES, GradedAnswer
from alignment.ratings.warnings import warnings_of

Figures = dict[str, Any]


def report(store: RatingsStore, hashed: bool = False, labelers: Collection[str] = ()) -> Figures:
    """All statistics of a store, ready for JSON. A statistic that cannot be computed is None.

    Args:
        hashed: labelers are named by `People.labeler_hash`, as in models' manifests.
        labelers: the labelers whose ratings count, named as in the result; empty: everybody.

    A statistic with an interval is {"value", "ci" (95%), "n"}. Agreement, length and reliability cover the ratings that
    models are trained on; position, seconds and skips cover all answers.
    """
    items = {item.id: item for item in store.items()}
    ratings, simulated = store.ratings(skips=True), store.people.simulated()
    if hashed:
        ratings = [replace(rating, labeler=store.people.labeler_hash(rating.labeler)) for rating in ratings]
        simulated = frozenset(map(store.people.labeler_hash, simulated))
    if labelers:
        ratings = [rating for rating in ratings if rating.labeler in labelers]
    counting = [rating for rating in ratings if rating.why not in NO_VOTES and rating.choice != "skip"]
    pairs = list(pairs_with_choices(list(items.values()), counting))
    grades = _grades(store, items, ratings)
    quality: Figures = {
        "db": str(store.path),
        "items": _items(list(items.values()), counting),
        "ratings": {
            "counting": len(counting),
            "controls": sum(rating.why in CONTROLS and rating.choice != "skip" for rating in ratings),
            "verdicts": sum(rating.why == "verdict" and rating.choice != "skip" for rating in ratings),
            "skips": sum(rating.choice == "skip" for rating in ratings),
            "simulated": sorted(simulated & {rating.labeler for rating in ratings}),
        },
        "agreement": agreement([pair.choices for pair in pairs], [_prompt(pair.item) for pair in pairs]),
        "ordered": _ordered(items, counting),
        "questions": question_figures(items, counting),
        "position": _preference(preference(_first_shown(ratings))),
        "length": _longer(pairs),
        "seconds": _seconds(ratings),
        "flags": _flags(ratings),
        "gold": _by_question(grade for given in grades.values() for each in given for grade in each),
        "labelers": _labelers(grades, ratings, pairs),
    }
    return quality | {"warnings": warnings_of(quality)}


# --- counts --------------------------------------------------------------------------------------------------------


def _items(items: Sequence[Item], counting: Sequence[Rating]) -> Figures:
    """Counts of items, and of the answers to ordinary ones."""
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
    """Counts of flags and comments, and the flagged items."""
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
    """Agreement on choices between two answers: pair items, and each pair of answers of a ranking.

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
    """Agreement on ordered labels: strength, ranks and scores."""
    scales: dict[str, dict[Hashable, dict[str, int]]] = {"strength": {}, "ranks": {}, "scores": {}}
    for rating in counting:
        if rating.score is not None:
            scales["scores"].setdefault(rating.item, {})[rating.labeler] = rating.score
        for index, rank in enumerate(rating.ranks or ()):
            scales["ranks"].setdefault((rating.item, index), {})[rating.labeler] = rank
        if rating.choice in ("first", "second", "tie"):
            sign = {"first": 1, "second": -1, "tie": 0}[rating.choice]
            scales["strength"].setdefault(rating.item, {})[rating.labeler] = sign * (rating.strength or 2)
    alphas: Figures = {}
    for name, ballots in scales.items():
        groups = [_prompt(items[key[0] if isinstance(key, tuple) else key]) for key in ballots]  # type: ignore[index]
        alphas[name] = {"alpha_ordinal": alpha_estimate(list(ballots.values()), "ordinal", groups)}
        if name == "scores":
            alphas[name]["alpha_interval"] = alpha_estimate(list(ballots.values()), "interval", groups)
    return alphas


def _prompt(item: Item) -> Hashable:
    return tuple(turn["content"] for turn in item.prompt)


# --- biases --------------------------------------------------------------------------------------------------------


def _first_shown(ratings: Sequence[Rating]) -> list[bool]:
    """For each decided pair with a known display order, whether the answer shown first was chosen.

    Sides are random for each labeler, so without a bias each outcome is a fair coin. The sides of repeats are not
    random, so repeats are left out.
    """
    return [
        (rating.choice == "first") == (rating.order_shown[0] == 0)
        for rating in ratings
        if rating.choice in ("first", "second") and rating.order_shown and rating.why != "repeat"
    ]


def _preference(test: Preference | None) -> Figures | None:
    return {**test.share, "p_value": test.p_value} if test else None


def _longer(pairs: Sequence[Pair], labeler: str | None = None) -> Figures | None:
    """Fraction of decisions for the longer answer, if the lengths differ; the interval resamples prompts."""
    values, groups = [], []
    for pair in pairs:
        first_length, second_length = (len(pair.item.completions[index].text) for index in (pair.first, pair.second))
        for name, choice in pair.choices.items():
            if first_length != second_length and choice != "tie" and labeler in (None, name):
                values.append(float((choice == "first") == (first_length > second_length)))
                groups.append(_prompt(pair.item))
    return dict(bootstrap_mean(values, groups)) if values else None


# --- labelers ------------------------------------------------------------------------------------------------------


def _grades(
    store: RatingsStore, items: Mapping[int, Item], ratings: Sequence[Rating]
) -> dict[str, list[list[GradedAnswer]]]:
    """What each labeler's answers to gold items were, a list for each item; skips, and items with nothing to grade in
    what was asked, are left out."""
    asked = {version: store.settings.questionnaire(version) for version in {rating.questions for rating in ratings}}
    found: dict[str, list[list[GradedAnswer]]] = {}
    for rating in ratings:
        gold = items[rating.item].gold
        if gold is None or rating.why not in ("gold", "calibration"):
            continue
        if grades := list(graded(gold, rating, asked[rating.questions])):
            found.setdefault(rating.labeler, []).append(grades)
    return found


def _labelers(
    grades: Mapping[str, list[list[GradedAnswer]]], ratings: Sequence[Rating], pairs: Sequence[Pair]
) -> dict[str, Figures]:
    reliabilities = reliability([pair.choices for pair in pairs])
    by_labeler = {}
    for name in sorted({rating.labeler for rating in ratings}):
        own_ratings = [rating for rating in ratings if rating.labeler == name]
        answered = [rating for rating in own_ratings if rating.choice != "skip"]
        choices = [pair.choices[name] for pair in pairs if name in pair.choices]
        by_labeler[name] = {
            "rated": len(answered),
            "skips": len(own_ratings) - len(answered),
            "flags": dict(Counter(flag for rating in own_ratings for flag in rating.flags)),
            "seconds": _seconds(own_ratings),
            "ties": dict(wilson(choices.count("tie"), len(choices))) if choices else None,
            "position": _preference(preference(_first_shown(own_ratings))),
            "length": _longer(pairs, name),
            "gold": _gold([grade for each in grades.get(name, ()) for grade in each], len(grades.get(name, ()))),
            "self_agreement": _self_agreement(answered),
            "reliability": {
                "accuracy": None if math.isnan(reliabilities.accuracy[name]) else reliabilities.accuracy[name],
                "overlaps": reliabilities.overlaps[name],
                "weight": reliabilities.weights[name],
            }
            if name in reliabilities.weights
            else None,
        }
    return by_labeler


def _gold(grades: Sequence[GradedAnswer], items: int) -> Figures | None:
    """Fraction of the answers to `items` gold items that are right (see `alignment.ratings.grading`), choices and
    questions together, and its p-value under guessing."""
    if not grades:
        return None
    right, guessing = sum(each.right for each in grades), statistics.fmean(each.guessing for each in grades)
    p_value = binomial_test(right, len(grades), guessing)
    return {**wilson(right, len(grades)), "items": items, "guessing": guessing, "p_value": p_value}


def _by_question(grades: Iterable[GradedAnswer]) -> Figures:
    """Fraction of the answers to gold items that are right, of everybody together, by the question."""
    found: dict[str, list[bool]] = {}
    for each in grades:
        found.setdefault(each.name, []).append(each.right)
    return {name: dict(wilson(sum(right), len(right))) for name, right in found.items()}


def _self_agreement(answered: Sequence[Rating]) -> Figures | None:
    """Fraction of repeated pairs, with the sides flipped, that the labeler answered the same way."""
    first_answers = {rating.item: rating.choice for rating in answered if rating.why != "repeat"}
    same = [
        rating.choice == first_answers[rating.item]
        for rating in answered
        if rating.why == "repeat" and rating.item in first_answers
    ]
    return dict(wilson(sum(same), len(same))) if same else None


# --- in the journal of a run -----------------------------------------------------------------------------------------


def label_events(
    config: DataConfig, comparisons: Sequence[Comparison], labelers: Collection[str] = ()
) -> Iterator[Figures]:
    """Yield the fields of `labels` events: one for each ratings file of a run, or one for the other files together if
    they name the voters. Labelers are hashed; models and texts are left out.

    Args:
        labelers: the labelers whose ratings are trained on (`reward.labelers.resolved`); empty: everybody.
    """
    for part in config.parts:
        if is_ratings_file(part.path):
            with RatingsStore(part.path) as store:
                yield _event_fields(store.path.name, report(store, hashed=True, labelers=labelers))
    if not any(is_ratings_file(part.path) for part in config.parts):
        named = [row for row in comparisons if all(vote.labeler for vote in row.votes)]
        ballots = [{str(vote.labeler): vote.choice for vote in row.votes} for row in named]
        if any(len(ballot) > 1 for ballot in ballots):
            yield {"source": "votes", **_agreement_fields(agreement(ballots, [row.group for row in named]))}


def _agreement_fields(metrics: Figures) -> Figures:
    kappas = [kappa["value"] for kappa in metrics["cohen_kappa"]]
    return {
        "overlap": metrics["overlap"],
        "alpha": metrics["alpha_nominal"],
        "fleiss_kappa": metrics["fleiss_kappa"],
        "cohen_kappa": {"median": statistics.median(kappas), "min": min(kappas), "n": len(kappas)} if kappas else None,
        "three_way": metrics["three_way"],
        "one_human": metrics["one_human"],
        "best_reachable": metrics["best_reachable"],
    }


def _event_fields(source: str, quality: Figures) -> Figures:
    labelers = {
        name: {
            "rated": labeler["rated"],
            "skips": labeler["skips"],
            "seconds": labeler["seconds"] and labeler["seconds"]["median"],
            "position": labeler["position"],
            "weight": labeler["reliability"] and labeler["reliability"]["weight"],
        }
        for name, labeler in quality["labelers"].items()
    }
    return {
        "source": source,
        "ratings": quality["ratings"] | {"simulated": len(quality["ratings"]["simulated"])},
        **_agreement_fields(quality["agreement"]),
        "position": quality["position"],
        "length": quality["length"],
        "seconds": quality["seconds"],
        "labelers": labelers,
        "warnings": quality["warnings"],
    }


def label_metrics(event: Figures) -> dict[str, float]:
    """The metrics of a `labels` event, by their declared names."""
    estimates = {
        name: event.get(name) for name in ("alpha", "three_way", "one_human", "best_reachable", "position", "length")
    }
    metrics = {f"labels/{name}": estimate["value"] for name, estimate in estimates.items() if estimate}
    if event.get("seconds"):
        metrics["labels/seconds"] = event["seconds"]["median"]
    if "ratings" in event:
        metrics["labels/answers"] = float(event["ratings"]["counting"])
    return metrics
