"""Tables with a column for each rater, a best and a worst answer, keys inside others, and scales that are assumed."""

import json

import pytest
from helpers.votes import QUESTION, RIGHT, WRONG, Imported

from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.errors import UserError

SIDES = {"prompt": QUESTION, "response_a": RIGHT, "response_b": WRONG}


@pytest.mark.parametrize(
    "names", [("rater1", "rater2"), ("annotator_1", "annotator_2"), ("Judge 7", "Judge 9")], ids=str
)
def test_each_column_of_a_rater_is_a_vote(tmp_path, names):
    done = Imported(
        tmp_path, [{**SIDES, names[0]: "a", names[1]: "tie"}, {**SIDES, "prompt": "x", names[0]: "b", names[1]: ""}]
    )
    assert done.result["not_used"] == []
    assert sorted(done.votes) == sorted([(names[0], "first"), (names[1], "tie"), (names[0], "second")])


def test_columns_of_raters_names_and_of_what_they_said_belong_together(tmp_path):
    done = Imported(tmp_path, [{**SIDES, "rater_1": "ann", "vote_1": "a", "rater_2": "bo", "vote_2": "b"}])
    assert done.winners() == [("ann", RIGHT), ("bo", WRONG)]
    assert done.result["not_used"] == []


def test_ratings_in_columns_of_raters(tmp_path):
    done = Imported(tmp_path, [{"prompt": QUESTION, "completion": RIGHT, "rater1": 7, "rater2": 1}])
    assert [(rating.labeler, rating.score) for rating in done.ratings] == [("rater1", 7), ("rater2", 1)]


def test_numbers_of_raters_are_read_where_they_are_certain(tmp_path):
    with pytest.raises(UserError, match="the choices are the numbers 0, 1, and which answer each means is not certain"):
        Imported(tmp_path, [{**SIDES, "rater1": 1, "rater2": 0}])


def test_a_best_and_a_worst_answer_are_votes_on_the_pairs_that_they_decide(tmp_path):
    row = {"prompt": QUESTION, "responses": ["x", "y", "z"], "best": 2, "worst": 3}
    done = Imported(tmp_path, [row], labels={"1": "a", "2": "b", "3": "c"})
    pairs = {frozenset(done.texts(item)): text for item, (_, text) in enumerate(done.winners())}
    assert pairs == {frozenset("xy"): "y", frozenset("yz"): "y", frozenset("xz"): "x"}
    assert done.result["not_used"] == []
    with pytest.raises(UserError, match="the best answer is 2 and the worst 2; expected two of the answers"):
        Imported(tmp_path / "same", [row | {"worst": 2}], labels={"1": "a", "2": "b", "3": "c"})


def test_an_even_vote_between_1_and_2_is_a_tie_where_the_user_says_so(tmp_path):
    rows = [{**SIDES, "choice": 1.5}, {**SIDES, "prompt": "x", "choice": 1}]
    with pytest.raises(UserError, match=r"numbers 1, 1.5, and .*--labels='1=a,1.5=tie'"):
        Imported(tmp_path, rows)
    done = Imported(tmp_path / "said", rows, labels={"1": "a", "1.5": "tie", "2": "b"})
    assert [choice for _, choice in done.votes] == ["tie", "first"]


def test_keys_inside_others_are_named_by_their_paths(tmp_path):
    said = {"preference": {"type": "category", "response": [["A"]]}}
    row = {"task_id": "1", "params": SIDES, "response": {"annotations": said}}
    with pytest.raises(UserError, match=r"\(a key inside another as params\.prompt\)"):
        Imported(tmp_path, [row])
    columns = {"prompt": "params.prompt", "a": "params.response_a", "b": "params.response_b"}
    columns["choice"] = "response.annotations.preference.response"
    done = Imported(tmp_path / "named", [row], columns=columns)
    assert done.winners() == [("unnamed", RIGHT)]
    assert done.result["not_used"] == ["task_id"]


@pytest.mark.parametrize(
    ("values", "scale", "said"),
    [((1, 2), None, "1 to 2"), ((3, 5), None, "3 to 5"), ((1, 7), None, ""), ((1, 2), (1.0, 2.0), "")],
)
def test_a_scale_that_was_assumed_is_said(tmp_path, values, scale, said):
    rows = [{"prompt": f"{QUESTION} {value}", "completion": RIGHT, "rating": value} for value in values]
    notes = Imported(tmp_path, rows, scale=scale).result["notes"]
    text = (
        f"the ratings are read on the scale 1 to 7, of which the file has {said}; if the labelers had another, import "
    )
    assert len(notes) == bool(said) and all(note.startswith(text) for note in notes)
    assert all(note.endswith(f"--scale 1..{values[1]}") for note in notes)


def test_doccanos_answers_to_a_text_are_told_and_can_be_trained_on(tmp_path):
    row = {"id": 1, "text": "Good morning", "label": ["Guten Morgen allerseits"]}
    with pytest.raises(UserError, match=r"sequence to sequence.*data.columns='{prompt: text, completion: label}'"):
        Imported(tmp_path, [row])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = DataConfig(train="x", format="completion", columns={"prompt": "text", "completion": "label"})
    (record,) = read_records(tmp_path / "rows.jsonl", to_examples, config).items
    assert [turn["content"] for turn in record.messages] == ["Good morning", "Guten Morgen allerseits"]
