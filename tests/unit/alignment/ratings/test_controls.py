"""Kinds of items, and what is mixed in among them: calibration, gold, repeats, doubted items."""

import json
import random
import sqlite3
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.ratings import Assignment, Completion, Feedback, Gold, RatingsStore, is_right

A_QUESTION = [{"role": "user", "content": "which?"}]


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def pairs(store: RatingsStore, count: int, need: int = 1, gold: Gold | None = None, name: str = "pair") -> list[int]:
    with store.transaction():
        return [
            store.add_item(
                [{"role": "user", "content": f"{name} {i}"}],
                [Completion(f"good {name} {i}"), Completion(f"bad {name} {i}")],
                need=need,
                gold=gold,
            )
            for i in range(count)
        ]


def answer(store: RatingsStore, labeler: str, choice: str = "left", **options: object) -> Assignment | None:
    """Claim and answer one item with what suits its kind."""
    assignment = store.claim(labeler, **options)  # type: ignore[arg-type]
    if assignment is None:
        return None
    if assignment.kind == "rank":
        store.submit(assignment, "ranked", 1.0, ranks_shown=[1] * len(assignment.completions))
    elif assignment.kind == "single":
        store.submit(assignment, "scored", 1.0, score=4)
    else:
        store.submit(assignment, choice, 1.0)  # type: ignore[arg-type]
    return assignment


def finish(store: RatingsStore, labeler: str, **options: object) -> list[Assignment]:
    given = []
    while assignment := answer(store, labeler, **options):
        given.append(assignment)
    return given


