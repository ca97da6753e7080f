"""Keys inside turns: they are read, refused by name, or listed as not used."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.check import Inspector, report_of
from alignment.data.importers import PassedOver
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.row_files import BadRow, DataError

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
MORE = {"input": "More?", "output": "No."}


def turns(row):
    (record,) = to_examples(row)
    return list(record.messages)


@pytest.mark.parametrize("key", ["output_with_loss", "need_loss", "train_on", "loss_scale", "loss_weight"])
def test_a_turn_that_is_marked_as_not_to_train_on_has_weight_0(key):
    exchange = turns({"conversation": [{"input": "Hi", "output": "Wrong", key: False}, MORE]})
    assert [turn.get("weight") for turn in exchange] == [None, 0, None, None]
    chat = turns({"messages": [HI, {**HELLO, key: 0.0}, HI, HELLO]})
    assert [turn.get("weight") for turn in chat] == [None, 0, None, None]
    with pytest.raises(BadRow, match=f"{key} 0.3; expected 0 or 1"):
        turns({"messages": [HI, {**HELLO, key: 0.3}]})


def test_the_system_of_an_exchange_is_the_system_turn():
    first = {"system": "Be brief.", "input": "Hi", "output": "Hello"}
    read = turns({"conversation": [first, {**MORE, "system": "Be brief."}]})
    assert [turn["role"] for turn in read] == ["system", "user", "assistant", "user", "assistant"]
    assert read[0]["content"] == "Be brief."
    with pytest.raises(BadRow, match="another 'system' than the first"):
        turns({"conversation": [first, {**MORE, "system": "Be rude."}]})


@pytest.mark.parametrize(
    ("turn", "key"),
    [
        ({"input": "Hi", "output": "Hello", "instruction": "Be brief."}, "instruction"),
        ({"input": "Hi", "output": "Hello", "history": [["a", "b"]]}, "history"),
        ({**HELLO, "tools": [{"name": "find"}]}, "tools"),
        ({**HELLO, "documents": ["We open at nine."]}, "documents"),
    ],
)
def test_a_key_of_known_meaning_that_is_not_read_of_a_turn_is_refused_by_name(turn, key):
    with pytest.raises(BadRow, match=f"has '{key}' .* not read of a turn"):
        turns({"conversations": [HI, turn]})


def test_an_analysis_is_the_reasoning_of_the_answer_after_it_and_never_an_answer():
    thought = {**HELLO, "channel": "analysis", "content": "A greeting."}
    (asked, answer) = turns({"messages": [HI, thought, {**HELLO, "channel": "final"}]})
    assert (asked, answer) == (HI, {**HELLO, "reasoning_content": "A greeting."})
    with pytest.raises(BadRow, match="in the channel 'analysis', which is no answer"):
        turns({"messages": [HI, thought]})
    with pytest.raises(BadRow, match="in the channel 'commentary'"):
        turns({"messages": [HI, {**thought, "channel": "commentary"}, {**HELLO, "channel": "final"}]})


def test_other_keys_of_turns_are_listed_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"messages": [{**HI, "country": "NL"}, {**HELLO, "toxic": False, "state": None}], "id": 7}
    path.write_text(f"{json.dumps(row)}\n" * 2)
    notes = read_records(path, to_examples, DataConfig(train="unused")).notes
    assert notes == [f"{path}: not used: id", f"{path}: not used in turns: country, toxic"]
    inspector = Inspector(DataConfig(train=str(path)))
    inspector.add("rows.jsonl:1", row)
    (finding,) = [each for each in report_of(inspector, []).findings if each.kind == "not_used"]
    assert finding.text == "not used: id; not used in turns: country, toxic"


@pytest.mark.parametrize("key", ["is_safe", "accepted", "is_correct"])
def test_a_mark_of_the_answer_is_refused_until_it_is_named(tmp_path, key):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Hi", "response": str(good), key: good}) + "\n" for good in (1, 0)))
    with pytest.raises(DataError, match=f"'{key}' .* is not read in completion rows; --column label={key} reads it"):
        read_records(path, to_examples, DataConfig(train="unused"))
    (record,) = read_records(path, to_examples, DataConfig(train="unused", columns={"label": key})).items
    assert record.messages[-1]["content"] == "1"


def test_the_quality_of_an_answer_in_words_is_its_label():
    row = {"prompt": "Hi", "response": "Hello"}
    with pytest.raises(PassedOver, match="marked as a bad one"):
        to_examples({**row, "quality": "Bad"})
    assert to_examples({**row, "quality": "good"}) == to_examples(row)
    for unclear in (1, "4", "fair"):
        with pytest.raises(BadRow, match=r"'quality' is .*--column rating=quality reads numbers as ratings"):
            to_examples({**row, "quality": unclear})
