"""What an organiser looks up: items, one item, names that are alike, progress, and what is missing in the set-up."""

import itertools
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.ratings import Gold, RatingsStore
from alignment.ratings.items import items_with, one_item
from alignment.ratings.names import edits, near
from alignment.ratings.progress import labelers_of, pace_of, progress_of
from alignment.ratings.quality import report
from alignment.ratings.setup_warnings import setup_warnings

DAY = 86400.0
NOW = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def add(store: RatingsStore, name: str, need: int = 2, gold: Gold | None = None) -> int:
    return store.add_item(question(name), [{"text": f"{name} a"}, {"text": f"{name} b"}], need=need, gold=gold)


def give(store: RatingsStore, item: int, labeler: str, choice: str, at: float, **more: object) -> None:
    """A vote that was given here, at a known time."""
    fields = {"why": "random", "order_shown": [0, 1], "seconds": 10.0, "claimed_at": at - 10, "done_at": at}
    store.import_rating(item, labeler, choice, **(fields | more))  # type: ignore[arg-type]


# --- items ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rated(store: RatingsStore) -> RatingsStore:
    one, two, three = (add(store, name) for name in ("one", "two", "three"))
    give(store, one, "ada", "first", NOW, flags=["flagged"], comment="odd")
    give(store, one, "bob", "second", NOW + 1)
    give(store, two, "ada", "tie", NOW + 2, comment="the same")
    give(store, two, "bob", "first", NOW + 3, flags=["flagged"])
    give(store, three, "bob", "skip", NOW + 4)
    return store


def test_each_condition_narrows_the_list(rated: RatingsStore) -> None:
    def found(**wanted: object) -> list[int]:
        return [row["item"] for row in items_with(rated, **wanted)]  # type: ignore[arg-type]

    assert found() == [1, 2, 3]
    assert found(flagged=True) == [1, 2] and found(commented=True) == [1, 2] and found(disputed=True) == [1]
    assert found(flagged=True, labeler="ada") == [1] and found(commented=True, labeler="bob") == []
    assert found(labeler="ada") == [1, 2] and found(labeler="bob", disputed=True) == [1]
    with pytest.raises(UserError, match="no labeler 'bop'; here are 'bob'"):
        found(labeler="bop")


def test_a_row_says_what_is_special(rated: RatingsStore) -> None:
    row = items_with(rated, disputed=True)[0]
    assert (row["votes"], row["need"], row["said"], row["disputed"]) == (2, 2, {"first": 1, "second": 1}, 0.5)
    assert (row["flags"], row["comments"], row["verdict"], row["gold"]) == ({"flagged": 1}, 1, None, False)


def test_one_item_has_every_answer_with_its_circumstances(rated: RatingsStore) -> None:
    rated.settings.guideline = "Be kind."
    verdict = rated.claim("rita", order="disputed")
    assert verdict is not None
    rated.submit(verdict, "left", 2.0)
    rated.undo("rita", "disputed")
    rated.submit(verdict, "tie", 3.0)
    found = one_item(rated, 1)
    assert [rating["labeler"] for rating in found["ratings"]] == ["ada", "bob", "rita"]
    assert [rating["after_votes"] for rating in found["ratings"]] == [False, False, True]
    ada, _, rita = found["ratings"]
    assert (ada["said"], ada["seconds"], ada["comment"], ada["done_at"]) == ("first", 10.0, "odd", NOW)
    assert (rita["said"], rita["why"], rita["guideline"], ada["guideline"]) == ("tie", "verdict", 1, None)
    assert "model" not in str(found["completions"])
    with pytest.raises(UserError, match="no item 9; the items have the numbers 1 to 3"):
        one_item(rated, 9)


# --- names ----------------------------------------------------------------------------------------------------------


def slow_edits(one: str, two: str) -> int:
    """Breadth first over all words that one edit makes: the oracle of `edits` for short words."""
    letters = sorted(set(one + two))
    words, steps = {one}, 0
    while two not in words:
        steps += 1
        more = set()
        for word in words:
            for place in range(len(word) + 1):
                head, tail = word[:place], word[place:]
                more |= {head + letter + tail for letter in letters}
                more |= {head + letter + tail[1:] for letter in letters} | {head + tail[1:]}
                if len(tail) > 1:
                    more.add(head + tail[1] + tail[0] + tail[2:])
        words |= more
    return steps


