"""Exports of annotation tools are told from texts to train on, and the command that reads them is named."""

import json

import pytest

from alignment.config.sections import DataConfig, DataPart
from alignment.data.annotations import annotation_format
from alignment.data.convert import convert
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.row_files import DataError
from alignment.data.sources import open_source
from alignment.data.splitting import plan_split

ROWS = {
    "label-studio": [
        {"id": 1, "data": {"text": "x"}, "annotations": []},
        {"id": 1, "text": "x", "sentiment": "good", "annotator": 1, "lead_time": 2.0},
        {"text": "x", "annotation_id": 1, "annotator": "ada"},
    ],
    "argilla": [
        {"id": "a", "fields": {"text": "x"}, "responses": {}},
        {"id": "a", "fields": {"text": "x"}, "responses": [{"user_id": "u", "values": {}, "status": "submitted"}]},
        {"text": "x", "label.responses": ["good"], "label.responses.users": ["u"]},
        {"text": "x", "label": [{"user_id": "u", "value": "good", "status": "submitted"}]},
        {"text": "x", "label": {"user_id": ["u"], "value": ["good"], "status": ["submitted"]}},
    ],
    "potato": [
        {"id": "1", "displayed_text": "x", "label_annotations": {"q": {"good": "true"}}},
        {"instance_id": "1", "user_id": "u", "annotations": {"q": {"good": True}}},
    ],
    "prodigy": [
        {"text": "x", "answer": "accept", "_task_hash": 1},
        {"text": "x", "answer": "ignore", "_session_id": "u"},
    ],
    "doccano": [
        {"id": 1, "text": "x", "label": ["good"]},
        {"id": 1, "text": "x", "label": [[0, 1, "A"]]},
        {"id": 1, "text": "x", "entities": [], "relations": [], "Comments": []},
        {"id": 1, "text": "x", "annotations": [{"label": 1, "user": 2}]},
    ],
}


@pytest.mark.parametrize(("tool", "row"), [(tool, row) for tool, rows in ROWS.items() for row in rows])
def test_a_tools_rows_are_no_texts_to_train_on(tmp_path, tool, row):
    assert annotation_format(row) == tool
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        read_records(path, to_examples, DataConfig(train=str(path)))
    assert str(error.value).startswith(f"{path}:1: a row of {tool}: what people said of texts, not texts to train on")
    assert f"alignment rate import --db ratings.db --format {tool} {path}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "x"},
        {"id": 1, "text": "x", "label": "good"},
        {"id": 1, "text": "x", "label": 1},
        {"prompt": "q", "completion": "a", "annotator": "ada"},
        {"question": "q", "answer": "accept"},
        {"messages": [], "id": "1", "annotations": []},
        {"data": {"x": 1}},
    ],
)
def test_other_rows_are_not_taken_for_an_export(row):
    assert annotation_format(row) is None


def test_a_format_that_is_named_is_obeyed(tmp_path):
    path = tmp_path / "export.jsonl"
    path.write_text(json.dumps(ROWS["doccano"][0]) + "\n")
    config = DataConfig(train=str(path), format="text", columns={"label": None})
    assert [row for _, row in open_source(config.parts[0], config).rows] == [
        {key: value for key, value in ROWS["doccano"][0].items() if key != "label"}
    ]
    assert isinstance(config.parts[0], DataPart)
    assert len(read_records(path, to_examples, config).items) == 1
    with pytest.raises(DataError, match=r"'label' .* is not read in text rows"):
        read_records(path, to_examples, DataConfig(train=str(path), format="text"))


def test_one_exported_row_among_others_is_set_aside(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"text": "x"}, ROWS["doccano"][0]]))
    read = read_records(path, to_examples, DataConfig(train=str(path), max_bad_share=0.5))
    assert (len(read.items), [where for where, _ in read.bad]) == (1, [f"{path}:2"])


def test_a_split_and_a_conversion_read_rows_as_training_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS["doccano"][0]) + "\n")
    with pytest.raises(DataError, match=r"a row of doccano"):
        plan_split(path, 0.5, 0)
    with pytest.raises(DataError, match=r"a row of doccano"):
        convert(DataConfig(train=str(path)), tmp_path / "out.jsonl", "text")
    rows = [{"Prompt": f"question {n}", "Completion": "answer"} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, ROWS["doccano"][0]]))
    split = plan_split(path, 0.5, 0)
    assert [where.rpartition(":")[2] for where, _ in split.bad] == ["201"]
    assert sum(split.counts.values()) == 200


def test_messages_of_tickets_are_put_together_before_a_split(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("conversation_id,role,text\n1,user,When?\n1,agent,At nine.\n")
    with pytest.raises(
        DataError, match=r"t\.csv:2: a message, .*alignment data convert .*t\.csv chats\.jsonl --to chat"
    ):
        plan_split(path, 0.5, 0)
