"""How far a rating is: who rates and how fast, what is left and until when, and how far labelers agree so far."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from alignment.ratings.agreement import Label, alpha_estimate
from alignment.ratings.desk import Activity, OpenItem
from alignment.ratings.items import votes_of
from alignment.ratings.names import near
from alignment.ratings.pairs import pairs_with_choices
from alignment.ratings.records import Item, Rating
from alignment.ratings.setup_warnings import setup_warnings
from alignment.ratings.store import RatingsStore

Row = dict[str, Any]

DAY = 86400.0
WINDOW_DAYS = 7
"""The pace is that of so many last days, with nights and pauses."""
MIN_VOTES = 10
"""Fewer votes make no pace."""
RESAMPLES = 200


def labelers_of(store: RatingsStore, now: float | None = None) -> list[Row]:
    """Everybody who has rated or has a link, by name.

    `hash` is the name in reports and manifests; `invited` is the time of the open link; `began` and `seen` are None if
    they have done nothing here; `answers` are votes, and `controls`, `verdicts` and `skips` stand beside them;
    `seconds` is the median of an answer; `a_day` counts votes a day, over the last seven days or since they began;
    `agreement` is the fraction of other labelers' votes on the same pairs that are theirs too (scores: within a
    point), with `n` votes compared.
    """
    return _labelers(store, store.items(), store.ratings(), time.time() if now is None else now)


def _labelers(store: RatingsStore, items: Sequence[Item], ratings: Sequence[Rating], now: float) -> list[Row]:
    activity, invited, people = store.desk.activity(), store.people.invitations(), store.people
    recent = store.desk.votes_since(now - WINDOW_DAYS * DAY)
    referees, programs = people.referees(), people.simulated()
    compared = _compared(items, ratings)
    seconds: dict[str, list[float]] = {}
    for rating in ratings:
        if rating.seconds is not None:
            seconds.setdefault(rating.labeler, []).append(rating.seconds)
    rows = []
    for name in people.known():
        done = activity.get(name, Activity(0, 0, 0, 0, None, None))
        span = min(WINDOW_DAYS * DAY, now - done.began) if done.began is not None else 0.0
        rows.append(
            {
                "labeler": name,
                "hash": people.labeler_hash(name),
                "answers": done.votes,
                "controls": done.controls,
                "verdicts": done.verdicts,
                "skips": done.skips,
                "seconds": statistics.median(seconds[name]) if name in seconds else None,
                "a_day": recent.get(name, 0) * DAY / max(span, DAY) if done.began is not None else None,
                "agreement": _share(compared.get(name, ())),
                "invited": invited.get(name),
                "began": done.began,
                "seen": done.seen,
                "referee": name in referees,
                "simulated": name in programs,
            }
        )
    return rows


def _compared(items: Sequence[Item], ratings: Sequence[Rating]) -> dict[str, list[bool]]:
    """For each labeler, whether each vote of another one on the same answers is theirs too."""
    votes = votes_of(ratings)
    found: dict[str, list[bool]] = {}
    for pair in pairs_with_choices(items, votes):
        for one, other in combinations(pair.choices, 2):
            for name in (one, other):
                found.setdefault(name, []).append(pair.choices[one] == pair.choices[other])
    for scores in _scores(votes).values():
        for one, other in combinations(scores, 2):
            for name in (one, other):
                found.setdefault(name, []).append(abs(scores[one] - scores[other]) <= 1)
    return found


def _scores(votes: Sequence[Rating]) -> dict[int, dict[str, int]]:
    scores: dict[int, dict[str, int]] = {}
    for vote in votes:
        if vote.score is not None:
            scores.setdefault(vote.item, {})[vote.labeler] = vote.score
    return scores


def _share(same: Sequence[bool]) -> Row | None:
    return {"value": sum(same) / len(same), "n": len(same)} if same else None


def progress_of(store: RatingsStore, now: float | None = None) -> Row:
    """How the rating stands.

    `items` are the ordinary ones, `complete` those with all their votes; `votes` so far and `left`; `disputed` items
    and those `undecided`; `pace` (see `pace_of`), `hours`, which the votes left take at the median `seconds`;
    `agreement`, Krippendorff's alpha of `choices` and of `scores`; `labelers` (see `labelers_of`); `warnings`, in
    words.
    """
    now = time.time() if now is None else now
    items, ratings, wanted = store.items(), store.ratings(), store.desk.wanted()
    people = _labelers(store, items, ratings, now)
    ordinary = [item for item in items if item.gold is None]
    left = sum(each.missing for each in wanted)
    votes = votes_of(ratings)
    times = [rating.seconds for rating in votes if rating.seconds is not None]
    number, undecided = store.desk.disputes()
    median = statistics.median(times) if times else None
    return {
        "db": str(store.path),
        "at": now,
        "items": len(ordinary),
        "complete": len(ordinary) - len(wanted),
        "votes": len(votes),
        "left": left,
        "seconds": median,
        "hours": None if median is None else left * median / 3600,
        "pace": pace_of(store, left, now),
        "disputed": number,
        "undecided": undecided,
        "agreement": _agreement(ordinary, votes),
        "labelers": people,
        "warnings": [*setup_warnings(store), *_people_warnings(people, wanted)],
    }


def pace_of(store: RatingsStore, left: int, now: float) -> Row | None:
    """The pace of the last seven days, or since the first vote: `votes`, `since`, `a_day`, and `until`, the time when
    none is `left` at this pace. None if there are fewer than ten votes. A day that has just begun counts as a whole
    one: nobody goes on all night as in the first hour."""
    since = max(store.desk.first_vote(), now - WINDOW_DAYS * DAY)
    votes = sum(store.desk.votes_since(since).values())
    if votes < MIN_VOTES:
        return None
    a_day = votes * DAY / max(now - since, DAY)
    return {"votes": votes, "since": since, "a_day": a_day, "until": now + left / a_day * DAY if left else None}


def _agreement(items: Sequence[Item], votes: Sequence[Rating]) -> Row:
    pairs = list(pairs_with_choices(items, votes))
    choices: list[Mapping[str, Label]] = [pair.choices for pair in pairs]
    prompts = [tuple(turn["content"] for turn in pair.item.prompt) for pair in pairs]
    scores: list[Mapping[str, Label]] = list(_scores(votes).values())
    return {
        "choices": alpha_estimate(choices, "nominal", prompts, num_resamples=RESAMPLES),
        "scores": alpha_estimate(scores, "ordinal", num_resamples=RESAMPLES),
    }


def _people_warnings(people: Sequence[Row], wanted: Sequence[OpenItem]) -> list[str]:
    raters = {row["labeler"] for row in people if not row["referee"] and (row["invited"] or row["began"])}
    short = sum(each.missing > len(raters - each.done_by) for each in wanted) if raters else 0
    found = []
    if short:
        found.append(
            f"too few labelers for {short} item{'s' * (short > 1)}: {len(raters)} rate{'s' * (len(raters) == 1)} here, "
            "and nobody rates an item twice; invite more"
        )
    names = [row["labeler"] for row in people]
    for number, name in enumerate(names):
        found += [
            f"{name} and {other} may be one person: their names are alike" for other in near(name, names[:number])
        ]
    return found