def test_edits_are_the_least_that_make_one_word_of_the_other() -> None:
    words = ["", *("".join(each) for size in (1, 2, 3) for each in itertools.product("ab", repeat=size))]
    for one, two in itertools.product(words, words):
        assert edits(one, two) == slow_edits(one, two), (one, two)
    assert edits("kitten", "sitting") == 3 and edits("ca", "abc") == 3  # optimal string alignment, no letter twice


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("ada", ["ada", "adda"], []),  # known itself
        ("Ada", ["ada"], ["ada"]),
        ("anna maria", ["Anna-Maria", "annamaria"], ["Anna-Maria", "annamaria"]),
        ("adda", ["ada", "bob"], ["ada"]),
        ("dominique", ["dominik"], []),  # three letters differ
        ("dominikue", ["dominique", "ada"], ["dominique"]),
        ("katherina", ["catharina"], ["catharina"]),  # two letters of a long name
        ("ab", ["ac"], []),  # too short to say
        ("worker 2", ["worker 1", "worker-2"], ["worker-2"]),
        ("李娜", ["李雷"], []),
    ],
)
def test_names_that_may_be_meant(name: str, known: list[str], meant: list[str]) -> None:
    assert near(name, known) == meant


def test_a_new_name_near_a_known_one_is_refused_with_a_fix(rated: RatingsStore) -> None:
    with pytest.raises(UserError) as caught:
        rated.people.check_new("adda", "add --new-labeler")
    assert "'adda' is new" in str(caught.value) and "'ada' rates" in str(caught.value)
    assert "add --new-labeler if this is another person" in str(caught.value)
    rated.people.check_new("ada", "")
    rated.people.check_new("charlotte", "")
    rated.people.invite("charlotte")
    with pytest.raises(UserError, match="'charlotte'"):
        rated.people.check_new("charlote", "")


# --- progress -------------------------------------------------------------------------------------------------------


def test_labelers_are_joined_with_their_hashes_and_counted(rated: RatingsStore) -> None:
    rated.people.invite("eve")
    rated.people.invite("rita", referee=True)
    people = {row["labeler"]: row for row in labelers_of(rated, NOW + DAY)}
    assert list(people) == ["ada", "bob", "eve", "rita"]
    assert {people["ada"]["hash"], people["bob"]["hash"]} == set(report(rated, hashed=True)["labelers"])
    ada, bob, eve = (people[name] for name in ("ada", "bob", "eve"))
    assert (ada["answers"], ada["skips"], ada["began"], ada["seen"]) == (2, 0, NOW - 10, NOW + 2)
    assert (bob["answers"], bob["skips"]) == (2, 1)
    assert ada["agreement"] == bob["agreement"] == {"value": 0.0, "n": 2}
    assert (eve["began"], eve["seen"], eve["answers"]) == (None, None, 0) and eve["invited"] is not None
    assert people["rita"]["referee"] and not eve["referee"]


def test_the_pace_is_that_of_the_last_seven_days(store: RatingsStore) -> None:
    items = [add(store, str(number), need=1) for number in range(40)]
    for number, item in enumerate(items[:9]):
        give(store, item, "ada", "first", NOW + number)
    assert pace_of(store, 31, NOW + 9) is None  # too few to tell
    give(store, items[9], "ada", "first", NOW + 9)
    young = pace_of(store, 30, NOW + 3600)
    assert young is not None and (young["votes"], young["a_day"]) == (10, 10.0)  # the first day counts as a whole one
    older = pace_of(store, 30, NOW + 4 * DAY)
    assert older is not None and older["a_day"] == 2.5
    assert older["until"] == pytest.approx(NOW + 4 * DAY + 12 * DAY)
    assert pace_of(store, 30, NOW + 8 * DAY) is None  # nobody has rated for a week
    store.import_rating(items[10], "zoe", "first", done_at=NOW + 4 * DAY)
    assert pace_of(store, 30, NOW + 4 * DAY) == older  # imported votes were given elsewhere


