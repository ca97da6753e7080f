"""Four labelers at once on one ratings file, killed at random with SIGKILL and sleeping past their leases.

Run as a script, this file is one labeler: it claims and answers until nothing is left, and notes in a log of its own,
with fsync, what it was shown and which answers the store has acknowledged.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import alignment
from alignment.ratings import Completion, Gold, Rating, RatingsStore

LABELERS = 4
LEASE = 0.5


def work(db: str, labeler: str, log: str, pauses: float) -> None:
    """Answer until nothing has come for three leases: what a killed labeler holds comes free after one."""
    rng = random.Random(os.getpid())
    notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(*fields: object) -> None:
        os.write(notes, json.dumps(fields).encode() + b"\n")
        os.fsync(notes)

    with RatingsStore(db) as store:
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < 3 * LEASE:
            assignment = store.claim(labeler, lease_seconds=LEASE, order=rng.choice(["random", "uncertain"]))
            if assignment is None:
                time.sleep(0.05)
                continue
            note("shown", assignment.item, assignment.rating, assignment.why)
            if rng.random() < pauses:
                time.sleep(1.3 * LEASE)
            strength = rng.randint(1, 3)
            store.submit(assignment, "left", 1.0, strength=strength, comment=f"{labeler} {assignment.item}")
            note("acknowledged", assignment.item, assignment.rating, strength)
            idle_since = time.monotonic()


def notes(log: Path) -> list[list]:
    """Whole lines; a kill may have cut the last one of a life short, and then nothing was acknowledged by it."""
    found = []
    for line in log.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            assert not line.endswith("]")
    return found


def rate_under_fire(folder: Path, items: int, pauses: float, kill_every: float, limit: float) -> dict[str, int]:
    """Let the four rate all items while their parent kills one every now and then; return how many kills it took."""
    db = folder / "ratings.db"
    with RatingsStore(db, create=True, seed=11) as store, store.transaction():
        for i in range(items):
            answers = [Completion(f"one {i}"), Completion(f"two {i}")]
            store.add_item([{"role": "user", "content": f"question {i}"}], answers, need=1 + i % 3)
        for i in range(items // 40):
            answers = [Completion(f"yes {i}"), Completion(f"no {i}")]
            store.add_item([{"role": "user", "content": f"control {i}"}], answers, gold=Gold(choice="first"))
        store.set_uncertainty({item.id: item.id % 97 / 194 for item in store.items()}, "judge@v1")

    environment = os.environ | {"PYTHONPATH": str(Path(alignment.__file__).parents[1])}

    logs = [folder / f"{labeler}.log" for labeler in range(LABELERS)]
    noted = [0] * LABELERS  # how long each log was at the start of this life

    def start(labeler: int) -> subprocess.Popen[bytes]:
        logs[labeler].touch()
        noted[labeler] = logs[labeler].stat().st_size
        arguments = [str(db), f"labeler {labeler}", str(logs[labeler]), str(pauses)]
        return subprocess.Popen([sys.executable, __file__, *arguments], env=environment)

    rng = random.Random(5)
    began = time.monotonic()
    workers = [start(labeler) for labeler in range(LABELERS)]
    kills = 0
    try:
        next_kill = began + 2 * kill_every
        while any(worker.poll() is None for worker in workers):
            assert time.monotonic() - began < limit, "the labelers do not come to an end"
            assert all(worker.poll() in (None, 0) for worker in workers)
            time.sleep(0.02)
            if time.monotonic() < next_kill or any(worker.poll() is not None for worker in workers):
                continue  # nobody is killed any more when the first one is done
            victim = rng.randrange(LABELERS)
            if logs[victim].stat().st_size == noted[victim]:
                continue  # a busy machine starts labelers more slowly than they are killed, and nothing is ever rated
            workers[victim].send_signal(signal.SIGKILL)
            workers[victim].wait()
            workers[victim] = start(victim)
            kills += 1
            next_kill = time.monotonic() + rng.uniform(0.2, 1.8) * kill_every
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return {"kills": kills, "seconds": round(time.monotonic() - began)}


def check_the_books(folder: Path) -> dict[str, int]:
    """Everything that was promised, from the labelers' own logs and from the file."""
    with RatingsStore(folder / "ratings.db") as store:
        items = {item.id: item for item in store.items()}
        ratings = store.ratings(skips=True)
        counted = store._db.execute("SELECT id, answered FROM item").fetchall()
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert all(store.claim(f"labeler {labeler}", lease_seconds=LEASE) is None for labeler in range(LABELERS))
    by_id: dict[int, Rating] = {rating.id: rating for rating in ratings}
    acknowledged = 0
    for labeler in range(LABELERS):
        shown: dict[tuple[int, bool], set[int]] = {}
        for kind, item, rating, said in notes(folder / f"{labeler}.log"):
            if kind == "shown":
                shown.setdefault((item, said == "repeat"), set()).add(rating)
                continue
            acknowledged += 1
            kept = by_id[rating]  # no acknowledged rating is lost
            assert (kept.labeler, kept.item, kept.strength) == (f"labeler {labeler}", item, said)
            assert kept.comment == f"labeler {labeler} {item}"
        assert all(len(rows) == 1 for rows in shown.values())  # nobody sees an item twice, but as a repeat
    ordinary = [rating for rating in ratings if rating.why in ("random", "uncertain")]
    answers = Counter(rating.item for rating in ordinary)
    in_time = Counter(rating.item for rating in ordinary if rating.done_at < rating.claimed_at + LEASE)
    for item in items.values():
        if item.gold is None:
            assert in_time[item.id] <= item.need <= answers[item.id]
    assert dict(counted) == {item: answers[item] for item in items}
    assert len({(rating.item, rating.labeler) for rating in ordinary}) == len(ordinary)
    return {
        "ratings": len(ratings),
        "acknowledged": acknowledged,
        "late": len(ordinary) - in_time.total(),
        "beyond need": sum(answers[item.id] - item.need for item in items.values() if item.gold is None),
        "gold": sum(rating.why == "gold" for rating in ratings),
        "repeats": sum(rating.why == "repeat" for rating in ratings),
    }


