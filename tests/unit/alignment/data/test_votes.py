"""Votes in rows of training data: numbers are read where it is certain which answer they mean."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.check.inspector import Inspector
from alignment.data.convert import convert
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_examples, to_judgements
from alignment.data.reading import read_records
from alignment.data.records import Vote
from alignment.data.row_files import BadRow, DataError


def write(path, said, key="winner"):
    rows = [
        {"prompt": f"question {n}", "response_a": "good", "response_b": "bad", key: value}
        for n, value in enumerate(said)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("value", [0, -1, "-1", "+1", 3, 1.5, "0.0"])
@pytest.mark.parametrize("to", [to_judgements, to_examples])
def test_one_number_whose_meaning_is_not_certain_stops_the_reading(tmp_path, value, to):
    path = write(tmp_path / "votes.jsonl", [*[1] * 300, value])
    with pytest.raises(DataError, match=r"votes.jsonl:301: who won is .*`alignment rate import --db ratings.db FILE`"):
        read_records(path, to, DataConfig(train="x"))
    with pytest.raises(DataError, match=r"votes.jsonl:301: who won is "):
        convert(DataConfig(train=str(path)), tmp_path / "out.jsonl", "pair")
    assert not (tmp_path / "out.jsonl").exists()


def test_one_and_two_are_the_first_and_the_second(tmp_path):
    path = write(tmp_path / "votes.jsonl", [1, "2", 2.0, "1.0"])
    records = read_records(path, to_judgements, DataConfig(train="x")).items
    assert [record.votes for record in records] == [(Vote(side),) for side in ("first", "second", "second", "first")]


def test_the_data_check_stops_too():
    row = {"prompt": "q", "response_a": "good", "response_b": "bad", "winner": 0}
    with pytest.raises(DataError, match=r"votes.jsonl:7: who won is 0"):
        Inspector(DataConfig(train="x"), stage="reward").add("votes.jsonl:7", row)


def test_places_in_a_list_are_no_answers():
    for chosen, rejected in ((0, 1), ("0", "1"), (1, 2)):
        row = {"prompt": "q", "responses": json.dumps(["good", "bad"]), "chosen": chosen, "rejected": rejected}
        with pytest.raises(BadRow, match=r"'chosen' is .* and 'rejected' is .*, places in 'responses'; write"):
            to_judgements(row)
    row = {"prompt": "6 times 7?", "chosen": "42", "rejected": "41"}
    assert [(each.first, each.second) for each in to_judgements(row)] == [("42", "41")]


def test_an_assignment_that_was_refused_is_passed_over():
    row = {"prompt": "q", "response_a": "good", "response_b": "bad", "winner": "a"}
    assert len(to_judgements(row | {"AssignmentStatus": "Approved", "Reject": None})) == 1
    with pytest.raises(PassedOver, match="rejected"):
        to_judgements(row | {"AssignmentStatus": "Rejected"})


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("both bad", "tie"),
        ("Both are bad", "tie"),
        ("Model A", "first"),
        ("response-2", "second"),
        ("no preference", "tie"),
    ],
)
def test_words_are_read_whatever_their_signs_and_case(said, choice):
    row = {"prompt": "q", "response_a": "good", "response_b": "bad", "winner": said}
    assert [each.votes for each in to_judgements(row)] == [(Vote(choice),)]


@pytest.mark.parametrize("said", ["unsure", "", None, "N/A", "skip"])
def test_a_vote_that_was_skipped_is_passed_over(said):
    with pytest.raises(PassedOver, match="the labeler skipped it"):
        to_judgements({"prompt": "q", "response_a": "good", "response_b": "bad", "winner": said})