def test_progress_counts_what_is_left_and_who_cannot_give_it(rated: RatingsStore) -> None:
    found = progress_of(rated, NOW + DAY)
    assert (found["items"], found["complete"], found["votes"], found["left"]) == (3, 2, 4, 2)
    assert (found["disputed"], found["undecided"]) == (1, 1)
    assert found["hours"] == pytest.approx(2 * 10.0 / 3600)
    short = "too few labelers for 1 item: 2 rate here"  # bob has skipped it, so ada alone is left
    assert any(short in warning for warning in found["warnings"])
    rated.people.invite("eve")
    assert not any("too few labelers" in warning for warning in progress_of(rated, NOW + DAY)["warnings"])


def test_alike_names_are_pointed_out(rated: RatingsStore) -> None:
    give(rated, 3, "Ada", "first", NOW)
    assert "ada and Ada may be one person: their names are alike" in progress_of(rated, NOW)["warnings"]


# --- set-up ---------------------------------------------------------------------------------------------------------


def test_what_is_missing_at_the_start_is_said(store: RatingsStore) -> None:
    def said(words: str) -> bool:
        return any(words in warning for warning in setup_warnings(store))

    assert said("nothing to rate yet") and said("no guideline") and said("settings --db")
    store.settings.guideline = "Be kind."
    add(store, "one")
    assert setup_warnings(store) == []
    store.settings.calibration = 10
    assert said("wants 10 gold items and there are none")
    add(store, "gold", gold=Gold("first"))
    assert said("wants 10 gold items and there is 1") and said("--calibration 1")
    store.settings.calibration = 1
    assert said("takes all 1 gold items")
    store.settings.calibration = 0
    assert setup_warnings(store) == []
    store.add_item(question("same"), [{"text": "a"}, {"text": "a"}], need=2)
    assert said("1 pair has the same text on both sides")


def test_shares_that_can_do_nothing_are_said_only_if_they_were_set(store: RatingsStore) -> None:
    store.settings.guideline = "Be kind."
    store.add_item(question("one"), [{"text": "a"}], kind="single", need=2)
    assert setup_warnings(store) == []
    store.settings.gold_share = 0.1
    store.settings.repeat_share = 0.1
    warnings = " ".join(setup_warnings(store))
    assert "--gold-share is 0.1" in warnings and "--repeat-share is 0.1" in warnings


def test_many_labelers_and_one_vote_an_item_are_said(store: RatingsStore) -> None:
    store.settings.guideline = "Be kind."
    add(store, "one", need=1)
    store.people.invite("ada")
    assert setup_warnings(store) == []
    store.people.invite("bob")
    assert ["each item is rated once" in warning for warning in setup_warnings(store)] == [True]


# --- links ----------------------------------------------------------------------------------------------------------


def test_a_link_of_a_referee_is_one_until_it_is_another(store: RatingsStore) -> None:
    store.people.invite("rita", referee=True)
    assert store.people.referees() == {"rita"}
    store.people.invite("rita")
    assert store.people.referees() == frozenset()
    store.people.invite("rita", referee=True)
    assert store.people.revoke("rita") and store.people.referees() == frozenset()
    assert not store.people.revoke("rita")


def test_the_organisers_secret_is_its_own(store: RatingsStore) -> None:
    labeler, token = store.people.invite("ada"), store.desk.new_link()
    assert store.desk.opens(token) and not store.desk.opens(labeler) and store.people.labeler_of(token) is None
    assert token.encode() not in store.path.read_bytes()
    newer = store.desk.new_link()
    assert store.desk.opens(newer) and not store.desk.opens(token) and not store.desk.opens("")


def test_what_forgetting_would_remove(rated: RatingsStore) -> None:
    rated.people.invite("ada")
    assert rated.people.holdings("ada") == {"ratings": 2, "open": 0, "invitations": 1, "events": 3}
    rated.people.forget("ada")
    assert set(rated.people.holdings("ada").values()) == {0}
