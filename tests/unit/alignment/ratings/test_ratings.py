import sqlite3
import stat
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.ratings import LEASE_SECONDS, Completion, RatingsStore, is_ratings_file

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def add(store: RatingsStore, count: int, need: int = 1, start: int = 0) -> None:
    for i in range(start, start + count):
        store.add_item(question(i), answers(i), need=need)


def question(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}]


def answers(i: int) -> list[Completion]:
    return [Completion(f"one {i}", model="sft-secret@v1", tokens=3), Completion(f"two {i}", model="ppo-secret@v2")]


def events(store: RatingsStore) -> list[str]:
    with sqlite3.connect(store.path) as db:
        return [row[0] for row in db.execute("SELECT kind FROM event ORDER BY id")]


def test_the_file_is_private_marked_and_durable(store: RatingsStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert is_ratings_file(store.path)
    header = store.path.read_bytes()[:72]
    assert header[:16] == b"SQLite format 3\0" and header[68:72] == b"alra"
    assert header[18:20] == b"\x02\x02"  # WAL, says the SQLite file format
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert store._db.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_wrong_files_are_refused_in_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE t(x)")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n' * 100)
    (tmp_path / "empty").touch()
    later = RatingsStore(tmp_path / "later.db", create=True)
    later._db.execute("PRAGMA user_version = 7")
    later.close()
    for name, expected in {
        "missing.db": "no such ratings file",
        "foreign.db": "not a ratings file",
        "rows.jsonl": "not a ratings file",
        "empty": "not a ratings file",
        "later.db": "schema 7, this code reads 6",
    }.items():
        with pytest.raises(UserError, match=expected) as caught:
            RatingsStore(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for name in ("foreign.db", "rows.jsonl"):
        with pytest.raises(UserError, match="not a ratings file"):
            RatingsStore(tmp_path / name, create=True)
        assert not is_ratings_file(tmp_path / name)
    with pytest.raises(UserError, match="cannot open"):
        RatingsStore(tmp_path / "no" / "folder.db", create=True)
    assert not is_ratings_file(tmp_path) and not is_ratings_file(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


def test_a_file_is_known_while_its_log_is_moved_into_it_and_after_a_kill_half_way(tmp_path: Path) -> None:
    """SQLite writes the first page first: until the last one is written, the header promises more than there is."""
    path, half, log = tmp_path / "ratings.db", tmp_path / "half.db", tmp_path / "half.db-wal"
    store = RatingsStore(path, create=True)
    small = path.stat().st_size
    with store.transaction():  # one step, so that the log still holds all of it
        add(store, 300)
    log.write_bytes(Path(f"{path}-wal").read_bytes())
    store.close()  # moves the log
    assert path.stat().st_size > small
    half.write_bytes(path.read_bytes()[:small])
    assert is_ratings_file(half)
    with RatingsStore(half) as again:
        assert len(again.items()) == 300


def test_files_behind_a_closed_door_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RatingsStore(tmp_path / "mine.db", create=True).close()

    def refused(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refused)
        for create in (False, True):
            with pytest.raises(UserError, match=r"mine\.db: cannot open the ratings file \(Permission denied\)$"):
                RatingsStore(tmp_path / "mine.db", create=create)
    with monkeypatch.context() as patch:
        patch.setattr("alignment.ratings.file.is_ratings_file", lambda path: False)  # as where SQLite may not read it
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(UserError, match=r"mine\.db: you may not read this ratings file"):
            RatingsStore(tmp_path / "mine.db")


def test_items_come_back_as_they_went_in_and_only_once(store: RatingsStore) -> None:
    hostile = "\ud800 \x00 \u202e 'quoted' \U0001f600"
    first = store.add_item(question(0), [asdict(Completion(hostile, ended=False)), {"text": "b"}], metadata={"k": [1]})
    again = store.add_item(question(0), [{"text": hostile, "ended": False}, {"text": "b", "model": "m@v1"}], need=3)
    other = store.add_item(question(1), answers(1), need=2)
    assert first == again != other
    items = store.items()
    assert [item.id for item in items] == [first, other]
    assert items[0].completions == (Completion(hostile, ended=False), Completion("b"))
    assert items[0].prompt == ({"role": "user", "content": "question 0"},)
    assert (items[0].need, items[0].kind, items[0].metadata) == (3, "pair", {"k": [1]})
    assert store.add_item(question(1), answers(1), need=1) == other and store.items()[1].need == 2


def test_bad_items_are_refused(store: RatingsStore) -> None:
    for prompt, completions, need, expected in [
        (question(0), answers(0)[:1], 1, "2 completions, found 1 and 1"),
        ([], answers(0), 1, "messages"),
        ([{"role": "user"}], answers(0), 1, "expected {"),
        ([{"role": "user", "content": 3}], answers(0), 1, "expected {"),
        (question(0), [{"text": "a"}, {"txt": "b"}], 1, "expected text"),
        (question(0), answers(0), 0, "expected 1 or more"),
    ]:
        with pytest.raises(UserError, match=expected):
            store.add_item(prompt, completions, need=need)  # type: ignore[arg-type]
    assert store.items() == []


@pytest.mark.parametrize("name", ["", " ada", "a" * 65, "a\nb", "a\x1bb", "\ud800", "\u202e"])
def test_labeler_names_are_checked(store: RatingsStore, name: str) -> None:
    with pytest.raises(UserError, match="1 to 64 printable") as caught:
        store.claim(name)
    assert str(caught.value).isprintable()


def test_choice_is_stored_in_item_order(store: RatingsStore) -> None:
    add(store, 60)
    sides = set()
    while assignment := store.claim("ada"):
        texts = [answer.text for answer in answers(assignment.item - 1)]
        assert list(assignment.completions) == [texts[place] for place in assignment.order_shown]
        store.submit(assignment, "left" if assignment.completions[0].startswith("one") else "right", 1.0, strength=2)
        sides.add(assignment.order_shown)
    assert sides == {(0, 1), (1, 0)}
    ratings = store.ratings()
    assert len(ratings) == 60 and {rating.choice for rating in ratings} == {"first"}
    assert {(rating.strength, rating.labeler) for rating in ratings} == {(2, "ada")}


def test_what_a_labeler_gets_names_no_model(store: RatingsStore) -> None:
    add(store, 3)
    assert "secret" not in repr(store.claim("ada"))


def test_sides_are_shown_evenly_and_orders_differ_between_labelers_but_not_between_runs(tmp_path: Path) -> None:
    def seen(name: str, labeler: str, seed: int | None = None) -> list[tuple[str, tuple[int, ...]]]:
        with RatingsStore(tmp_path / name, create=True, seed=seed) as store, store.transaction():
            store.settings.repeat_share = 0.0
            add(store, 400, need=9)
            shown = []
            while assignment := store.claim(labeler):
                shown.append((assignment.prompt[0]["content"], assignment.order_shown))
                store.submit(assignment, "tie", 1.0)
        return shown

    ada, bob, seeded = seen("a", "ada"), seen("a", "bob"), seen("b", "ada", seed=1)
    assert ada == seen("c", "ada", seed=0)
    assert len({prompt for prompt, _ in ada}) == len(ada) == 400
    assert 150 < sum(order == (0, 1) for _, order in ada) < 250  # 5 standard deviations of a fair coin
    place = {prompt: i for i, (prompt, _) in enumerate(ada)}
    for other in (bob, seeded, sorted(ada, key=lambda each: int(each[0].split()[1]))):
        places = [place[prompt] for prompt, _ in other]
        mean = (len(places) - 1) / 2
        variance = sum((p - mean) ** 2 for p in places)
        rank_correlation = sum((i - mean) * (p - mean) for i, p in enumerate(places)) / variance
        neighbours = sum(abs(p - q) == 1 for p, q in zip(places, places[1:], strict=False))
        assert abs(rank_correlation) < 0.25 and neighbours < 12  # 5 sd; a shuffle keeps 2 neighbours on average


def test_own_open_item_comes_back_first_and_nobody_else_gets_it(store: RatingsStore) -> None:
    add(store, 2)
    mine = store.claim("ada")
    assert mine is not None and store.claim("ada") == mine
    other = store.claim("bob")
    assert other is not None and other.item != mine.item
    assert store.claim("eve") is None
    assert store.progress("eve").total == 0 and store.progress("ada").total == 1


def test_expired_lease_is_given_on_and_a_late_answer_counts(store: RatingsStore) -> None:
    add(store, 1)
    now = time.time()
    late = store.claim("ada", now=now - HOUR)
    assert late is not None
    assert store.claim("bob", now=now - HOUR + LEASE_SECONDS - 1) is None
    taken = store.claim("bob", now=now)
    assert taken is not None and taken.item == late.item
    assert store.claim("ada", now=now) is None  # bob's lease fills the only place
    store.submit(late, "left", 2.0)
    assert store.claim("bob", now=now) == taken  # who holds a lease may finish
    store.submit(taken, "right", 2.0)
    assert [rating.labeler for rating in store.ratings()] == ["ada", "bob"]
    assert store.claim("eve") is None


def test_own_expired_item_comes_back_while_there_is_room(store: RatingsStore) -> None:
    add(store, 1)
    first = store.claim("ada", now=0.0)
    assert store.claim("ada", now=HOUR) == first
    assert store.claim("bob", now=HOUR + 1) is None  # the lease was renewed


def test_an_answer_stands_against_a_second_window(store: RatingsStore) -> None:
    add(store, 1)
    one, two = store.claim("ada"), store.claim("ada")
    assert one is not None and one == two
    store.submit(one, "tie", 1.0)
    with pytest.raises(UserError, match="already"):
        store.submit(two, "left", 1.0)
    assert [rating.choice for rating in store.ratings()] == ["tie"]


def test_skip_is_kept_apart_and_leaves_room_for_another(store: RatingsStore) -> None:
    add(store, 1)
    assignment = store.claim("ada")
    assert assignment is not None
    store.submit(assignment, "skip", 1.0)
    assert store.claim("ada") is None and store.ratings() == []
    assert [rating.choice for rating in store.ratings(skips=True)] == ["skip"]
    assert store.progress("ada").skipped == store.progress("ada").done == 1
    assert store.fingerprint()["ratings"] == 0
    assert store.claim("bob") is not None


def test_undo_walks_back_and_keeps_what_was_said(store: RatingsStore) -> None:
    add(store, 4)
    answered = []
    for _ in range(3):
        assignment = store.claim("ada")
        assert assignment is not None
        store.submit(assignment, "left", 1.0, comment="why\x1b", flags=["unsafe"])
        answered.append(assignment)
    waiting = store.claim("ada")
    assert store.undo("bob") is None
    assert store.undo("ada") == answered[2] and store.undo("ada") == answered[1]
    assert len(store.ratings()) == 1
    for expected in (answered[1], answered[2], waiting):  # the newest first, then back to where it began
        got = store.claim("ada")
        assert got == expected
        store.submit(got, "right", 1.0)
    assert store.undo("ada") == waiting
    assert store.undo("ada") == answered[2]
    with sqlite3.connect(store.path) as db:
        payload = db.execute("SELECT payload FROM event WHERE kind = 'undo' ORDER BY id").fetchone()[0]
    assert "why\\u241b" in payload and "unsafe" in payload
    assert events(store).count("submit") == 6 and events(store).count("undo") == 4


def test_the_event_log_cannot_be_rewritten(store: RatingsStore) -> None:
    add(store, 1)
    store.claim("ada")
    for statement in ("UPDATE event SET kind = 'x'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._db.execute(statement)


def test_fingerprint_is_of_content_not_of_order_or_names(tmp_path: Path) -> None:
    def filled(name: str, order: list[int], labeler: str, choice: str = "first") -> dict[str, object]:
        with RatingsStore(tmp_path / name, create=True, seed=len(name)) as store:
            for i in order:
                store.add_item(question(i), answers(i))
            while assignment := store.claim(labeler):
                first_is_left = assignment.order_shown == (0, 1)
                store.submit(assignment, "left" if first_is_left == (choice == "first") else "right", 1.0)
            store.add_item(question(99), answers(99))  # unrated: no model learns from it
            mark = store.fingerprint()
        own = {"database": mark.pop("database"), "hashes": tuple(mark.pop("labeler_hashes"))}
        assert own not in files
        files.append(own)
        return mark

    files: list[dict[str, object]] = []
    one = filled("a", [0, 1, 2], "ada")
    assert one == filled("bb", [2, 0, 1], "bob")
    assert one["sha256"] != filled("c", [0, 1, 2], "ada", choice="second")["sha256"]
    assert one["sha256"] != filled("d", [0, 1], "ada")["sha256"]
    assert {**one, "sha256": ""} == {
        "ratings": 3,
        "items": 3,
        "labelers": 1,
        "simulated": False,
        "rating_ids": "1-3",
        "answered_by": {"ppo-secret@v2": 3, "sft-secret@v1": 3},
        "sha256": "",
    }


def test_simulated_labelers_mark_the_whole_store(store: RatingsStore) -> None:
    assert not store.fingerprint()["simulated"]
    store.people.mark_simulated("robot 1")
    store.people.mark_simulated("robot 2")
    assert store.people.simulated() == {"robot 1", "robot 2"} and store.fingerprint()["simulated"] is True


def test_guideline_and_seed_are_kept_in_the_file(tmp_path: Path) -> None:
    with RatingsStore(tmp_path / "r.db", create=True, seed=7) as store:
        assert store.settings.guideline == ""
        store.settings.guideline = "Prefer the polite one.\x1b[2J"
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        assert store.seed == 7 and store.settings.guideline == "Prefer the polite one.␛[2J"


def test_a_transaction_is_all_or_nothing(store: RatingsStore) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        add(store, 3)
        raise ZeroDivisionError
    assert store.items() == []
    with store.transaction():
        add(store, 3)
    assert len(store.items()) == 3


def test_a_store_that_stays_locked_is_a_users_error(store: RatingsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, 1)
    monkeypatch.setattr("alignment.ratings.file.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="locked; nothing of this step was saved"):
        store.claim("ada")
    other.execute("ROLLBACK")
    assert store.claim("ada") is not None


def test_a_claim_at_ten_thousand_items_stays_cheap(store: RatingsStore) -> None:
    """In steps of SQLite's virtual machine, which a busy computer does not change: about 100 million take a second."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 100

    with store.transaction():
        add(store, 10_000, need=3)
        store.set_uncertainty({item: item / 20_001 for item in range(1, 10_001)}, "judge@v1")
        for item in range(1, 9_001):  # own answers that leave the items open for others
            store.import_rating(item, "old hand", "tie", order_shown=(0, 1), why="random")
        for item in range(1, 5_001):
            store.import_rating(item, "other", "tie")
    for labeler, most in (("beginner", 200_000), ("old hand", 450_000)):
        for order in ("random", "uncertain"):
            steps = 0
            store._db.set_progress_handler(count, 100)
            for _ in range(20):
                assignment = store.claim(labeler, order=order)  # type: ignore[arg-type]
                assert assignment is not None
                store.submit(assignment, "left", 1.0)
            store._db.set_progress_handler(None, 0)
            assert 1000 < steps / 20 < most, (labeler, order)


def test_leases_are_judged_when_the_lock_is_had_not_when_it_is_asked_for(store: RatingsStore) -> None:
    """Who waits for the lock must not go by the time before: an answer that looks in time would pass `need`."""
    add(store, 2)
    assignment = store.claim("ada")
    assert assignment is not None
    times = []
    for call in (lambda s: s.submit(assignment, "left", 1.0), lambda s: s.undo("ada"), lambda s: s.claim("bob")):
        holder = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, holder.execute, ["COMMIT"])
        asked = time.time()
        release.start()
        call(store)
        release.join()
        holder.close()
        last = store._db.execute("SELECT max(at) FROM event").fetchone()[0]
        times.append(last - asked)
    assert min(times) >= 0.29
