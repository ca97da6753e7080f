"""Items as their organiser looks them up: what is special about each, and everything that was said of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from alignment.errors import UserError
from alignment.ratings.records import NO_VOTES, Item, Rating
from alignment.ratings.refereeing import doubt, verdicts_of
from alignment.ratings.store import RatingsStore

Row = dict[str, Any]


def items_with(
    store: RatingsStore,
    flagged: bool = False,
    disputed: bool = False,
    commented: bool = False,
    labeler: str | None = None,
) -> list[Row]:
    """The items that have all that is asked for; with a labeler, that they have answered, flagged or commented on.

    Each row has the `item`'s number, its `kind`, whether it is `gold`, the number of `votes` it has and `need`s, what
    they `said`, as counts, how `disputed` it is (0 to 1/2), the `verdict`, counts of `flags` and `comments`, and the
    last turn of its `prompt`.
    """
    if labeler is not None:
        store.people.found(labeler)
    given: dict[int, list[Rating]] = {}
    for rating in store.ratings(skips=True):
        given.setdefault(rating.item, []).append(rating)
    rows = []
    for item in store.items():
        ratings = given.get(item.id, [])
        theirs = ratings if labeler is None else [rating for rating in ratings if rating.labeler == labeler]
        row = _row(item, ratings)
        if (
            (labeler is None or theirs)
            and (not flagged or any("flagged" in rating.flags for rating in theirs))
            and (not commented or any(rating.comment for rating in theirs))
            and (not disputed or row["disputed"] > 0)
        ):
            rows.append(row)
    return rows


def _row(item: Item, ratings: Sequence[Rating]) -> Row:
    votes = votes_of(ratings)
    verdict = verdicts_of(ratings).get(item.id)
    return {
        "item": item.id,
        "kind": item.kind,
        "gold": item.gold is not None,
        "votes": len(votes),
        "need": item.need,
        "said": dict(Counter(said(vote) for vote in votes).most_common()),
        "disputed": doubt(votes),
        "verdict": None if verdict is None else said(verdict),
        "flags": dict(Counter(flag for rating in ratings for flag in rating.flags)),
        "comments": sum(bool(rating.comment) for rating in ratings),
        "prompt": item.prompt[-1]["content"],
    }


def votes_of(ratings: Iterable[Rating]) -> list[Rating]:
    """The answers of labelers that count: no skips, controls and verdicts."""
    return [rating for rating in ratings if rating.why not in NO_VOTES and rating.choice != "skip"]


def said(rating: Rating) -> str:
    """An answer in short: `first`, `tie`, `2 > 1 = 3` (answers by number, best first), `5 of 7` or `skip`."""
    if rating.ranks is not None:
        places: dict[int, list[str]] = {}
        for number, rank in enumerate(rating.ranks, 1):
            places.setdefault(rank, []).append(str(number))
        return " > ".join(" = ".join(places[rank]) for rank in sorted(places))
    if rating.score is not None:
        return f"{rating.score} of 7" if rating.given is None else f"{rating.given:g}"
    return rating.choice


def one_item(store: RatingsStore, number: int) -> Row:
    """An item as labelers see it, and all that was answered, in the order of time; models are not named.

    Each of `ratings` has its labeler, times, order, guideline and so on, and `said`; and `after_votes`, whether it is a
    verdict that was changed after the referee had seen the votes.

    Raises:
        UserError: there is no such item.
    """
    item = next((each for each in store.items() if each.id == number), None)
    if item is None:
        numbers = store.desk.numbers()
        here = "the items have the numbers {} to {}".format(*numbers) if numbers else "it has no items"
        raise UserError(f"{store.path}: no item {number}; {here}")
    ratings = sorted(store.ratings(skips=True, item=number), key=lambda rating: (rating.done_at, rating.id))
    changed = store.desk.verdicts_changed(number)
    return {
        **_row(item, ratings),
        "created": item.created,
        "prompt": list(item.prompt),
        "completions": [{"text": each.text, "ended": each.ended} for each in item.completions],
        "gold": None if item.gold is None else asdict(item.gold),
        "ratings": [
            asdict(rating)
            | {"said": said(rating), "after_votes": rating.why == "verdict" and rating.labeler in changed}
            for rating in ratings
        ],
    }
