"""A referee's verdict in what a reward model learns: it stands for each vote, which still says how far people agree."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.ratings import RatingsStore
from reward.data import labeler_weights, rated_items
from reward.questions import combine_votes


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def decide(store: RatingsStore, item: int, choice: str, **more: object) -> None:
    order = list(range(len(next(each for each in store.items() if each.id == item).completions)))
    store.import_rating(item, "rita", choice, why="verdict", order_shown=order, **more)  # type: ignore[arg-type]


def learned(store: RatingsStore, labelers: tuple[str, ...] | None = None) -> list[Comparison | CompletionRating]:
    hashes = None if labelers is None else [store.people.labeler_hash(name) for name in labelers]
    rows = [row for _, row in rated_items(str(store.path), hashes)]
    assert all(isinstance(row, Comparison | CompletionRating) for row in rows)
    return rows  # type: ignore[return-value]


def test_a_pair_has_the_target_of_the_verdict_and_the_weight_of_its_votes(store: RatingsStore) -> None:
    item = store.add_item(question("q"), [{"text": "a"}, {"text": "b"}], need=3)
    for name, choice in {"ada": "first", "bob": "first", "cy": "second"}.items():
        store.import_rating(item, name, choice)
    (before,) = learned(store)
    decide(store, item, "second", strength=3)
    (after,) = learned(store)
    assert isinstance(before, Comparison) and isinstance(after, Comparison)
    assert (before.target, before.weight) == (pytest.approx(2 / 3), 3.0)
    assert (after.target, after.weight) == (0.0, 3.0)
    assert combine_votes(after, 0.6, None) == (0.0, 3.0, -0.6)
    assert after.cast == before.votes


def test_a_ranking_has_the_order_of_the_verdict(store: RatingsStore) -> None:
    item = store.add_item(question("q"), [{"text": text} for text in "abc"], kind="rank", need=2)
    store.import_rating(item, "ada", "ranked", ranks=[1, 2, 3])
    store.import_rating(item, "bob", "ranked", ranks=[3, 2, 1])
    decide(store, item, "ranked", ranks=[2, 1, 2])
    found = {(row.first, row.second): row.target for row in learned(store) if isinstance(row, Comparison)}
    assert found == {("a", "b"): 0.0, ("a", "c"): 0.5, ("b", "c"): 1.0}


def test_a_score_is_the_verdict_once_for_each_vote(store: RatingsStore) -> None:
    item = store.add_item(question("q"), [{"text": "a"}], kind="single", need=2)
    store.import_rating(item, "ada", "scored", score=1)
    store.import_rating(item, "bob", "scored", score=7)
    decide(store, item, "scored", score=6)
    rows = learned(store)
    assert [row.rating for row in rows if isinstance(row, CompletionRating)] == [6.0, 6.0]


def test_a_verdict_from_1_to_7_has_its_place_on_the_scale_of_the_source(store: RatingsStore) -> None:
    item = store.add_item(question("q"), [{"text": "a"}], kind="single", need=2, metadata={"scale": [0, 100]})
    store.import_rating(item, "ada", "scored", score=1, given=3.0)
    store.import_rating(item, "bob", "scored", score=7, given=99.0)
    decide(store, item, "scored", score=4)
    assert [row.rating for row in learned(store) if isinstance(row, CompletionRating)] == [50.0, 50.0]


def test_a_verdict_without_the_votes_is_one_vote(store: RatingsStore) -> None:
    item = store.add_item(question("q"), [{"text": "a"}, {"text": "b"}])
    store.import_rating(item, "ada", "first")
    store.import_rating(item, "bob", "second")
    decide(store, item, "second")
    (row,) = learned(store, ("rita",))
    assert isinstance(row, Comparison) and (row.target, row.weight) == (0.0, 1.0)
    (votes,) = learned(store, ("ada", "bob"))  # the verdict of somebody who does not count
    assert isinstance(votes, Comparison) and votes.target == 0.5


def as_own(vote: Vote, said: Vote) -> Vote:
    """A verdict as if the labeler had said it."""
    return replace(vote, labeler=said.labeler, overrules=None)


def test_verdicts_do_not_make_labelers_agree(store: RatingsStore) -> None:
    """Of two careful labelers and one who tosses a coin, the coin has the least weight, verdicts or not."""
    disputes = []
    for number in range(60):
        item = store.add_item(question(f"q{number}"), [{"text": "a"}, {"text": "b"}], need=3)
        coin = "first" if number % 2 else "second"
        for name, choice in {"ada": "first", "bob": "first", "cy": coin}.items():
            store.import_rating(item, name, choice)
        if coin == "second":
            disputes.append(item)
        flipped = store.add_item(question(f"f{number}"), [{"text": "c"}, {"text": "d"}], need=3)
        for name, choice in {"ada": "second", "bob": "second", "cy": coin}.items():
            store.import_rating(flipped, name, choice)
    before = labeler_weights(learned(store), "here")
    for item in disputes:
        decide(store, item, "first")
    rows = learned(store)
    assert labeler_weights(rows, "here") == before
    assert before[store.people.labeler_hash("cy")] < 0.1 < before[store.people.labeler_hash("ada")]
    # The test can fail: had the verdicts been taken for the labelers' own votes, cy would look careful.
    mistaken = [
        replace(row, votes=tuple(map(as_own, row.votes, row.cast))) for row in rows if isinstance(row, Comparison)
    ]
    assert labeler_weights(mistaken, "here") != before
