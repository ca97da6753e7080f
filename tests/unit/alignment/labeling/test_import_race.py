"""Two imports into one new ratings file: neither removes what the other has written."""

import json
import sqlite3

import pytest

from alignment.errors import UserError
from alignment.labeling import import_export
from alignment.labeling.import_export import import_into
from alignment.ratings import RatingsStore


def write(path, count, labeler, broken=0):
    rows = [
        {
            "kind": "pair",
            "prompt": [{"role": "user", "content": f"{path.stem} {number}"}],
            "completions": [{"text": "a"}, {"text": "b"}],
            "ratings": [{"labeler": labeler, "choice": "first"}],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + broken * [{"kind": "pair"}]))
    return path


@pytest.fixture
def meanwhile(monkeypatch):
    """Lets another command do its whole work in the middle of the next import, once that has read its file."""
    original = import_export.import_file

    def prepare(work):
        def importing(store, *arguments):
            monkeypatch.setattr(import_export, "import_file", original)
            work()
            return original(store, *arguments)

        monkeypatch.setattr(import_export, "import_file", importing)

    return prepare


def labelers(db):
    with RatingsStore(db) as store:
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return sorted({rating.labeler for rating in store.ratings()})


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("r.db-"))


def test_an_import_that_fails_leaves_the_ratings_of_another(tmp_path, meanwhile):
    bad, good = write(tmp_path / "bad.jsonl", 20, "ada", broken=5), write(tmp_path / "good.jsonl", 10, "bob")
    db = tmp_path / "r.db"
    meanwhile(lambda: import_into(db, "jsonl", good))
    with pytest.raises(UserError, match="5 of 25 rows cannot be used"):
        import_into(db, "jsonl", bad)
    assert labelers(db) == ["bob"]
    assert names(tmp_path) == ["bad.jsonl", "good.jsonl", "r.db"]


def test_the_second_to_finish_adds_to_the_first(tmp_path, meanwhile):
    one, two = write(tmp_path / "one.jsonl", 20, "ada"), write(tmp_path / "two.jsonl", 10, "bob")
    db = tmp_path / "r.db"
    meanwhile(lambda: import_into(db, "jsonl", two))
    done = import_into(db, "jsonl", one)
    assert (done["new_items"], done["new_ratings"]) == (20, 20)
    assert labelers(db) == ["ada", "bob"]
    assert names(tmp_path) == ["one.jsonl", "r.db", "two.jsonl"]


def test_a_file_that_is_no_ratings_file_stays(tmp_path, meanwhile):
    db = tmp_path / "r.db"
    meanwhile(lambda: db.write_text("notes"))
    with pytest.raises(UserError, match="not a ratings file"):
        import_into(db, "jsonl", write(tmp_path / "one.jsonl", 20, "ada"))
    assert db.read_text() == "notes"


def test_errors_name_the_file_that_was_asked_for(tmp_path, meanwhile):
    db = tmp_path / "r.db"

    def fail():
        raise UserError(f"{next(tmp_path.glob('.r.db.*.part'))}: database or disk is full")

    meanwhile(fail)
    with pytest.raises(UserError) as error:
        import_into(db, "jsonl", write(tmp_path / "one.jsonl", 20, "ada"))
    assert str(error.value) == f"{db}: database or disk is full"
    assert names(tmp_path) == ["one.jsonl"]
    with pytest.raises(UserError, match=f"^{tmp_path}/no/r.db: cannot open the ratings file"):
        import_into(tmp_path / "no" / "r.db", "jsonl", tmp_path / "one.jsonl")


def test_a_new_file_is_private_and_whole_without_its_log(tmp_path):
    db = tmp_path / "r.db"
    import_into(db, "jsonl", write(tmp_path / "one.jsonl", 20, "ada"))
    assert [path.name for path in tmp_path.glob("r.db*")] == ["r.db"]
    assert db.stat().st_mode & 0o777 == 0o600 and db.stat().st_nlink == 1
    assert sqlite3.connect(db).execute("SELECT count(*) FROM rating").fetchone()[0] == 20
