"""A labeler's progress is counted without a look at each item."""

import random
import time

from alignment.ratings import RatingsStore, choosing
from alignment.ratings.choosing import ControlShares, Labeler


def add(store, number, **more):
    prompt = [{"role": "user", "content": f"question {number}"}]
    return store.add_item(prompt, [{"text": f"a{number}"}, {"text": f"b{number}"}], **more)


def test_the_counted_items_are_those_that_a_look_at_each_finds(tmp_path):
    draw = random.Random(0)
    with RatingsStore(tmp_path / "r.db", create=True, seed=3) as store:
        store.settings.gold_share, store.settings.repeat_share = 0.1, 0.1
        for number in range(30):
            add(store, number, need=draw.randint(1, 3))
        for _ in range(150):
            labeler = draw.choice("abcd")
            what = draw.random()
            if what < 0.1:
                store.undo(labeler)
            elif what < 0.15:
                add(store, draw.randrange(40), need=draw.randint(1, 4))
            elif (assignment := store.claim(labeler)) is not None and what < 0.8:
                store.submit(assignment, draw.choice(["left", "right", "tie", "skip"]), 1.0)
            for name in "abcd":
                asking = Labeler(store._db, name, store.seed, time.time() - 900)
                assert asking._ordinary_left() == asking._count(f"SELECT count(*) {choosing._ORDINARY}")


def test_controls_beyond_the_counted_items_are_expected(tmp_path, monkeypatch):
    """The estimate is near what counting all of them gives."""
    with RatingsStore(tmp_path / "r.db", create=True, seed=3) as store, store.transaction():
        for number in range(1500):
            add(store, number)
        asking = Labeler(store._db, "ada", store.seed, time.time() - 900)
        shares = ControlShares(calibration=0, gold=0.1, repeat=0.1)
        exact = asking._controls_ahead(shares, 0, 1500, 60)
        monkeypatch.setattr(choosing, "EXACT_ITEMS", 100)
        estimated = asking._controls_ahead(shares, 0, 1500, 60)
    assert exact > 150
    assert abs(exact - estimated) < 45  # three standard deviations of the draws
