"""A row with a value of any wrong kind is refused in one line, by every reader."""

import copy
import math

import pytest

from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.labeling.formats.reading import ImportOptions
from alignment.labeling.formats.table import FORMATS, recognised

PART = {"value": {"selected": "left"}, "from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise"}
RANKER = {"value": {"ranker": {"rank": ["x", "y"]}}, "from_name": "r", "to_name": "items", "type": "ranker"}
ANSWERS = [{"value": ["a", "b"], "user_id": "u", "status": "submitted"}]
PAIR = {"prompt": "q", "a": "x", "b": "y"}
ROWS = {
    "label-studio": [
        {
            "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
            "annotations": [{"completed_by": 1, "result": [PART]}],
        },
        {
            "data": {"prompt": "q", "items": [{"id": "x", "body": "X"}, {"id": "y", "body": "Y"}]},
            "annotations": [{"completed_by": 1, "result": [RANKER]}],
        },
        {"prompt": "q", "a": "x", "b": "y", "annotator": 1, "lead_time": 1, "pw": {"selected": "left"}},
    ],
    "argilla": [
        {"fields": PAIR, "responses": {"rank": ANSWERS}},
        {
            "fields": PAIR,
            "responses": [{"user_id": "u", "status": "submitted", "values": {"rank": {"value": ["a", "b"]}}}],
        },
        PAIR | {"rank.responses": [["a", "b"]], "rank.responses.users": ["u"], "rank.responses.status": ["submitted"]},
    ],
    "potato": [
        PAIR | {"id": "1", "user_id": "u", "label_annotations": {"p": {"selection": "A"}}, "displayed_text": "x"},
        PAIR | {"id": "1", "user_id": "u", "label_annotations": {"p": {"rank_order": "A,B"}}},
    ],
    "prodigy": [
        {
            "text": "q",
            "options": [{"id": 1, "text": "x"}, {"id": 2, "text": "y"}],
            "accept": [1],
            "answer": "accept",
            "_task_hash": 1,
        },
        {
            "input": {"text": "q"},
            "A": {"text": "x"},
            "B": {"text": "y"},
            "mapping": {"A": "accept"},
            "answer": "accept",
            "_task_hash": 1,
        },
    ],
    "doccano": [
        {"id": 1, "text": "q\nx", "label": ["good"]},
        {"id": 1, "text": "q\nx", "annotations": [{"label": 1, "user": 2}]},
    ],
    "arena": [
        {
            "model_a": "m",
            "model_b": "n",
            "winner": "tie",
            "judge": "u",
            "turn": 1,
            "conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
            "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}],
        },
        {
            "model_a": "m",
            "model_b": "n",
            "winner": "tie",
            "prompt": '["q"]',
            "response_a": '["x"]',
            "response_b": '["y"]',
        },
    ],
    "helpsteer": [
        {"prompt": "q", "response": "x", "helpfulness": 3, "correctness": 4},
        {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": 1},
        {
            "context": [{"role": "user", "content": "q"}],
            "response1": "x",
            "response2": "y",
            "overall_preference": 1,
            "individual_preference": [{"score": 1}],
        },
    ],
    "alpaca": [{"instruction": "q", "input": "", "output_1": "x", "output_2": "y", "preference": 1, "annotator": 3}],
    "summaries": [
        {"info": {"post": "q"}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 1, "worker": "w", "extra": {}},
        {"info": {"post": "q"}, "summary": {"text": "x", "axes": {"overall": 5}}, "worker": "w"},
    ],
    "webgpt": [{"question": {"full_text": "q"}, "answer_0": "x", "answer_1": "y", "score_0": 0.5, "score_1": -0.5}],
    "shp": [{"history": "q", "human_ref_A": "x", "human_ref_B": "y", "score_A": 4, "score_B": 1, "labels": 1}],
    "reward-bench": [
        {"prompt": "q", "chosen": "x", "rejected": "y", "chosen_model": "m", "rejected_model": "n", "subset": "s"}
    ],
    "hh": [{"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y", "annotator": "u"}],
    "votes": [
        PAIR | {"vote": "a", "rater": "u", "comment": "c", "seconds": 3, "strength": 2},
        {"prompt": "q", "completion": "x", "rating": 5, "labeler": "u"},
        {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [1, 2, 3]},
        {"prompt": "q", "responses": ["x", "y"], "votes": [{"annotator": "u", "choice": 1}]},
        {"prompt": "q", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 2}]},
        PAIR | {"rating_a": 1, "rating_b": 2},
    ],
}
WRONG = [None, [], {}, 5, -1, "x", "", math.nan, True, [None], [{}], {"a": None}, [[1]], ["a", "b"], "[1", "{}", 10**30]
GONE = object()


def places(value, path=()):
    """The path of each value inside a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def changed(row, path, value):
    row = copy.deepcopy(row)
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(value)
    return row


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in ROWS.items() for row in rows])
def test_any_wrong_value_is_refused_in_one_line(name, row):
    assert recognised(row) == name
    assert FORMATS[name].read(row, ImportOptions())
    reasons = []
    for path in places(row):
        for value in (*WRONG, GONE):
            try:
                FORMATS[name].read(changed(row, path, value), ImportOptions())
            except (BadRow, UserError) as reason:
                reasons.append(str(reason))
    assert len(reasons) > len(WRONG)
    assert not [reason for reason in reasons if "\n" in reason]
