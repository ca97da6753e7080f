"""Votes in words, stars and grades; marked votes; names of people: read, or refused with all words in one line."""

import csv
import re

import pytest

from alignment.errors import UserError
from alignment.labeling.formats.reading import import_options
from alignment.labeling.import_export import import_file
from alignment.ratings import RatingsStore

PAIR = {"prompt": "When?", "response_a": "At nine.", "response_b": "No."}
SINGLE = {"prompt": "When?", "response": "At nine."}


def imported(folder, rows, **options):
    path = folder / "votes.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    with RatingsStore(folder / "r.db", create=True) as store:
        result = import_file(store, "auto", path, import_options(**options))
        return result, list(store.ratings())


@pytest.mark.parametrize(
    ("said", "choice", "strength"),
    [
        ("A is much better", "first", 3), ("Response B is slightly better", "second", 1),
        ("B is better", "second", None),
        ("about the same", "tie", None),
    ],
)  # fmt: skip
def test_strengths_in_words(tmp_path, said, choice, strength):
    _, (rating,) = imported(tmp_path, [{**PAIR, "choice": said}])
    assert (rating.choice, rating.strength) == (choice, strength)


def test_words_that_are_not_known_are_named_together_and_the_fix_works(tmp_path):
    rows = [{**PAIR, "prompt": f"q{n}", "choice": word} for n, word in enumerate(("oben", "unten", "oben, klar"))]
    with pytest.raises(UserError, match=r"'oben', 'unten', 'oben, klar' .*=MEANING") as refused:
        imported(tmp_path, rows)
    labels = re.search(r"--labels='([^']*)'", str(refused.value))[1]
    for word in ("a", "b", "a"):
        labels = labels.replace("MEANING", word, 1)
    _, ratings = imported(tmp_path, rows, labels=[labels])
    assert [rating.choice for rating in ratings] == ["first", "second", "first"]


def test_stars_grades_and_dates(tmp_path):
    _, ratings = imported(tmp_path, [{**SINGLE, "rating": "★★★★☆"}])
    assert ratings[0].given == 4
    columns = ["rating=Note (1 = best, 6 = worst),labeler=who"]
    grades = [{**SINGLE, "Note (1 = best, 6 = worst)": 1, "who": "ann"}]
    (tmp_path / "grades").mkdir()
    with pytest.raises(UserError, match=r"--scale 6\.\.1 if 1 is the best"):
        imported(tmp_path / "grades", grades, columns=columns)
    result, ratings = imported(tmp_path / "grades", grades, columns=columns, scale="6..1")
    assert (ratings[0].given, ratings[0].score, ratings[0].labeler) == (6, 7, "ann")
    assert any("turned round" in note for note in result["notes"])
    with pytest.raises(UserError, match="is a date, as spreadsheets make"):
        imported(tmp_path, [{**SINGLE, "rating": "04. Mai"}])


@pytest.mark.parametrize(
    "key", ["Rated by", "evaluated_by", "crowd_worker_id", "Judged By", "grader", "participant_id"]
)
def test_names_of_people(tmp_path, key):
    _, (rating,) = imported(tmp_path, [{**PAIR, "choice": "A", key: "ann"}])
    assert rating.labeler == "ann"


@pytest.mark.parametrize("mark", ["is_gold", "exclude", "_tainted", "is_spam", "GOLDEN:result", "deleted"])
def test_marked_votes_are_left_out_and_counted(tmp_path, mark):
    rows = [{**PAIR, "choice": "A", mark: ""}, {**PAIR, "prompt": "Why?", "choice": "A", mark: "yes"}]
    result, ratings = imported(tmp_path, rows)
    assert len(ratings) == 1 and mark not in result["not_used"]
    assert [reason for reason in result["passed_over"] if f"({mark}" in reason]


def test_places_beside_the_order_on_the_screen_are_refused(tmp_path):
    row = {**PAIR, "choice": "left", "displayed_left": "response_b"}
    with pytest.raises(UserError, match=r"'displayed_left' says in which order the answers were shown"):
        imported(tmp_path, [row])
    _, (rating,) = imported(tmp_path, [{**row, "choice": "response_b"}])
    assert rating.choice == "second"


def test_lines_of_totals_and_of_qualtrics(tmp_path):
    total = {"prompt": "TOTAL", "response_a": "", "response_b": "", "choice": "A: 1"}
    with pytest.raises(UserError, match=r"'response_a' is empty; take the line out"):
        imported(tmp_path, [{**PAIR, "choice": "A"}, total])
    lines = [
        {"StartDate": "Start Date", "ResponseId": "Response ID", **PAIR, "choice": "Which?"},
        {"StartDate": '{"ImportId":"startDate"}', "ResponseId": "x", **PAIR, "choice": "{}"},
        {"StartDate": "2025-05-01", "ResponseId": "R_1", **PAIR, "choice": "A"},
    ]
    (tmp_path / "q").mkdir()
    result, ratings = imported(tmp_path / "q", lines)
    assert len(ratings) == 1 and result["passed_over"] == {"a header line of Qualtrics": 2}
