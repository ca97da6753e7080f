"""What rows say of attributes, apart from the answers as a whole."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from alignment.data.attributes import AttributeReader
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_prompt
from alignment.data.records import Comparison
from alignment.data.row_files import BadRow

PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
TWO = {"prompt": "Hi", "response_1": "Hello", "response_2": "Go away"}
ONE = {"prompt": "Hi", "completion": "Hello"}


def read(row, *names):
    found = AttributeReader(names)(row)
    if isinstance(found[0], Comparison):
        return {each.attribute: (each.votes[0].choice, each.votes[0].strength) for each in found}
    return {each.attribute: each.rating for each in found}


@pytest.mark.parametrize("row", [PAIR, TWO, {**TWO, "vote": "2", "rater": "ann"}, {**TWO, "preference": 1}])
def test_votes_of_two_answers(row):
    row = {**row, "attributes": {"helpful": 2, "harmless": -1, "brief": 0, "kind": None}}
    assert read(row, "helpful", "brief", "harmless", "kind", "deep") == {
        "helpful": ("first", 2), "brief": ("tie", None), "harmless": ("second", 1),
    }  # fmt: skip


def test_the_whole_is_read_where_it_is_asked_for_and_said():
    row = {**TWO, "vote": "2", "rater": "ann", "attributes": {"helpful": 2}}
    assert read(row, "overall", "helpful") == {"overall": ("second", None), "helpful": ("first", 2)}
    assert [each.votes[0].labeler for each in AttributeReader(["overall", "helpful"])(row)] == ["ann", "ann"]
    assert read({**TWO, "attributes": {"helpful": 2}}, "overall", "helpful") == {"helpful": ("first", 2)}
    assert read({**PAIR, "attributes": {"overall": -3}}, "overall") == {"overall": ("second", 3)}
    assert read(PAIR, "overall", "helpful") == {"overall": ("first", None)}


@pytest.mark.parametrize("row", [
    {**ONE, "attributes": {"correctness": 4, "verbosity": 0.5}},
    {**ONE, "attributes": '{"correctness": 4, "verbosity": 0.5}'},
    {**ONE, "correctness": 4, "verbosity": "0.5", "complexity": 2},
    {"instruction": "Hi", "output": "Hello", "correctness": 4, "verbosity": 0.5},
    {**ONE, "rating": 1, "attributes": {"correctness": 4, "verbosity": 0.5}},
])  # fmt: skip
def test_scores_of_one_answer_under_their_key_or_as_columns(row):
    assert read(row, "correctness", "verbosity") == {"correctness": 4.0, "verbosity": 0.5}


def test_helpsteer_as_it_is():
    row = {"prompt": "Hi", "response": "Hello", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1}
    assert read(row, "helpfulness", "coherence") == {"helpfulness": 3.0, "coherence": 4.0}
    assert read(row, "overall", "correctness") == {"overall": 3.0, "correctness": 4.0}  # the shape's own rating


@pytest.mark.parametrize(("row", "said"), [
    ({**PAIR, "attributes": {"helpful": 4}}, r"'attributes.helpful' is 4; expected a whole number from 3"),
    ({**PAIR, "attributes": {"helpful": 0.5}}, "expected a whole number"),
    ({**PAIR, "attributes": {"helpful": "yes"}}, "must be a number, found 'yes'"),
    ({**TWO, "preference_strength": -2, "attributes": {"helpful": 1}}, "may count the other way round"),
    ({"prompt": "Hi", "completions": ["a", "b", "c"], "ranks": [1, 2, 3], "attributes": {"helpful": 1}}, "has more"),
    ({"prompt": "Hi", "attributes": {"helpful": 1}}, "found the keys"),
])  # fmt: skip
def test_what_is_no_vote_or_score_is_a_bad_row(row, said):
    with pytest.raises(BadRow, match=said):
        read(row, "helpful")


def test_a_row_that_judges_none_of_them_is_passed_over_and_what_it_judges_is_known():
    reader = AttributeReader(["helpful"])
    for row in (PAIR, TWO, ONE):
        with pytest.raises(PassedOver, match=r"judges none of reward.attributes, but kind$"):
            reader({**row, "attributes": {"kind": 1}})
    assert list(reader.seen) == ["kind"]
    with pytest.raises(PassedOver, match=r"but helpfull; did you mean 'helpfull'\?"):
        reader({**PAIR, "attributes": {"helpfull": 1}})
    with pytest.raises(BadRow, match="found the keys"):
        reader(TWO)


# --- QA-Feedback: errors that annotators marked ----------------------------------------------------------------------

MARKED = {
    "question": "When?",
    "passages": [["Hours", "Nine to five."]],
    "prediction 1": "At ten, I think. I like tea. At ten.",
    "prediction 2": "No.",
    "preference": [1],
    "feedback": {
        "errors": [
            {"error type": "Irrelevant", "start": 17, "end": 28, "explanation": ""},
            {"error type": "Redundant", "start": 29, "end": 36, "explanation": "At ten"},
            {"error type": "Wrong-Grounding", "start": 0, "end": 6, "explanation": ""},
        ],
        "missing-info": [],
        "corrected-prediction": "At nine.",
    },
}
KINDS = ("relevance", "factuality", "completeness")
SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")


def test_errors_that_annotators_marked_judge_the_answer_against_the_corrected_one():
    pairs = AttributeReader(KINDS)(MARKED)
    prompt = to_prompt({key: value for key, value in MARKED.items() if key != "feedback"}).messages
    expected = [(prompt, MARKED["prediction 1"], "At nine.", 2)] * 3
    assert [(pair.prompt, pair.first, pair.second, pair.size) for pair in pairs] == expected
    assert read(MARKED, *KINDS) == {
        "relevance": ("second", 2), "factuality": ("second", 1), "completeness": ("tie", None),
    }  # fmt: skip
    many = [{"error type": "Missing-Answer", "passage_id": 0, "sentence_id": [0]}] * 5
    row = {**MARKED, "feedback": {"missing-info": many, "corrected-prediction": "At nine."}}
    assert read(row, "completeness", "relevance") == {"completeness": ("second", 3), "relevance": ("tie", None)}
    both = AttributeReader(["overall", "relevance"])(MARKED)
    assert [(pair.attribute, pair.second) for pair in both] == [("overall", "No."), ("relevance", "At nine.")]


def test_an_answer_that_was_not_corrected_has_no_pair_and_still_its_preferences():
    for text, said in ((MARKED["prediction 1"], "corrected nothing"), (" ", "left no corrected answer")):
        row = {**MARKED, "feedback": {"errors": [], "missing-info": [], "corrected-prediction": text}}
        with pytest.raises(PassedOver, match=said):
            read(row, "relevance")
        assert read(row, "relevance", "overall") == {"overall": ("first", None)}


def test_feedback_of_another_shape_is_no_such_thing():
    with pytest.raises(PassedOver, match="judges none"):
        read({**PAIR, "feedback": "Well done."}, "relevance")
    with pytest.raises(PassedOver, match=r"but completeness, factuality, relevance; did you mean 'relevance'\?"):
        read(MARKED, "relevanc")


@pytest.mark.parametrize(("feedback", "said"), [
    ("good", "'feedback' must be an object with errors, missing-info and corrected-prediction, found 'good'"),
    ({"errors": ["Irrelevant"]}, "'feedback.errors' must be a list of objects with an 'error type'"),
    ({"errors": [{"error type": "Rude"}]}, "an 'error type' in 'feedback.errors' is 'Rude'; expected one of Irrel"),
    ({"missing-info": [{"error type": "Irrelevant"}]}, "is 'Irrelevant'; expected one of Missing-Answer"),
    ({"errors": [{"error type": []}]}, "is \\[\\]; expected one of"),
    ({"errors": [], "corrected-prediction": 3}, "corrected-prediction"),
])  # fmt: skip
def test_feedback_of_an_unknown_form_says_what_was_found(feedback, said):
    with pytest.raises(BadRow, match=said):
        read({**MARKED, "feedback": feedback}, "relevance")


def test_the_errors_of_the_published_rows_are_counted_as_they_were_marked():
    path = SHARED / "qa-feedback" / "feedback.json"
    if not path.exists():
        pytest.skip("no qa-feedback; name the folder of published data in ALIGNMENT_TEST_DATA")
    rows = json.loads(path.read_text())
    expected, found, passed = Counter(), Counter(), 0
    for row in rows:
        kinds = [error["error type"] for key in ("errors", "missing-info") for error in row["feedback"][key]]
        corrected = row["feedback"]["corrected-prediction"].strip()
        if not corrected or corrected == row["prediction 1"].strip():
            passed += 1
            continue
        expected["relevance"] += any(kind in ("Irrelevant", "Redundant", "Incoherent") for kind in kinds)
        expected["factuality"] += any(kind in ("Unverifiable", "Wrong-Grounding") for kind in kinds)
        expected["completeness"] += any(kind.startswith("Missing") for kind in kinds)
    reader = AttributeReader(KINDS)
    for row in rows:
        try:
            found.update(pair.attribute for pair in reader(row) if pair.votes[0].choice == "second")
        except PassedOver:
            passed -= 1
    assert passed == 0 and found == expected and min(found.values()) > 100
