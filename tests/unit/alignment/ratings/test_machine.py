"""Random histories of three labelers against a ledger in plain Python, on a clock that the test turns."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alignment.errors import UserError
from alignment.ratings import LEASE_SECONDS, Assignment, Gold, RatingsStore

LEASE = LEASE_SECONDS
NAMES = st.sampled_from(["a", "b", "c"])
ORDINARY = ("random", "uncertain")


@dataclass
class Row:
    """What a labeler was given, and what they made of it."""

    assignment: Assignment
    claimed_at: float
    choice: str | None = None  # in item order
    done_at: float = 0.0
    late: bool = False


class Histories(RuleBasedStateMachine):
    """Every call is made on the store and on the ledger; each says beforehand what the store may do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100_000.0
        self.folder = tempfile.TemporaryDirectory()
        self.patch = mock.patch("alignment.ratings.store.time.time", self.clock)
        self.patch.start()
        self.rows: dict[int, Row] = {}
        self.need: dict[int, int] = {}
        self.gold: set[int] = set()

    def clock(self) -> float:
        return self.now

    def teardown(self) -> None:
        self.patch.stop()
        self.store.close()
        self.folder.cleanup()

    @initialize(need=st.integers(1, 3), calibration=st.integers(0, 2), gold=st.integers(0, 3))
    def make(self, need: int, calibration: int, gold: int) -> None:
        self.store = RatingsStore(Path(self.folder.name) / "r.db", create=True)
        self.calibration = min(calibration, gold)
        with self.store.transaction():
            for i in range(6):
                texts, kind = (["x", "y"], "pair") if i < 5 else (["x", "y", "z"], "rank")
                prompt = [{"role": "user", "content": f"{i}"}]
                item = self.store.add_item(prompt, [{"text": t} for t in texts], need=need, kind=kind)  # type: ignore[arg-type]
                self.need[item] = need
            for i in range(gold):
                prompt = [{"role": "user", "content": f"gold {i}"}]
                self.gold.add(self.store.add_item(prompt, [{"text": "x"}, {"text": "y"}], gold=Gold(choice="first")))
            self.store.set_uncertainty({1: 0.2, 2: 0.1, 3: 0.4}, "judge@v1")
            self.store.settings.calibration, self.store.settings.gold_share, self.store.settings.repeat_share = (
                calibration,
                0.3,
                0.4,
            )

    def mine(self, name: str) -> list[Row]:
        return [row for row in self.rows.values() if row.assignment.labeler == name]

    def room(self, item: int, name: str) -> bool:
        """Whether finished answers and live leases of others leave a place."""
        others = [
            row
            for row in self.rows.values()
            if row.assignment.item == item and row.assignment.labeler != name and row.assignment.why in ORDINARY
        ]
        live = sum(row.choice is None and row.claimed_at > self.now - LEASE for row in others)
        own = sum(
            row.choice not in (None, "skip")
            for row in self.mine(name)
            if row.assignment.item == item and row.assignment.why in ORDINARY
        )
        return self.need[item] > live + own + sum(row.choice not in (None, "skip") for row in others)

    def takeable(self, row: Row) -> bool:
        given = row.assignment
        leased = row.claimed_at > self.now - LEASE
        return row.choice is None and (given.why not in ORDINARY or leased or self.room(given.item, given.labeler))

    @rule(name=NAMES, order=st.sampled_from(["random", "uncertain"]))
    def claim(self, name: str, order: str) -> None:
        self.now += 1
        opened = sorted((row for row in self.mine(name) if self.takeable(row)), key=lambda row: row.claimed_at)
        seen = {row.assignment.item for row in self.mine(name)}
        free = {item for item in self.need if item not in seen and self.room(item, name)}
        progress = self.store.progress(name)
        got = self.store.claim(name, lease_seconds=LEASE, order=order)  # type: ignore[arg-type]
        if opened:
            assert got == opened[-1].assignment
            opened[-1].claimed_at = self.now
            return
        calibrated = sum(row.assignment.why == "calibration" for row in self.mine(name))
        if calibrated < self.calibration and self.gold - seen:
            assert got is not None and got.why == "calibration" and got.item in self.gold - seen
        elif not free:
            assert got is None
            return
        else:
            assert got is not None and got.why != "calibration"
            if got.why == "gold":
                assert got.item in self.gold - seen
            elif got.why == "repeat":
                (original,) = [row for row in self.mine(name) if row.assignment.item == got.item]
                assert original.choice in ("first", "second", "tie") and original.assignment.why in ORDINARY
                assert got.order_shown == original.assignment.order_shown[::-1]
            else:
                assert got.item in free
                assert got.why == "random" or (order == "uncertain" and got.item in (1, 2, 3))
        assert got.rating not in self.rows and got.labeler == name
        assert progress.total > progress.done
        self.rows[got.rating] = Row(got, self.now)

    @rule(data=st.data(), choice=st.sampled_from(["left", "right", "tie", "skip"]))
    def submit(self, data: st.DataObject, choice: str) -> None:
        """Any open row, also one whose lease has run out while others filled the item."""
        waiting = [row for row in self.rows.values() if row.choice is None]
        if not waiting:
            return
        self.now += 1
        row = data.draw(st.sampled_from(waiting))
        given = row.assignment
        if given.kind == "rank" and choice != "skip":
            self.store.submit(given, "ranked", 1.0, ranks_shown=(1, 2, 2))
            row.choice = "ranked"
        else:
            self.store.submit(given, choice, 1.0)  # type: ignore[arg-type]
            sides = {"left": given.order_shown[0], "right": given.order_shown[1]}
            row.choice = ("first", "second")[sides[choice]] if choice in sides else choice
        row.done_at, row.late = self.now, row.claimed_at <= self.now - LEASE
        with pytest.raises(UserError, match="already"):
            self.store.submit(given, "skip", 1.0)
        assert (self.store.feedback(given) is not None) == (given.why == "calibration")

    @rule(name=NAMES)
    def undo(self, name: str) -> None:
        self.now += 1
        done = sorted((row for row in self.mine(name) if row.choice is not None), key=lambda row: row.done_at)
        undone = self.store.undo(name)
        if not done or done[-1].assignment.why == "calibration":
            assert undone is None
            return
        assert undone == done[-1].assignment
        done[-1].choice, done[-1].claimed_at = None, self.now

    @rule(seconds=st.sampled_from([LEASE / 3, LEASE + 1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        gone = self.mine(name)
        assert self.store.people.forget(name) == sum(row.choice is not None for row in gone)
        for row in gone:
            del self.rows[row.assignment.rating]
            with pytest.raises(UserError, match="no claim"):
                self.store.submit(row.assignment, "skip", 1.0)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = RatingsStore(self.store.path)

    @invariant()
    def nothing_is_lost_doubled_or_beyond_need(self) -> None:
        if not self.need:
            return
        kept = {
            rating.id: (rating.labeler, rating.item, rating.why, rating.choice) for rating in self.store.ratings(True)
        }
        assert kept == {
            rating: (row.assignment.labeler, row.assignment.item, row.assignment.why, row.choice)
            for rating, row in self.rows.items()
            if row.choice is not None
        }
        counting = [
            row for row in self.rows.values() if row.assignment.why in ORDINARY and row.choice not in (None, "skip")
        ]
        counts = Counter(row.assignment.item for row in counting)
        in_time = Counter(row.assignment.item for row in counting if not row.late)
        assert all(in_time[item] <= need for item, need in self.need.items())
        stored = dict(self.store._db.execute("SELECT id, answered FROM item").fetchall())
        assert stored == {item: counts[item] for item in (*self.need, *self.gold)}
        for name in "abc":
            progress = self.store.progress(name)
            mine = [row.choice for row in self.mine(name) if row.choice is not None]
            assert (progress.done, progress.skipped) == (len(mine), mine.count("skip"))


Histories.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_histories = Histories.TestCase
