"""What rows say of attributes, apart from the answers as a whole."""

import pytest

from alignment.data.attributes import AttributeReader
from alignment.data.importers import PassedOver
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