@pytest.mark.parametrize(
    ("items", "pauses", "kill_every", "limit"),
    [
        pytest.param(200, 0.1, 0.2, 600, id="200"),
        pytest.param(10_000, 0.005, 1.0, 1200, id="10000", marks=pytest.mark.slow),
    ],
)
def test_every_item_reaches_its_need_and_nothing_acknowledged_is_lost(
    tmp_path: Path, items: int, pauses: float, kill_every: float, limit: float
) -> None:
    report = rate_under_fire(tmp_path, items, pauses, kill_every, limit) | check_the_books(tmp_path)
    print(report)
    assert report["kills"] >= 5 and report["late"]  # some of those who pause are killed in their sleep
    assert report["gold"] and report["repeats"]


def test_a_kill_between_any_two_writes_leaves_a_sound_file(tmp_path: Path) -> None:
    """The file as a crash leaves it, copied with its log at every step of a session, opens and holds what was said."""
    db = tmp_path / "ratings.db"
    with RatingsStore(db, create=True) as store:
        for i in range(3):
            store.add_item([{"role": "user", "content": f"q {i}"}], [{"text": "a"}, {"text": "b"}])
        for done in range(1, 4):
            assignment = store.claim("ada")
            assert assignment is not None
            store.submit(assignment, "tie", 1.0)
            crashed = tmp_path / f"crash {done}"
            crashed.mkdir()
            for suffix in ("", "-wal"):
                (crashed / f"ratings.db{suffix}").write_bytes((tmp_path / f"ratings.db{suffix}").read_bytes())
            with sqlite3.connect(crashed / "ratings.db") as copy:
                assert copy.execute("SELECT count(*) FROM rating WHERE choice = 'tie'").fetchone()[0] == done


if __name__ == "__main__":
    work(*sys.argv[1:4], pauses=float(sys.argv[4]))
