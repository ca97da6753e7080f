"""Disputed items and their referee: what is disputed, who gets it, and what a verdict changes."""

import time
from pathlib import Path

import pytest

from alignment.config.sections import DataConfig
from alignment.ratings import LEASE_SECONDS, Gold, RatingsStore
from alignment.ratings.preferred import open_demonstrations
from alignment.ratings.quality import report
from alignment.ratings.refereeing import Answered, disputed, doubt, settled, undecided


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def pair(store: RatingsStore, name: str, need: int = 2, **votes: str) -> int:
    item = store.add_item(question(name), [{"text": f"{name} a"}, {"text": f"{name} b"}], need=need)
    for labeler, choice in votes.items():
        store.import_rating(item, labeler, choice)
    return item


def vote(choice: str) -> Answered:
    return Answered(choice, None, None)


def ranking(*ranks: int) -> Answered:
    return Answered("ranked", ranks, None)


def score(number: int) -> Answered:
    return Answered("scored", None, number)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], 0.0),
        ([vote("first")], 0.0),
        ([vote("first"), vote("tie")], 0.0),  # a tie contradicts nobody
        ([vote("first"), vote("second")], 1 / 2),
        ([vote("first"), vote("second"), vote("first"), vote("tie")], 1 / 3),
        ([ranking(1, 2, 3), ranking(1, 2, 2)], 0.0),
        ([ranking(1, 2, 3), ranking(1, 3, 2)], 1 / 2),
        ([ranking(1, 2, 3), ranking(1, 3, 2), ranking(1, 2, 3)], 1 / 3),
        ([score(4), score(6)], 0.0),  # 5 is within a point of both
        ([score(2), score(5)], 1 / 4),
        ([score(1), score(7), score(4)], 1 / 2),
    ],
)
def test_votes_are_disputed_if_no_truth_fits_them_all(votes: list[Answered], expected: float) -> None:
    assert doubt(votes) == pytest.approx(expected)


def test_skips_controls_and_verdicts_dispute_nothing(store: RatingsStore) -> None:
    item = pair(store, "one", ada="first", bob="skip")
    store.import_rating(item, "ada", "second", why="repeat", order_shown=[1, 0])
    store.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1])
    gold = store.add_item(question("gold"), [{"text": "a"}, {"text": "b"}], gold=Gold("first"))
    store.import_rating(gold, "ada", "first", why="gold", order_shown=[0, 1])
    store.import_rating(gold, "bob", "second", why="gold", order_shown=[0, 1])
    assert disputed(store._db) == {}


def test_complete_items_come_first_then_the_most_doubtful(store: RatingsStore) -> None:
    waiting = pair(store, "waiting", need=3, ada="first", bob="second")
    clear = pair(store, "clear", need=3, ada="first", bob="second", cy="first")
    even = pair(store, "even", ada="first", bob="second")
    pair(store, "agreed", ada="first", bob="first")
    assert undecided(store._db) == [even, clear, waiting]


def test_a_referee_gets_what_is_disputed_and_not_their_own(store: RatingsStore) -> None:
    own = pair(store, "own", rita="first", bob="second")
    other = pair(store, "other", ada="first", bob="second")
    first = store.claim("rita", order="disputed")
    assert first is not None and (first.item, first.why) == (other, "verdict")
    assert store.progress("rita", "disputed").total == 1
    second = store.claim("sam", order="disputed")  # rita holds the other one
    assert second is not None and second.item == own
    assert store.claim("tom", order="disputed") is None
    assert store.claim("tom", now=time.time() + LEASE_SECONDS + 60, order="disputed") is not None
    again = store.claim("rita", order="disputed")
    assert again is not None and again.rating == first.rating


def test_rating_and_refereeing_are_apart(store: RatingsStore) -> None:
    disputed_item = pair(store, "disputed", ada="first", bob="second")
    ordinary = pair(store, "ordinary", need=1)
    verdict = store.claim("rita", order="disputed")
    usual = store.claim("rita")
    assert verdict is not None and usual is not None
    assert (verdict.item, usual.item) == (disputed_item, ordinary)
    store.submit(verdict, "left", 2.0)
    assert store.undo("rita") is None and store.last_rating("rita") is None
    assert store.progress("rita").done == 0 and store.progress("rita", "disputed").done == 1
    store.submit(usual, "left", 3.0)
    taken_back = store.undo("rita", "disputed")
    assert taken_back is not None and taken_back.rating == verdict.rating
    assert store.progress("rita").seconds == 3.0
    assert store.claim("rita") is None  # the open verdict is no ordinary item


