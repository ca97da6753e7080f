"""The answers that people preferred or rewrote, as demonstrations; SFT on them is a baseline of PPO on the ratings."""

from __future__ import annotations

from alignment.config.sections import DataConfig, DataPart
from alignment.data.importers import PassedOver
from alignment.data.messages import with_answer
from alignment.data.records import Demonstration
from alignment.data.row_files import DataError
from alignment.data.sources import Rows, RowSource, open_source
from alignment.ratings import Item, RatingsStore, is_ratings_file
from alignment.ratings.pairs import pairs_with_choices
from alignment.ratings.records import CONTROLS
from alignment.ratings.refereeing import settled
from alignment.ratings.rewrites import by_item, rewrites_of
from alignment.templates.rendering import Message


def open_demonstrations(part: DataPart, config: DataConfig) -> RowSource:
    """Open a part's rows for SFT: the preferred and rewritten answers of a ratings file; any other source unchanged.

    Raises:
        DataError: nothing in the ratings file is rated.
    """
    if not is_ratings_file(part.path):
        return open_source(part, config)
    with RatingsStore(part.path) as store:
        if not store.labelers():
            raise nothing_rated(part.path)
        fingerprint = {"name": store.path.name, **store.fingerprint()}
    return RowSource(_preferred(part.path), lambda: fingerprint)


def nothing_rated(path: str) -> DataError:
    """The error of a ratings file without ratings."""
    return DataError(f"{path}: nothing is rated yet; rate some with: alignment rate --db {path} --labeler NAME")


def _preferred(path: str) -> Rows:
    """Each rated pair's or ranking's best answer: the one that wins most of its comparisons, by all votes together or
    by a referee's verdict.

    A rewritten answer is learned as it was rewritten, and instead of the best one where it was that one. Its place
    names its author by the hash that is in manifests.
    """
    with RatingsStore(path) as store:
        items, given = store.items(), [rating for rating in store.ratings() if rating.why not in CONTROLS]
        hashed = {rating.labeler: store.people.labeler_hash(rating.labeler) for rating in given}
    points: dict[int, list[float]] = {}
    for pair in pairs_with_choices(items, settled(given)):
        of_item = points.setdefault(pair.item.id, [0.0] * len(pair.item.completions))
        for choice in pair.choices.values():
            of_item[pair.first] += {"first": 1.0, "tie": 0.5, "second": 0.0}[choice]
            of_item[pair.second] += {"first": 0.0, "tie": 0.5, "second": 1.0}[choice]
    rated = by_item(given)
    for item in items:
        rewrites = rewrites_of(item, rated.get(item.id, ()))
        for new in rewrites:
            authors = ", ".join(hashed[name] for name in new.labelers)
            yield f"{path}:item {item.id} rewritten by {authors}", _demonstration(item, new.text)
        if item.id in points:
            best = _best(item, points[item.id])
            if not isinstance(best, int):
                yield f"{path}:item {item.id}", best
            elif best not in [new.completion for new in rewrites]:
                yield f"{path}:item {item.id}", _demonstration(item, item.completions[best].text)
        elif item.id in rated and not rewrites:
            yield f"{path}:item {item.id}", PassedOver("an answer rated by itself is preferred to no other")


def _best(item: Item, points: list[float]) -> int | PassedOver:
    if points.count(max(points)) > 1:
        return PassedOver("no answer was preferred: a tie")
    return points.index(max(points))


def _demonstration(item: Item, answer: str) -> Demonstration:
    prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in item.prompt)
    return Demonstration(with_answer(prompt, answer))
