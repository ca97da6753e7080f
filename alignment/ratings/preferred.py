"""The answers that people preferred, as demonstrations. SFT on them is a baseline of PPO on the same ratings."""

from __future__ import annotations

from alignment.config.sections import DataConfig, DataPart
from alignment.data.importers import PassedOver
from alignment.data.messages import with_answer
from alignment.data.records import Demonstration
from alignment.data.row_files import DataError
from alignment.data.sources import Rows, RowSource, open_source
from alignment.ratings import Item, RatingsStore, is_ratings_file
from alignment.ratings.pairs import pairs_with_choices
from alignment.templates.rendering import Message


def open_demonstrations(part: DataPart, config: DataConfig) -> RowSource:
    """Open a part's rows for SFT: the preferred answers of a ratings file, and any other source unchanged.

    Raises:
        DataError: nothing in the ratings file is rated.
    """
    if not is_ratings_file(part.path):
        return open_source(part, config)
    with RatingsStore(part.path) as store:
        if not store.labelers():
            raise nothing_rated(part.path)
        fingerprint, notes = {"name": store.path.name, **store.fingerprint()}, notes_on_test_set(store)
    return RowSource(_preferred(part.path), lambda: fingerprint, notes)


def notes_on_test_set(store: RatingsStore) -> list[str]:
    """A note for those who train on the answers of a comparison: its prompts tell who won, and are a test set."""
    if not store.settings.comparison:
        return []
    return [
        f"{store.path}: its items are a comparison's, on prompts that are a test set: a model that is trained on them "
        "must be tested on others"
    ]


def nothing_rated(path: str) -> DataError:
    """The error of a ratings file without ratings."""
    return DataError(f"{path}: nothing is rated yet; rate some with: alignment rate --db {path} --labeler NAME")


def _preferred(path: str) -> Rows:
    """Each rated pair's or ranking's best answer: the one that wins most of its comparisons, by all votes together."""
    with RatingsStore(path) as store:
        items, ratings = store.items(), store.ratings(for_training=True)
    points: dict[int, list[float]] = {}
    for pair in pairs_with_choices(items, ratings):
        of_item = points.setdefault(pair.item.id, [0.0] * len(pair.item.completions))
        for choice in pair.choices.values():
            of_item[pair.first] += {"first": 1.0, "tie": 0.5, "second": 0.0}[choice]
            of_item[pair.second] += {"first": 0.0, "tie": 0.5, "second": 1.0}[choice]
    rated = {rating.item for rating in ratings}
    for item in items:
        if item.id in points:
            yield f"{path}:item {item.id}", _best(item, points[item.id])
        elif item.id in rated:
            yield f"{path}:item {item.id}", PassedOver("an answer rated by itself is preferred to no other")


def _best(item: Item, points: list[float]) -> Demonstration | PassedOver:
    if points.count(max(points)) > 1:
        return PassedOver("no answer was preferred: a tie")
    prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in item.prompt)
    return Demonstration(with_answer(prompt, item.completions[points.index(max(points))].text))
