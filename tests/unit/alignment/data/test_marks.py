"""Rows that people marked as not to be used are left out and counted, or warned of; corrected answers are learned."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.check.inspector import Inspector
from alignment.data.formats import unused_keys
from alignment.data.importers import PassedOver
from alignment.data.parsing import CORRECTED, to_examples, to_judgements, to_prompts
from alignment.data.reading import read_records
from alignment.data.row_files import BadRow
from alignment.data.sources import renamed

ROW = {"prompt": "When?", "completion": "At nine."}
CHAT = {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}]}
PAIR = {"prompt": "When?", "chosen": "At nine.", "rejected": "No."}
TREE = {"message_tree_id": "1", "prompt": {"role": "prompter", "text": "Hi", "replies": [
    {"role": "assistant", "text": "Hello", "rank": 0, "replies": []},
    {"role": "assistant", "text": "Go", "rank": 1, "replies": []},
]}}  # fmt: skip
OUT = [
    ("deleted", True), ("is_deleted", "1"), ("skip", 1), ("Skip?", "yes"), ("exclude", "x"), ("rejected_by", "Ann"),
    ("rejected_by_reviewer", "yes"), ("deletedAt", "2025-01-01"), ("rejection_reason", "rude"), ("valid", False),
    ("is_valid", "no"), ("Use for training?", "no"), ("include", "FALSE"), ("keep", 0), ("Status", "Rejected"),
    ("review_status", "not approved"), ("status", "Draft"), ("level", "ERROR"), ("review", {"status": "rejected"}),
    ("meta", {"deleted": True}), ("do_not_train", "true"), ("freigegeben", "nein"), ("qa_passed", "no"),
    ("label_noise", True), ("exclude_from_training", True),
]  # fmt: skip
BAD = [
    ("correct", False), ("is_right", "no"), ("feedback", "thumbs_down"), ("feedback", "negative"), ("thumbs", "👎"),
    ("user_feedback", -1), ("hallucination", "yes"), ("thumbs_down", True), ("data", {"rating": -1}),
]  # fmt: skip
FINE = [
    ("deleted", False), ("skip", "0"), ("valid", "TRUE"), ("status", "approved"), ("feedback", "thumbs_up"),
    ("rejected_by", ""), ("correct", True), ("review", {"status": "approved"}), ("tree_state", "ready_for_export"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OUT, ids=lambda part: str(part))
def test_rows_that_were_taken_out_are_left_out_of_every_stage(key, value):
    for row, reads in ((ROW, [to_examples, to_prompts]), (CHAT, [to_examples]), (PAIR, [to_judgements, to_examples])):
        for read in reads:
            with pytest.raises(PassedOver, match="marked as not to be used"):
                read({**row, key: value})
            with pytest.raises(PassedOver, match=r"--column .*= ?'?\)? reads such rows too|--column"):
                read({**row, key: value})
            assert read(renamed({**row, key: value}, {key: None})) == read(row)


@pytest.mark.parametrize(("key", "value"), BAD, ids=lambda part: str(part))
def test_bad_answers_are_no_demonstrations_but_their_prompts_are_used(key, value):
    with pytest.raises(PassedOver, match="marked as not to be used"):
        to_examples({**ROW, key: value})
    assert to_prompts({**ROW, key: value})[0].messages == to_prompts(ROW)[0].messages


@pytest.mark.parametrize(("key", "value"), FINE, ids=lambda part: str(part))
def test_marks_that_say_nothing_against_a_row_leave_it_as_it_is(key, value):
    assert to_examples({**ROW, key: value}) == to_examples(ROW)
    assert unused_keys({**ROW, key: value}, "auto") == ()


@pytest.mark.parametrize(("key", "value"), [("status", "open"), ("correct", "Canberra"), ("feedback", "Nice work")])
def test_a_value_without_a_known_meaning_is_listed(key, value):
    assert to_examples({**ROW, key: value}) == to_examples(ROW)
    assert unused_keys({**ROW, key: value}, "auto") == (key,)


def test_trees_that_were_not_released_are_left_out():
    assert len(to_judgements({**TREE, "tree_state": "ready_for_export"})) == 1
    for read in (to_examples, to_judgements, to_prompts):
        with pytest.raises(PassedOver, match=r"tree_state: spam"):
            read({**TREE, "tree_state": "spam"})


def test_marked_turns_are_not_trained_on():
    bad = {"role": "assistant", "content": "At six.", "deleted": True}
    again = {"role": "user", "content": "Sure?"}
    (record,) = to_examples({"messages": [CHAT["messages"][0], bad, again, CHAT["messages"][1]]})
    assert [turn.get("weight", 1) for turn in record.messages if turn["role"] == "assistant"] == [0, 1]
    with pytest.raises(PassedOver, match="every answer is marked"):
        to_examples({"messages": [CHAT["messages"][0], bad]})
    with pytest.raises(BadRow, match=r"message 1 of 'messages' \(user\) is marked"):
        to_examples({"messages": [{**CHAT["messages"][0], "hidden": True}, CHAT["messages"][1]]})
    note = {"role": "assistant", "content": "He is rude.", "is_private": True}
    with pytest.raises(BadRow, match=r"message 2 of 'messages' is an internal note"):
        to_examples({"messages": [CHAT["messages"][0], note, CHAT["messages"][1]]})


def test_test_rows_and_flagged_rows_are_warned_of(tmp_path):
    rows = [ROW, {**ROW, "split": "test"}, {**ROW, "eval_only": True}, {**ROW, "toxic": True}]
    rows.append({**ROW, "openai_moderation": [{"flagged": False}, {"flagged": True}]})
    inspector = Inspector(DataConfig(train="x"), stage="sft")
    for number, row in enumerate(rows, 1):
        inspector.add(f"f:{number}", row)
    assert inspector.seen["marked_held_out"].places == ["f:2: split", "f:3: eval_only"]
    assert inspector.seen["marked_flagged"].places == ["f:4: toxic", "f:5: openai_moderation"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "prompt": f"q{index}"}) + "\n" for index, row in enumerate(rows)))
    notes = read_records(path, to_examples, DataConfig(train="x")).notes
    assert "1 rows: kept for tests by a key of theirs, and read all the same (split)" in notes
    assert "1 rows: flagged as harmful by a key of theirs, and read all the same (toxic)" in notes


@pytest.mark.parametrize("key", ["corrected_response", "Edited answer", "editedOutput", "correction", "human_edit"])
@pytest.mark.parametrize("row", [ROW, CHAT, {"question": "When?", "answer": "At nine."}], ids=["pair", "chat", "faq"])
def test_a_corrected_answer_is_learned_in_place_of_the_first(row, key):
    (record,) = to_examples({**row, key: "At ten."})
    assert (record.messages[-1]["content"], record.notes) == ("At ten.", (CORRECTED,))
    for nothing in ("", None, "At nine. "):
        assert to_examples({**row, key: nothing}) == to_examples(row)
    with pytest.raises(BadRow, match=r"an answer that somebody corrected.*--column"):
        to_judgements({**PAIR, key: "At ten."})
    with pytest.raises(BadRow, match="an answer that somebody corrected"):
        to_examples({**row, key: "At ten.", "revised_answer": "At six."})


def test_choices_in_columns_are_refused():
    row = {"question": "Which is a fruit?", "A": "Apple", "B": "Mars", "answer": "A"}
    for read in (to_examples, to_prompts):
        with pytest.raises(BadRow, match=r"'A' \(one choice of a question\) .*write the choices into the question"):
            read(row)
    assert to_examples({"question": "q", "A": "x", "answer": "y"}) == to_examples({"question": "q", "answer": "y"})


def test_pairs_that_were_judged_again_and_orders_on_the_screen_are_not_read_as_they_stand():
    for key, said in (("final_preference", "rejected"), ("human_override", "b"), ("is_flipped", True)):
        with pytest.raises(BadRow, match=rf"'{key}' \(that the pair was judged otherwise later\).*swap"):
            to_judgements({**PAIR, key: said})
    for key, said in (("final_preference", "chosen"), ("is_flipped", False)):
        assert to_judgements({**PAIR, key: said}) == to_judgements(PAIR)
    vote = {"prompt": "q", "response_a": "x", "response_b": "y", "choice": "left"}
    with pytest.raises(BadRow, match=r"'displayed_left' \(in which order the answers were shown\)"):
        to_judgements({**vote, "displayed_left": "response_b"})
    assert to_judgements({**vote, "swapped": False}) == to_judgements(vote)
    for gold in ("is_gold", "golden", "attention_check"):
        with pytest.raises(PassedOver, match="marked as not to be used"):
            to_judgements({**vote, gold: 1})