def test_a_verdict_does_not_count_toward_need(store: RatingsStore) -> None:
    item = pair(store, "open", need=3, ada="first", bob="second")
    verdict = store.claim("rita", order="disputed")
    assert verdict is not None
    store.submit(verdict, "left", 2.0)
    row = store._db.execute("SELECT answered FROM item").fetchone()
    assert row["answered"] == 2
    third = store.claim("cy")
    assert third is not None and third.item == item
    assert store.claim("sam", order="disputed") is None  # it is decided


def test_a_skipped_verdict_leaves_the_item_to_another_referee(store: RatingsStore) -> None:
    pair(store, "one", ada="first", bob="second")
    verdict = store.claim("rita", order="disputed")
    assert verdict is not None
    store.submit(verdict, "skip", 1.0)
    assert store.claim("rita", order="disputed") is None
    assert store.claim("sam", order="disputed") is not None
    assert len(store.ratings(for_training=True)) == 2


def test_a_verdict_stands_for_the_votes_in_training_and_they_stay_for_agreement(store: RatingsStore) -> None:
    item = pair(store, "one", need=3, ada="first", bob="second", cy="first")
    pair(store, "two", ada="second", bob="second")
    before = report(store)
    store.import_rating(item, "rita", "second", why="verdict", order_shown=[1, 0])
    learned = [(rating.labeler, rating.item, rating.choice) for rating in store.ratings(for_training=True)]
    assert [each for each in learned if each[1] == item] == [("rita", item, "second")]
    assert len(learned) == 3
    after = report(store)
    assert after["agreement"] == before["agreement"]
    assert (after["ratings"]["counting"], after["ratings"]["verdicts"]) == (5, 1)
    rows = list(open_demonstrations(DataConfig(train=str(store.path)).parts[0], DataConfig(train=str(store.path))).rows)
    assert [row.messages[-1]["content"] for _, row in rows] == ["one b", "two b"]  # by the votes it was "one a"


def test_of_two_verdicts_the_newer_one_stands(store: RatingsStore) -> None:
    item = pair(store, "one", ada="first", bob="second")
    store.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1], done_at=200.0)
    store.import_rating(item, "sam", "first", why="verdict", order_shown=[0, 1], done_at=100.0)
    assert [rating.labeler for rating in settled(store.ratings())] == ["rita"]


def test_the_fingerprint_knows_a_verdict_from_a_vote(store: RatingsStore, tmp_path: Path) -> None:
    pair(store, "one", ada="first", bob="second", rita="second")
    with RatingsStore(tmp_path / "other.db", create=True) as other:
        item = pair(other, "one", ada="first", bob="second")
        other.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1])
        found = other.fingerprint()
        assert found["sha256"] != store.fingerprint()["sha256"]
        assert found["ratings"] == 3 and len(found["labeler_hashes"]) == 3
        assert other.labelers() == ["ada", "bob", "rita"]


def test_forgetting_the_referee_gives_the_votes_back(store: RatingsStore) -> None:
    item = pair(store, "one", ada="first", bob="second")
    store.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1])
    store.people.forget("rita")
    assert [rating.labeler for rating in store.ratings(for_training=True)] == ["ada", "bob"]


def test_a_file_of_schema_4_learns_not_to_count_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with RatingsStore(path, create=True) as store:
        item = pair(store, "one", need=3, ada="first", bob="second")
        old = {
            row["name"]: row["sql"].replace(", 'verdict')", ")")
            for row in store._db.execute(
                "SELECT name, sql FROM sqlite_schema WHERE name LIKE 'rating_%' AND type = 'trigger'"
            )
        }
        assert len(old) == 3
        for name, sql in old.items():
            store._db.execute(f"DROP TRIGGER {name}")
            store._db.execute(sql)
        store._db.execute("DROP TABLE wording")
        for column in ("guideline", "questions", "view", "answers", "draft"):
            store._db.execute(f"ALTER TABLE rating DROP COLUMN {column}")
        store._db.execute("PRAGMA user_version = 4")
    with RatingsStore(path) as store:
        store.import_rating(item, "rita", "second", why="verdict", order_shown=[0, 1])
        assert store._db.execute("SELECT answered FROM item").fetchone()["answered"] == 2
