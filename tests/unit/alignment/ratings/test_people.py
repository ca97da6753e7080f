"""What the store keeps of people and files: invitations, forgetting, fingerprints, imports, files of schema 1."""

import json
import re
import sqlite3
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.errors import UserError
from alignment.ratings import Completion, Gold, Rating, RatingsStore

# The tables as schema 1 made them, word for word.
SCHEMA_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE item(
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK(kind IN ('pair', 'rank')),
  prompt TEXT NOT NULL, completions TEXT NOT NULL CHECK(json_array_length(completions) BETWEEN 2 AND 9),
  need INTEGER NOT NULL CHECK(need >= 1), place INTEGER NOT NULL, created REAL NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE rating(
  id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item(id), labeler TEXT NOT NULL,
  order_shown TEXT NOT NULL, choice TEXT, strength INTEGER CHECK(strength BETWEEN 1 AND 3), seconds REAL,
  comment TEXT NOT NULL DEFAULT '', flags TEXT NOT NULL DEFAULT '[]',
  claimed_at REAL NOT NULL, done_at REAL, done INTEGER NOT NULL DEFAULT 0,
  UNIQUE(item, labeler), CHECK(done = (choice IS NOT NULL) AND done = (done_at IS NOT NULL)));
CREATE INDEX rating_by_labeler ON rating(labeler, done, done_at);
CREATE TABLE event(
  id INTEGER PRIMARY KEY, at REAL NOT NULL, labeler TEXT NOT NULL, item INTEGER, kind TEXT NOT NULL,
  payload TEXT NOT NULL);
CREATE TRIGGER event_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE TRIGGER event_fixed BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
PRAGMA application_id = 1634497121;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
INSERT INTO meta VALUES('seed', '7');
INSERT INTO meta VALUES('guideline', 'Be kind.');
INSERT INTO event VALUES(1, 5.0, 'ada', 1, 'claim', '{}');
"""


@pytest.fixture
def store(tmp_path: Path) -> RatingsStore:
    return RatingsStore(tmp_path / "ratings.db", create=True)


def question(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}]


def fill(store: RatingsStore, count: int, need: int = 1, gold: Gold | None = None) -> None:
    for i in range(count):
        store.add_item(question(i), [{"text": f"{i} a {gold}"}, {"text": f"{i} b"}], need=need, gold=gold)


def finish(store: RatingsStore, labeler: str, comment: str = "") -> int:
    count = 0
    while assignment := store.claim(labeler):
        store.submit(assignment, "left", 1.0, comment=comment)
        count += 1
    return count


def old_key(prompt: list[dict[str, str]], texts: list[str]) -> str:
    return sha256(json.dumps([prompt, [[text, True] for text in texts]], sort_keys=True).encode()).hexdigest()


def make_schema_1(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA_1)
        for i in (1, 2, 3):
            completions = [{"text": "a", "ended": True, "model": "m@v1", "tokens": 2}, {"text": "b", "ended": True}]
            values = (i, old_key(question(i), ["a", "b"]), json.dumps(question(i)), json.dumps(completions))
            db.execute("INSERT INTO item VALUES(?, ?, 'pair', ?, ?, 2, 17, 1.5, '{\"k\": 1}')", values)
        for row in [
            (1, 1, "ada", "[1, 0]", "first", 2, 3.5, "why", '["unsafe"]', 1.0, 2.0, 1),
            (2, 1, "bob", "[0, 1]", "tie", None, 4.5, "", "[]", 1.0, 2.5, 1),
            (4, 2, "ada", "[0, 1]", "skip", None, 1.0, "", "[]", 3.0, 4.0, 1),
            (5, 2, "bob", "[0, 1]", "second", 3, 1.0, "", "[]", 3.0, 4.5, 1),
            (9, 3, "ada", "[1, 0]", None, None, None, "", "[]", 5.0, None, 0),
        ]:
            db.execute("INSERT INTO rating VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.close()


def drop_versions(store: RatingsStore) -> None:
    """What schemas 5 and 6 added; the guideline was a setting."""
    if store.settings.guideline:
        store._db.execute("INSERT INTO meta VALUES('guideline', ?)", (store.settings.guideline,))
    store._db.execute("DROP TABLE wording")
    for column in ("guideline", "questions", "view", "answers", "draft"):
        store._db.execute(f"ALTER TABLE rating DROP COLUMN {column}")


def drop_counter(store: RatingsStore) -> None:
    """What schema 4 added."""
    drop_versions(store)
    store._db.execute("DROP TABLE counter")
    for name in ("item_added", "item_changed", "item_removed"):
        store._db.execute(f"DROP TRIGGER {name}")


def test_a_file_of_schema_5_gets_room_for_drafts(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with RatingsStore(path, create=True) as store:
        store.add_item(question(0), [{"text": "a"}, {"text": "b"}])
        opened = store.claim("ada")
        store._db.execute("ALTER TABLE rating DROP COLUMN draft")
        store._db.execute("PRAGMA user_version = 5")
    with RatingsStore(path) as store:
        assignment = store.claim("ada")
        assert assignment == opened and assignment is not None and store.drafts.of(assignment) == {}
        store.drafts.keep(assignment, {"comment": "kept"})
    with RatingsStore(path) as store:
        assert store.drafts.of(assignment) == {"comment": "kept"}
        store.drafts.keep(assignment, {})
        assert store.drafts.of(assignment) == {}


def test_a_file_of_schema_4_gets_the_versions_of_its_guideline(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with RatingsStore(path, create=True) as store:
        items = [store.add_item(question(number), [{"text": "a"}, {"text": "b"}]) for number in range(4)]
        for number, guideline in enumerate([None, "Be kind.", "Be kind and brief."]):
            if guideline:
                store.settings.guideline = guideline
            assignment = store.claim("ada")
            assert assignment is not None
            store.submit(assignment, "left", 2.0 + number)
        store.import_rating(items[3], "bo", "first")
        before, wordings, fingerprint = store.ratings(), store.settings.wordings("guideline"), store.fingerprint()
        drop_versions(store)
        store._db.execute("PRAGMA user_version = 4")
    with RatingsStore(path) as store:
        # The times of the versions are those of their events.
        assert [wording.text for wording in wordings] == ["Be kind.", "Be kind and brief."]
        assert [wording[::2] for wording in store.settings.wordings("guideline")] == [w[::2] for w in wordings]
        assert store.ratings() == before and store.fingerprint() == fingerprint
        assert [rating.guideline for rating in before] == [None, 1, 2, None]
        assert store.settings.guideline == "Be kind and brief."
        store.settings.guideline = "Be brief."
        assert store.settings.wordings("guideline")[-1].version == 3


def test_a_rating_knows_its_guideline_and_how_the_answers_were_shown(tmp_path: Path) -> None:
    with RatingsStore(tmp_path / "new.db", create=True) as store:
        for number in range(3):
            store.add_item(question(number), [{"text": "a"}, {"text": "b"}])
        for guideline, view in [("", None), ("Be kind.", "raw"), ("Be kind.", "rendered")]:
            store.settings.guideline = guideline
            assignment = store.claim("ada")
            assert assignment is not None
            store.submit(assignment, "left", 2.0, view=view)  # type: ignore[arg-type]
        given = [(rating.guideline, rating.questions, rating.view) for rating in store.ratings()]
        assert given == [(None, None, None), (1, None, "raw"), (1, None, "rendered")]
        assert store.undo("ada") is not None
        assignment = store.claim("ada")
        assert assignment is not None
        store.settings.guideline = "Be brief."  # it does not change what this answer was given under
        store.submit(assignment, "right", 2.0)
        assert [(rating.guideline, rating.view) for rating in store.ratings()][2] == (1, None)
        with pytest.raises(sqlite3.IntegrityError):
            store._db.execute("UPDATE rating SET view = 'upside down'")


def test_a_file_of_schema_3_is_taken_over_whole(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with RatingsStore(path, create=True) as store:
        items = [store.add_item(question(number), [{"text": "a"}, {"text": "b"}]) for number in range(3)]
        store.import_rating(items[0], "ada", "first")
        before = store.progress("bo"), store.fingerprint()
        drop_counter(store)
        store._db.execute("PRAGMA user_version = 3")
    with RatingsStore(path) as store:
        assert (store.progress("bo"), store.fingerprint()) == before
        assert before[0].total == 2
        store.import_rating(items[1], "ada", "first")
        assert store.progress("bo").total == 1


def test_a_file_of_schema_2_is_taken_over_whole(tmp_path: Path) -> None:
    """Schema 3 added `given`."""
    path = tmp_path / "old.db"
    with RatingsStore(path, create=True) as store:
        single = store.add_item(question(1), [{"text": "a"}], kind="single")
        store.import_rating(single, "ada", "scored", score=5)
        before, fingerprint = store.ratings(), store.fingerprint()
        store._db.execute("ALTER TABLE rating DROP COLUMN given")
        drop_counter(store)
        store._db.execute("PRAGMA user_version = 2")
    with RatingsStore(path) as store:
        assert store.ratings() == before
        assert store.fingerprint() == fingerprint
        assert store.import_rating(single, "bo", "scored", score=6, given=80.0)
        assert [rating.given for rating in store.ratings()] == [None, 80.0]
        assert store.fingerprint()["sha256"] != fingerprint["sha256"]


def test_a_file_of_schema_1_is_taken_over_whole(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    make_schema_1(path)
    with RatingsStore(path) as store:
        assert (store.seed, store.settings.guideline) == (7, "Be kind.")
        assert [(item.id, item.kind, item.need, item.gold) for item in store.items()] == [
            (i, "pair", 2, None) for i in (1, 2, 3)
        ]
        assert store.items()[0].completions == (Completion("a", model="m@v1", tokens=2), Completion("b"))
        first, tie, skip, second = store.ratings(skips=True)
        assert first == Rating(
            id=1,
            item=1,
            labeler="ada",
            kind="pair",
            order_shown=(1, 0),
            choice="first",
            strength=2,
            ranks=None,
            score=None,
            seconds=3.5,
            comment="why",
            flags=("unsafe",),
            claimed_at=1.0,
            done_at=2.0,
            why="random",
        )
        assert [(rating.id, rating.choice) for rating in (tie, skip, second)] == [
            (2, "tie"),
            (4, "skip"),
            (5, "second"),
        ]
        assert dict(store._db.execute("SELECT id, answered FROM item").fetchall()) == {1: 2, 2: 1, 3: 0}
        # The digest of schema 1: what a model was trained on then is recognised now.
        rows = [
            [old_key(question(i), ["a", "b"]), choice, strength]
            for i, choice, strength in [(1, "first", 2), (1, "tie", None), (2, "second", 3)]
        ]
        dumped = sorted(json.dumps(row) for row in rows)
        assert store.fingerprint()["sha256"] == sha256(json.dumps(dumped).encode()).hexdigest()
        assert store.fingerprint()["rating_ids"] == "1-2,5"
        assert store.add_item(question(1), [{"text": "a"}, {"text": "b"}]) == 1
        opened = store.claim("ada")
        assert opened is not None and (opened.rating, opened.item) == (9, 3)
        store.submit(opened, "left", 1.0)
        assert store.undo("ada") is not None
        events = store._db.execute("SELECT kind FROM event ORDER BY id").fetchall()
        assert [event["kind"] for event in events] == ["claim", "submit", "undo"]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._db.execute("DELETE FROM event")
        assert store._db.execute("PRAGMA foreign_key_check").fetchall() == []
    with RatingsStore(path) as store, RatingsStore(tmp_path / "new.db", create=True) as new:
        schema = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        assert [tuple(row) for row in store._db.execute(schema)] == [tuple(row) for row in new._db.execute(schema)]


def test_a_takeover_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    make_schema_1(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("INSERT INTO rating VALUES(10, 3, 'eve', '[0, 1]', 'neither', NULL, 1.0, '', '[]', 1.0, 2.0, 1)")
        before = list(db.iterdump())
    db.close()
    with pytest.raises(UserError, match="cannot open the ratings file"):
        RatingsStore(path)
    with sqlite3.connect(path) as db:
        assert list(db.iterdump()) == before
    db.close()


def test_an_invitation_is_a_secret_that_a_new_one_ends(store: RatingsStore) -> None:
    first, other = store.people.invite("ada"), store.people.invite("bob")
    assert store.people.labeler_of(first) == "ada" and store.people.labeler_of(other) == "bob"
    second = store.people.invite("ada")
    assert len({first, second, other}) == 3 and min(map(len, (first, second, other))) >= 43  # 256 bits
    assert store.people.labeler_of(first) is None and store.people.labeler_of(second) == "ada"
    store.people.revoke("ada")
    store.people.revoke("nobody")
    assert store.people.labeler_of(second) is None and store.people.labeler_of(other) == "bob"
    for strange in ("", "ada", "\ud800", other[:-1], sha256(other.encode()).hexdigest()):
        assert store.people.labeler_of(strange) is None
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = store.path.read_bytes()
    assert not any(token.encode() in content for token in (first, second, other))
    assert sha256(other.encode()).hexdigest().encode() in content
    with pytest.raises(UserError, match="1 to 64 printable"):
        store.people.invite("a\nb")


def files(store: RatingsStore) -> bytes:
    """All that is on disk beside each other."""
    return b"".join(path.read_bytes() for path in sorted(store.path.parent.glob(store.path.name + "*")))


def test_forgetting_leaves_no_byte_of_a_labeler(store: RatingsStore) -> None:
    store._db.execute("PRAGMA secure_delete = OFF")  # SQLite's own default; Debian's build has it on
    fill(store, 30, need=2)
    store.people.mark_simulated("xanthippe")
    store.people.invite("xanthippe")
    store.settings.repeat_share = 0.2
    given = finish(store, "xanthippe", comment="zebra crossing " * 400)  # long enough for overflow pages
    undone = store.undo("xanthippe")
    assert undone is not None
    store.submit(undone, "skip", 1.0, comment="zebra again")
    finish(store, "socrates", comment="hemlock")
    kept = [rating for rating in store.ratings(skips=True) if rating.labeler == "socrates"]
    mark = store.fingerprint()
    hashed = store.people.labeler_hash("xanthippe")
    assert mark["labeler_hashes"][hashed] == 29  # 30 less the skip, repeats not among them
    assert b"xanthippe" in files(store) and b"zebra" in files(store)
    with RatingsStore(store.path) as other:  # another program has the file open, between two calls
        other.progress("socrates")
        assert store.people.forget("xanthippe") == given > 30
        remains = files(store)
        assert b"xanthippe" not in remains and b"zebra" not in remains and b"hemlock" in remains
        assert other.ratings(skips=True) == kept
    assert store.people.simulated() == frozenset()
    assert list(store.fingerprint()["labeler_hashes"]) == [store.people.labeler_hash("socrates")]
    events = store._db.execute("SELECT labeler, payload FROM event WHERE kind = 'forgotten'").fetchall()
    assert [tuple(event) for event in events] == [(hashed, f'{{"ratings": {given}}}')]
    assert store._db.execute("SELECT count(*) FROM event WHERE labeler = 'socrates'").fetchone()[0] > 60
    for statement in ("UPDATE event SET kind = 'x'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._db.execute(statement)
    # What they had answered is needed again, and a forgotten id is never given to another answer.
    store.settings.repeat_share = 0.0
    assert finish(store, "plato") == 30
    newest = store.ratings()[-1]
    assert newest.labeler == "plato" and store.people.forget("plato") == 30
    again = store.claim("zeno")
    assert again is not None and again.rating > newest.id
    assert store.people.forget("xanthippe") == 0 and store.people.forget("nobody") == 0
    assert store._db.execute("SELECT count(*) FROM event WHERE kind = 'forgotten'").fetchone()[0] == 2


def test_forgetting_says_when_a_reader_keeps_the_old_bytes(
    store: RatingsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 3)
    finish(store, "xanthippe")
    monkeypatch.setattr("alignment.ratings.file.BUSY_SECONDS", 0.05)
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM rating").fetchone()
    store._db.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(UserError, match="try again") as caught:
        store.people.forget("xanthippe")
    assert "\n" not in str(caught.value) and store.path.name in str(caught.value)
    reader.execute("COMMIT")
    reader.close()
    assert store.people.forget("xanthippe") == 0
    assert b"xanthippe" not in files(store) and store.ratings() == []


def test_fingerprint_names_the_rows_that_models_learn_from(store: RatingsStore) -> None:
    fill(store, 20)
    fill(store, 10, gold=Gold(choice="first"))
    single = store.add_item(question(50), [{"text": "s"}], kind="single")
    store.settings.gold_share, store.settings.repeat_share = 0.3, 0.2
    store.import_rating(single, "bob", "scored", score=3)
    while assignment := store.claim("ada"):
        choice = "skip" if assignment.item == 5 else "left"
        store.submit(assignment, choice, 1.0)  # type: ignore[arg-type]
    expected = {rating.id for rating in store.ratings(for_training=True)}
    assert {rating.why for rating in store.ratings()} == {"random", "gold", "repeat", "import"}
    mark = store.fingerprint()
    listed: set[int] = set()
    for part in mark["rating_ids"].split(","):
        first, _, last = part.partition("-")
        listed |= set(range(int(first), int(last or first) + 1))
    assert listed == expected and "-" in mark["rating_ids"] and mark["ratings"] == len(expected) == 20
    salt = store._db.execute("SELECT value FROM meta WHERE key = 'salt'").fetchone()[0]
    hashed = sha256(f"{salt}ada".encode()).hexdigest()[:16]
    assert mark["labeler_hashes"] == {hashed: 19, store.people.labeler_hash("bob"): 1}
    assert re.fullmatch("[0-9a-f]{16}", mark["database"]) and len(salt) >= 32
    store.import_rating(single, "eve", "scored", score=4)
    assert store.fingerprint()["sha256"] != mark["sha256"]


def test_imports_are_taken_once_and_never_overrule(store: RatingsStore) -> None:
    fill(store, 2)
    ranked = store.add_item(question(7), [{"text": c} for c in "abc"], kind="rank")
    single = store.add_item(question(7), [{"text": "s"}], kind="single")
    whole: dict[str, Any] = {
        "strength": 2,
        "order_shown": (1, 0),
        "seconds": 3.5,
        "comment": "c",
        "flags": ("f",),
        "claimed_at": 10.0,
        "done_at": 12.0,
        "why": "uncertain",
    }
    assert store.import_rating(1, "ada", "second", **whole) is True
    assert store.import_rating(1, "ada", "second", strength=2) is False
    assert store.import_rating(1, "ada", "tie", why="repeat", order_shown=(0, 1)) is True
    assert store.import_rating(2, "ada", "skip") is True
    assert store.import_rating(ranked, "ada", "ranked", ranks=(5, 1, 5)) is True
    assert store.import_rating(ranked, "ada", "ranked", ranks=(2, 1, 2)) is False
    assert store.import_rating(single, "ada", "scored", score=7) is True
    one, repeat, skip, rank, score = store.ratings(skips=True)
    assert asdict(one) | whole == asdict(one) and (one.choice, one.kind) == ("second", "pair")
    assert (repeat.choice, repeat.why, skip.choice, skip.order_shown, skip.seconds) == (
        "tie",
        "repeat",
        "skip",
        (),
        None,
    )
    assert (rank.ranks, score.score, score.why) == ((2, 1, 2), 7, "import")
    for arguments, expected in [
        ((1, "ada", "first"), "answered item 1 already, and otherwise .second, found first"),
        ((1, "ada", "second"), "answered item 1 already"),  # another strength
        ((ranked, "ada", "ranked", {"ranks": (1, 2, 2)}), "already"),
        ((99, "ada", "first"), "no item 99"),
        ((2, "bob", "scored", {"score": 3}), "pair item's answer"),
        ((2, "bob", "first", {"order_shown": (0, 0)}), "each of 0 to 1 once"),
        ((2, "bob", "first", {"why": "random"}), "each of 0 to 1 once"),
        ((2, " bob", "first"), "1 to 64 printable"),
    ]:
        *place, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
        with pytest.raises(UserError, match=expected):
            store.import_rating(*place, **options)  # type: ignore[misc]
    assert len(store.ratings(skips=True)) == 5
    assert store.claim("eve") is not None  # the skip left item 2 open
    assert dict(store._db.execute("SELECT id, answered FROM item").fetchall()) == {1: 1, 2: 0, ranked: 1, single: 1}


def test_an_import_takes_the_place_of_the_labelers_own_claim_and_can_be_undone(store: RatingsStore) -> None:
    fill(store, 1)
    claimed = store.claim("ada")
    assert claimed is not None
    assert store.import_rating(1, "ada", "first")
    with pytest.raises(UserError, match="already"):
        store.submit(claimed, "left", 1.0)
    undone = store.undo("ada")
    assert undone is not None and sorted(undone.order_shown) == [0, 1]  # it was not known how it had been shown
    store.submit(undone, "tie", 1.0)
    assert [replace(rating, done_at=0.0).choice for rating in store.ratings()] == ["tie"]


SECRET = st.text("SECRET-", min_size=8, max_size=20).map(lambda text: f"\u2603{text}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(SECRET, min_size=4, max_size=4), data=st.data())
def test_nothing_a_labeler_gets_names_a_model(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    """Model references and metadata all begin with a snowman; no text that labelers may see does."""
    store = RatingsStore(tmp_path_factory.mktemp("blind") / "r.db", create=True)
    with store, store.transaction():
        for i in range(8):
            kind = data.draw(st.sampled_from(["pair", "rank", "single"]))
            count = {"pair": 2, "rank": 3, "single": 1}[kind]
            texts = [Completion(f"text {k}", model=names[k], tokens=8_675_309) for k in range(count)]
            right = {"pair": Gold(choice="first"), "rank": Gold(ranks=(1, 2, 3)), "single": Gold(score=3)}[kind]
            gold = data.draw(st.sampled_from([None, right]))
            store.add_item(question(i), texts, kind=kind, gold=gold, metadata={names[3]: {"by": names[3]}})
        store.set_uncertainty(dict.fromkeys(range(1, 9), 0.1), names[0])
        store.settings.calibration, store.settings.gold_share, store.settings.repeat_share = 2, 0.3, 0.3
        seen: list[object] = []
        while assignment := store.claim("ada", order="uncertain"):
            answer: dict[str, Any] = {
                "pair": {"choice_shown": "left"},
                "rank": {"choice_shown": "ranked", "ranks_shown": (1, 2, 3)},
                "single": {"choice_shown": "scored", "score": 5},
            }[assignment.kind]
            store.submit(assignment, seconds=1.0, **answer)
            seen += [
                assignment,
                store.feedback(assignment),
                store.progress("ada"),
                store.assignment(assignment.rating, "ada"),
            ]
        seen += [store.undo("ada"), store.progress("ada")]
    assert "\u2603" not in repr(seen) and "8675309" not in repr(seen)