def test_rankings_and_scores_are_stored_in_item_order(store: RatingsStore) -> None:
    texts = [f"answer {i}" for i in range(9)]
    for count in range(2, 10):
        store.add_item(A_QUESTION, [{"text": text} for text in texts[:count]], kind="rank")
    store.add_item(A_QUESTION, [{"text": "alone"}], kind="single")
    shuffled = 0
    while assignment := store.claim("ada"):
        if assignment.kind == "single":
            assert assignment.completions == ("alone",)
            store.submit(assignment, "scored", 1.0, score=6, flags=["flagged"])
            continue
        numbers = [int(text.split()[1]) for text in assignment.completions]
        shuffled += numbers != sorted(numbers)
        store.submit(assignment, "ranked", 1.0, ranks_shown=[10 + number // 2 * 2 for number in numbers])
    assert shuffled >= 4
    by_count = {len(rating.ranks): rating for rating in store.ratings() if rating.ranks}
    assert sorted(by_count) == list(range(2, 10))
    assert by_count[9].ranks == (1, 1, 2, 2, 3, 3, 4, 4, 5) and by_count[2].ranks == (1, 1)
    assert {rating.choice for rating in by_count.values()} == {"ranked"}
    (scored,) = [rating for rating in store.ratings() if rating.kind == "single"]
    assert (scored.choice, scored.score, scored.ranks, scored.flags) == ("scored", 6, None, ("flagged",))


def test_same_texts_of_another_kind_are_another_item(store: RatingsStore) -> None:
    two = [{"text": "a"}, {"text": "b"}]
    assert store.add_item(A_QUESTION, two) != store.add_item(A_QUESTION, two, kind="rank")
    assert [item.kind for item in store.items()] == ["pair", "rank"]


@pytest.mark.parametrize(
    ("kind", "count", "gold", "expected"),
    [
        ("single", 2, None, "1 completion, found 1 and 2"),
        ("rank", 1, None, "2 to 9 completions, found 1 and 1"),
        ("rank", 10, None, "2 to 9 completions, found 1 and 10"),
        ("triple", 3, None, "expected one of single, pair, rank"),
        ("pair", 2, Gold(), "found nothing, expected choice"),
        ("pair", 2, Gold(score=3), "found score, expected choice"),
        ("pair", 2, Gold(choice="left"), "expected first, second, tie"),  # type: ignore[arg-type]
        ("rank", 3, Gold(ranks=(1, 2)), "expected 3 numbers from 1"),
        ("rank", 3, Gold(ranks=(0, 1, 2)), "expected 3 numbers from 1"),
        ("single", 1, Gold(score=8), "expected 1 to 7"),
        ("single", 1, Gold(score=3, choice="tie"), "found choice, score, expected score"),
    ],
)
def test_bad_kinds_and_gold_are_refused(store: RatingsStore, kind: str, count: int, gold: Gold, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        store.add_item(A_QUESTION, [{"text": str(i)} for i in range(count)], kind=kind, gold=gold)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and store.items() == []


@pytest.mark.parametrize(
    ("kind", "choice", "options", "expected"),
    [
        ("pair", "scored", {"score": 3}, "pair item's answer is 'scored'"),
        ("pair", "tie", {"strength": 2}, "strength 2 of tie"),
        ("pair", "left", {"strength": 4}, "strength 4"),
        ("pair", "left", {"score": 4}, "score 4 of (first|second)"),
        ("rank", "left", {}, "rank item's answer"),
        ("rank", "ranked", {}, "ranks None"),
        ("rank", "ranked", {"ranks_shown": (1, 2)}, "expected 3 numbers"),
        ("rank", "ranked", {"ranks_shown": (1, 2, 0)}, "numbers from 1"),
        ("rank", "skip", {"ranks_shown": (1, 2, 3)}, "where the choice is ranked"),
        ("single", "scored", {"score": 0}, "expected 1 to 7"),
        ("single", "scored", {}, "expected 1 to 7|score None"),
    ],
)
def test_answers_that_do_not_suit_the_item_are_refused(
    store: RatingsStore, kind: str, choice: str, options: dict, expected: str
) -> None:
    count = {"pair": 2, "rank": 3, "single": 1}[kind]
    store.add_item(A_QUESTION, [{"text": str(i)} for i in range(count)], kind=kind)  # type: ignore[arg-type]
    assignment = store.claim("ada")
    assert assignment is not None
    with pytest.raises(UserError, match=expected):
        store.submit(assignment, choice, 1.0, **options)  # type: ignore[arg-type]
    assert store.ratings(skips=True) == [] and store.claim("ada") == assignment


def test_what_counts_as_right() -> None:
    assert is_right(Gold(choice="tie"), "tie") and not is_right(Gold(choice="tie"), "first")
    assert not is_right(Gold(choice="first"), "skip") and not is_right(Gold(score=4), "skip")
    gold = Gold(ranks=(1, 2, 2, 3))
    for ranks, right in {(1, 2, 2, 3): 1, (1, 2, 3, 4): 1, (1, 3, 2, 4): 1, (1, 1, 2, 3): 0, (2, 1, 3, 4): 0}.items():
        assert is_right(gold, "ranked", ranks) == bool(right), ranks
    assert not is_right(gold, "skip")
    assert [is_right(Gold(score=4), "scored", score=score) for score in range(1, 8)] == [
        False,
        False,
        *[True] * 3,
        False,
        False,
    ]


def test_calibration_comes_first_with_feedback_and_undo_stops_there(store: RatingsStore) -> None:
    pairs(store, 20)
    gold = set(pairs(store, 5, gold=Gold(choice="first", reason="It is good."), name="gold"))
    ranked = store.add_item(A_QUESTION, [{"text": c} for c in "xyz"], kind="rank", gold=Gold(ranks=(1, 2, 3)))
    scored = store.add_item(A_QUESTION, [{"text": "s"}], kind="single", gold=Gold(score=2))
    store.settings.calibration, store.settings.gold_share, store.settings.repeat_share = 7, 0.0, 0.0
    for labeler, right in (("ada", True), ("bob", False)):
        seen = set()
        for _ in range(7):
            assignment = store.claim(labeler)
            assert assignment is not None and assignment.why == "calibration"
            assert store.feedback(assignment) is None  # not before the answer
            seen.add(assignment.item)
            if assignment.kind == "rank":
                shown = tuple("xyz".index(text) + 1 for text in assignment.completions)
                given = shown if right else tuple(4 - rank for rank in shown)
                store.submit(assignment, "ranked", 1.0, ranks_shown=given)
                expected = Gold(ranks=shown)
            elif assignment.kind == "single":
                store.submit(assignment, "scored", 1.0, score=2 if right else 6)
                expected = Gold(score=2)
            else:
                good_left = assignment.completions[0].startswith("good")
                store.submit(assignment, "left" if good_left == right else "right", 1.0)
                expected = Gold(choice="first" if good_left else "second", reason="It is good.")
            given = store.last_rating(labeler)
            assert given is not None and store.feedback(assignment) == Feedback(right, expected, given)
            assert store.undo(labeler) is None  # the labeler has been told
        assert seen == gold | {ranked, scored}
        ordinary = store.claim(labeler)
        assert ordinary is not None and ordinary.why == "random" and ordinary.item not in seen
        store.submit(ordinary, "left", 1.0)
        assert store.feedback(ordinary) is None
        assert store.undo(labeler) == ordinary and store.undo(labeler) is None
    assert store.ratings(for_training=True) == [] and len(store.ratings()) == 14


def test_a_calibration_longer_than_the_gold_ends_with_the_gold(store: RatingsStore) -> None:
    pairs(store, 3)
    pairs(store, 2, gold=Gold(choice="first"), name="gold")
    store.settings.calibration, store.settings.repeat_share = 5, 0.0
    assert store.progress("ada").total == 5
    assert [each.why for each in finish(store, "ada")] == ["calibration"] * 2 + ["random"] * 3


def test_controls_come_at_their_shares_at_places_of_their_own_and_count_toward_nothing(store: RatingsStore) -> None:
    ordinary = set(pairs(store, 600, need=3))
    gold = set(pairs(store, 200, gold=Gold(choice="first"), name="gold"))
    store.settings.gold_share, store.settings.repeat_share = 0.2, 0.1
    places = {}
    with store.transaction():
        for labeler in ("ada", "bob", "eve"):
            given = finish(store, labeler)
            places[labeler] = [i for i, each in enumerate(given) if each.why in ("gold", "repeat")]
            whys = Counter(each.why for each in given)
            # Of n draws: shares within 5 standard deviations.
            n = len(given)
            for why, share in {"gold": 0.2, "repeat": 0.1}.items():
                assert abs(whys[why] / n - share) < 5 * (share * (1 - share) / n) ** 0.5
            assert whys["random"] == 600
            assert {each.item for each in given if each.why == "random"} == ordinary
            controls = [each.item for each in given if each.why == "gold"]
            assert len(set(controls)) == len(controls) and set(controls) <= gold
            assert given[-1].why == "random"
    assert places["ada"] != places["bob"] != places["eve"] != places["ada"]
    counts = Counter(rating.item for rating in store.ratings(for_training=True))
    assert counts == dict.fromkeys(ordinary, 3)
    assert store.fingerprint()["ratings"] == 1800
    gaps = [later - earlier for earlier, later in pairwise(places["ada"])]
    assert len(set(gaps)) > 4  # no rhythm


def test_repeats_are_own_old_pairs_flipped_and_come_once(store: RatingsStore) -> None:
    pairs(store, 150)
    for i in range(10):
        store.add_item(A_QUESTION, [{"text": f"{i} {c}"} for c in "abc"], kind="rank")
    pairs(store, 20, gold=Gold(choice="first"), name="gold")
    store.settings.repeat_share, store.settings.gold_share = 0.4, 0.1
    rng = random.Random(0)
    given, choices = [], {}
    while assignment := store.claim("ada"):
        given.append(assignment)
        if assignment.kind == "rank":
            store.submit(assignment, "ranked", 1.0, ranks_shown=[1, 2, 3])
        else:
            choice = rng.choice(["left", "right", "tie", "skip"])
            store.submit(assignment, choice, 1.0)  # type: ignore[arg-type]
            if assignment.why == "random":
                choices[assignment.item] = choice
    first = {each.item: (place, each) for place, each in enumerate(given) if each.why == "random"}
    repeats = [(place, each) for place, each in enumerate(given) if each.why == "repeat"]
    assert len(repeats) > 40 and len({each.item for _, each in repeats}) == len(repeats)
    for place, each in repeats:
        earlier, original = first[each.item]
        assert each.kind == "pair" and choices[each.item] != "skip"
        assert place - earlier > 10
        assert each.order_shown == original.order_shown[::-1] and each.completions == original.completions[::-1]
    assert {place - earlier for place, each in repeats for earlier, _ in [first[each.item]]} > {11}


def test_in_a_small_session_a_repeat_comes_from_as_far_back_as_it_can(store: RatingsStore) -> None:
    gaps = []
    for number in range(40):
        with RatingsStore(store.path.with_name(f"{number}.db"), create=True, seed=number) as small:
            pairs(small, 6)
            small.settings.repeat_share = 0.5
            total = small.progress("ada").total
            items = [(each.item, each.why) for each in finish(small, "ada")]
            assert len(items) == total
        gaps += [place - items.index((item, "random")) for place, (item, why) in enumerate(items) if why == "repeat"]
    assert gaps and min(gaps) == 4  # half a session of 6 lies between


@pytest.mark.parametrize("order", ["random", "uncertain"])
@pytest.mark.parametrize("kinds", ["pairs", "mixed", "rankings"])
def test_the_total_is_known_from_the_start_and_gives_no_control_away(
    store: RatingsStore, order: str, kinds: str
) -> None:
    if kinds != "rankings":
        store.set_uncertainty({item: item / 500 for item in pairs(store, 90)}, "judge@v1")
    if kinds != "pairs":
        for i in range(40):
            store.add_item(A_QUESTION, [{"text": f"{i} {c}"} for c in "abc"], kind="rank")
    pairs(store, 30, gold=Gold(choice="first"), name="gold")
    store.settings.calibration, store.settings.gold_share, store.settings.repeat_share = 3, 0.15, 0.15
    totals = [store.progress("ada").total]
    given = 0
    while assignment := store.claim("ada", order=order):  # type: ignore[arg-type]
        totals.append(store.progress("ada").total)
        if assignment.kind == "rank":
            store.submit(assignment, "ranked", 1.0, ranks_shown=[1, 2, 3])
        else:
            store.submit(assignment, "left", 1.0)
        totals.append(store.progress("ada").total)
        given += 1
    # Of mixed kinds it is not known beforehand which ordinary item can come again.
    slack = 2 if kinds == "mixed" else 0
    assert max(totals) - min(totals) <= slack and abs(totals[0] - given) <= slack
    assert store.progress("ada").done == store.progress("ada").total == given


def test_uncertain_order_takes_every_other_item_where_the_model_is_least_sure(store: RatingsStore) -> None:
    items = pairs(store, 60)
    store.settings.gold_share = store.settings.repeat_share = 0.0
    rng = random.Random(1)
    doubt = dict(zip(items[:50], rng.sample([i / 100 for i in range(50)], 50), strict=True))
    store.set_uncertainty(dict.fromkeys(items, 0.5), "old@v1")
    store.set_uncertainty(doubt, "judge@v3")
    given = finish(store, "ada", order="uncertain")
    whys = [each.why for each in given]
    assert whys[:40] == ["uncertain", "random"] * 20 and len(given) == 60
    taken: set[int] = set()
    for each in given:
        if each.why == "uncertain":
            assert each.item == min((item for item in doubt if item not in taken), key=doubt.__getitem__)
        taken.add(each.item)
    assert "uncertain" not in {each.why for each in given if each.item in items[50:]}  # never scored by judge@v3
    ordered = [doubt.get(each.item, 1.0) for each in given if each.why == "random"]
    assert ordered != sorted(ordered)
    assert [rating.why for rating in store.ratings()] == whys
    with sqlite3.connect(store.path) as db:
        said = [json.loads(row[0]) for row in db.execute("SELECT payload FROM event WHERE kind = 'uncertainty'")]
    assert said == [{"items": 60, "model": "old@v1"}, {"items": 50, "model": "judge@v3"}]


def test_without_a_models_word_uncertain_order_is_random_order(store: RatingsStore) -> None:
    pairs(store, 10)
    assert {each.why for each in finish(store, "ada", order="uncertain")} == {"random"}


def test_settings_are_checked_and_kept(store: RatingsStore) -> None:
    assert (store.settings.calibration, store.settings.gold_share, store.settings.repeat_share) == (0, 0.05, 0.03)
    store.settings.calibration, store.settings.gold_share, store.settings.repeat_share = 4, 0.1, 0.0
    with RatingsStore(store.path) as again:
        assert (again.settings.calibration, again.settings.gold_share, again.settings.repeat_share) == (4, 0.1, 0.0)
    for name, value in [
        ("calibration", -1),
        ("gold_share", 0.51),
        ("repeat_share", -0.1),
        ("gold_share", float("nan")),
    ]:
        with pytest.raises(UserError, match=f"{name}.*expected"):
            setattr(store.settings, name, value)


def test_gold_in_a_file_without_ordinary_items_left_stays_away(store: RatingsStore) -> None:
    pairs(store, 5, gold=Gold(choice="first"), name="gold")
    store.settings.gold_share = 0.5
    assert store.claim("ada") is None and store.progress("ada").total == 0


def test_undo_walks_back_over_gold_and_repeats(store: RatingsStore) -> None:
    pairs(store, 40)
    pairs(store, 20, gold=Gold(choice="first"), name="gold")
    store.settings.gold_share, store.settings.repeat_share = 0.3, 0.3
    given = finish(store, "ada")
    assert {each.why for each in given} == {"random", "gold", "repeat"}
    back = []
    while undone := store.undo("ada"):
        back.append(undone)
    assert back == given[::-1]
    assert store.ratings(skips=True) == []
    assert [answer(store, "ada") for _ in given] == given and store.claim("ada") is None


def test_an_undone_and_a_late_own_item_come_back_although_the_clock_was_set_back(
    store: RatingsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(store, 3)
    times = iter([1000.0, 2000.0, 2000.0, 500.0, 500.0, 400.0, 300.0, 300.0])
    monkeypatch.setattr("alignment.ratings.store.time.time", lambda: next(times, 300.0))
    given = finish(store, "ada")
    assert store.undo("ada") == given[2] and store.undo("ada") == given[1]
