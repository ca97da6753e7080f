"""A referee at work: blind before the decision, the votes after it, and a way back from a wrong key."""

from pathlib import Path

import pytest

from alignment.labeling.refereeing import decided
from alignment.labeling.session import NOTHING_DISPUTED, Sitting
from alignment.ratings import RatingsStore


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    store = RatingsStore(tmp_path / "ratings.db", create=True)
    item = store.add_item([{"role": "user", "content": "q"}], [{"text": "good"}, {"text": "bad"}], need=3)
    store.import_rating(item, "ada", "first", strength=2, comment="kind\x1b[2J\nand short")
    store.import_rating(item, "bob", "second")
    store.import_rating(item, "cy", "first", strength=2)
    return store


def test_the_votes_are_shown_after_the_verdict_without_names(store: RatingsStore) -> None:
    sitting = Sitting(store, "rita", "disputed")
    assert sitting.assignment is not None and decided(store, sitting.assignment) is None
    assert (sitting.state, sitting.said) == ("rate", "")
    good = "LEFT" if sitting.assignment.completions[0] == "good" else "RIGHT"
    bad = {"LEFT": "RIGHT", "RIGHT": "LEFT"}[good]
    sitting.press("1")
    assert (sitting.state, sitting.waits_for, sitting.failed) == ("wait", "votes", False)
    assert sitting.said == (
        "Your verdict: LEFT is much better. The votes: "
        f"2 labelers: {good} is clearly better; 1 labeler: {bad} is better; "
        '"kind␛[2J and short".'
    )
    assert not any(name in sitting.said for name in ("ada", "bob", "cy"))
    assert (sitting.progress.done, sitting.progress.total) == (1, 1)
    sitting.go_on()
    assert sitting.state == "end"


def test_a_wrong_key_can_be_taken_back_and_that_is_remembered(store: RatingsStore) -> None:
    sitting = Sitting(store, "rita", "disputed")
    sitting.press("1")
    sitting.go_on()
    sitting.undo()
    assert sitting.state == "rate" and sitting.said.endswith("Your answer was: LEFT is much better.")
    sitting.press("7")
    verdicts = [rating for rating in store.ratings() if rating.why == "verdict"]
    assert len(verdicts) == 1 and verdicts[0].strength == 3
    assert store.desk.verdicts_changed(verdicts[0].item) == {"rita"}


def test_a_skip_shows_nothing_and_decides_nothing(store: RatingsStore) -> None:
    sitting = Sitting(store, "rita", "disputed")
    sitting.skip()
    assert sitting.said == "Skipped." and sitting.state == "end"
    assert store.desk.verdicts_changed(1) == frozenset()
    assert len(store.ratings(for_training=True)) == 3


def test_a_labeler_is_told_why_there_is_nothing_to_decide(store: RatingsStore) -> None:
    sitting = Sitting(store, "ada", "disputed")
    assert sitting.state == "end" and sitting.nothing == NOTHING_DISPUTED
