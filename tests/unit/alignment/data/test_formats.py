"""Each shape of row, as its authors write it, and what is said of a row that is broken."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from alignment.config.sections import DataConfig
from alignment.data.formats import UNANSWERABLE
from alignment.data.importers import PassedOver
from alignment.data.json_values import RowDecoder
from alignment.data.openassistant import tree_rankings
from alignment.data.parsing import (
    to_comparisons,
    to_demonstration,
    to_demonstrations,
    to_examples,
    to_judgements,
    to_prompt,
    to_prompts,
)
from alignment.data.reading import read_records
from alignment.data.records import Comparison, Document
from alignment.data.row_files import BadRow


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def turns(*pairs):
    return [{"from": who, "value": text} for who, text in pairs]


TOOL = {"type": "function", "function": {"name": "hours", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "hours", "arguments": '{"day": 1}'}}


def only(row, format="auto"):
    (record,) = to_examples(row, format)
    return record


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": turns(("human", "a"), ("gpt", "b"))}, (user("a"), assistant("b"))),
        (
            {"conversations": turns(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "bye"))},
            ({"role": "system", "content": "s"}, user("a"), assistant("b")),
        ),
        (
            {"system": "s", "conversations": turns(("human", "a"), ("gpt", "b"), ("tool", "t"), ("gpt", "c"))},
            (
                {"role": "system", "content": "s"},
                user("a"),
                assistant("b"),
                {"role": "tool", "content": "t"},
                assistant("c"),
            ),
        ),
        (
            {"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)]},
            (user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)),
        ),
        ({"messages": [user("a"), user("b"), assistant("c")]}, (user("a"), user("b"), assistant("c"))),
        (
            {"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), assistant("c")]},
            (user("a\n\nb"), assistant("c")),
        ),
        ({"question": "a?", "answer": "b"}, (user("a?"), assistant("b"))),
        (
            {"prompt": "p", "completions": ["worse", "best", "worst"], "ranks": [2, 1, 3]},
            (user("p"), assistant("best")),
        ),
    ],
)
def test_conversations(row, messages):
    assert only(row).messages == messages


def test_openai_rows_bring_tools_and_calls_with_their_arguments_as_objects():
    row = {
        "tools": [TOOL],
        "messages": [
            user("when?"),
            assistant(None, tool_calls=[CALL]),
            {"role": "tool", "content": "9", "tool_call_id": "1"},
            assistant("nine"),
        ],
    }
    found = only(row)
    assert found.tools == (TOOL,)
    assert found.messages[1]["tool_calls"][0]["function"] == {"name": "hours", "arguments": {"day": 1}}
    assert found.messages[2] == {"role": "tool", "content": "9", "tool_call_id": "1"}
    assert only(row | {"tools": json.dumps([TOOL])}) == found
    with pytest.raises(BadRow, match="prompts with tools are for python -m sft only"):
        to_prompts(row)


def test_self_instruct_has_a_row_for_each_instance():
    row = {"instruction": "Sort.", "instances": [{"input": "3 1", "output": "1 3"}, {"input": "", "output": "?"}]}
    first, second = to_demonstrations(row)
    assert first.messages == (user("Sort.\n\n### Input:\n3 1"), assistant("1 3"))
    assert second.messages == (user("Sort."), assistant("?"))
    assert [prompt.messages for prompt in to_prompts(row)] == [first.messages[:1], second.messages[:1]]


def test_a_text_is_a_document_and_no_demonstration():
    assert only({"text": "A line.", "id": 3}) == Document("A line.")
    for convert in (to_demonstrations, to_comparisons, to_prompts):
        with pytest.raises(BadRow, match="a text row, which is not read here; a text has neither question nor answer"):
            convert({"text": "A line."})


def test_ratings_are_prompts_but_nobody_learns_a_badly_rated_answer_by_accident():
    row = {"prompt": "p", "completion": "c", "rating": 1}
    with pytest.raises(BadRow, match="a rating row, which is not read here"):
        to_examples(row)
    assert only(row, "completion").messages == (user("p"), assistant("c"))
    assert to_prompt(row).messages == (user("p"),)


def test_a_named_format_beats_the_keys():
    row = {"messages": [user("x"), assistant("y")], "question": "q", "answer": "a"}
    with pytest.raises(BadRow, match=r"'question' \(the question\) is not read in chat rows"):
        only(row)
    assert only(row, "chat").messages == (user("x"), assistant("y"))
    assert only(row, "faq").messages == (user("q"), assistant("a"))
    with pytest.raises(BadRow, match=r"found the keys messages, question, answer; expected instruction\+output \("):
        only(row, "alpaca")


# --- documents to answer from ----------------------------------------------------------------------------------------


def test_rag_rows_number_their_documents():
    row = {"question": "When?", "documents": [{"title": "Hours", "text": "9-17"}, "More."], "answer": "From nine."}
    prompt, answer = only(row).messages
    assert prompt["content"] == "Documents:\n\n[1] Hours\n9-17\n\n[2] More.\n\nQuestion: When?"
    assert answer == assistant("From nine.")
    assert to_prompt(row).messages == (prompt,)
    titled = {"question": "When?", "context": [["Hours", "9-17", "Daily."], ["T", ["a", "b"]]], "answer": "x"}
    assert "[1] Hours\n9-17 Daily.\n\n[2] T\na b" in only(titled).messages[0]["content"]
    assert "[1] one text" in only({"question": "q", "context": "one text", "answer": "a"}).messages[0]["content"]


def test_distractors_are_mixed_in_the_same_way_every_time_and_not_always_last():
    places = []
    for number in range(30):
        row = {"question": f"q{number}", "documents": ["RIGHT"], "distractors": ["b", "c", "d"], "answer": "a"}
        content = only(row).messages[0]["content"]
        assert content == only(row).messages[0]["content"]
        assert sorted(part[-1] for part in content.split("\n\n")[1:5]) == ["T", "b", "c", "d"]
        places.append(content.index("RIGHT"))
    assert len(set(places)) == 4


def test_an_unanswerable_question_has_to_be_marked():
    row = {"question": "q", "documents": ["d"], "answer": ""}
    with pytest.raises(BadRow, match="'answer' is empty; mark a question that the documents do not answer"):
        only(row)
    assert only(row | {"unanswerable": True}).messages[1]["content"] == UNANSWERABLE
    assert only({"question": "q", "documents": ["d"], "unanswerable": True}).messages[1]["content"] == UNANSWERABLE
    own = row | {"unanswerable": True, "answer": "Not in there."}
    assert only(own).messages[1]["content"] == "Not in there."
    with pytest.raises(BadRow, match="no document; a question without any is a `question`, `answer` row"):
        only({"question": "q", "documents": [], "answer": "a"})


# --- rankings and trees ----------------------------------------------------------------------------------------------


def test_a_ranking_is_all_its_pairs_ties_included():
    row = {"prompt": "p", "completions": ["a", "b", "c", "a"], "ranks": [2, 1, 2, 4]}
    pairs = to_comparisons(row)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c"), ("b", "a"), ("c", "a")]
    assert [pair.target for pair in pairs] == [0.0, 0.5, 1.0, 1.0, 1.0]


def node(text, *replies, role="assistant", rank=None, **more):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def asked(text, *replies, **more):
    return node(text, *replies, role="prompter", **more)


TREE = {
    "message_tree_id": "t",
    "prompt": asked(
        "q",
        node("second", rank=1),
        node("best", asked("more?", node("m1", rank=1), node("m0", rank=0)), asked("else?", node("e")), rank=0),
        node("gone", rank=-1, deleted=True),
        node("spam", rank=-2, review_result=False),
    ),
}


def test_a_tree_is_chats_along_its_best_answers_each_trained_once():
    first, second = to_demonstrations(TREE)
    assert first.messages == (user("q"), assistant("best"), user("more?"), assistant("m0"))
    assert second.messages == (user("q"), assistant("best", weight=0), user("else?"), assistant("e"))
    assert [prompt.messages[-1]["content"] for prompt in to_prompts(TREE)] == ["more?", "else?"]
    with pytest.raises(BadRow, match="the tree has no answer that was kept"):
        to_demonstrations({"message_tree_id": "t", "prompt": asked("q")})


def test_a_tree_is_the_rankings_of_its_answers():
    assert [(found.prompt[-1]["content"], found.completions) for found in tree_rankings(TREE)] == [
        ("q", ("best", "second")),
        ("more?", ("m0", "m1")),
    ]
    prompt = (user("q"), assistant("best"), user("more?"))
    assert to_comparisons(TREE) == [Comparison((user("q"),), "best", "second"), Comparison(prompt, "m0", "m1")]


# --- what is wrong with a row ----------------------------------------------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"conversations": turns(("Human", "a"))}, "has no turn of the assistant's"),
        (
            {"conversations": turns(("narrator", "a"))},
            "message 1 of 'conversations' has role 'narrator'; expected system",
        ),
        ({"conversations": [3]}, "message 1 of 'conversations' must be an object, found int"),
        ({"conversations": turns(("human", "a"))}, "no turn of the assistant's"),
        (
            {"conversations": turns(("human", None), ("gpt", "b"))},
            "content of message 1 of 'conversations' must be a string",
        ),
        ({"conversations": []}, "'conversations' must be a list of messages, found an empty one"),
        ({"messages": [user("a"), assistant(" ")]}, "the content of message 2 of 'messages' is empty"),
        ({"messages": [user("a"), assistant(None)]}, "message 2 of 'messages' must be a string, found NoneType"),
        ({"messages": [user("a"), assistant("b", weight=0.5)]}, "has weight 0.5; expected 0 or 1"),
        ({"messages": [user("a") | {"weight": 1}, assistant("b")]}, "has weight 1; expected 0 or 1, on an assistant's"),
        ({"messages": [user("a"), assistant("b", weight=0)]}, "every answer is marked as one not to train on"),
        (
            {"messages": [user("a"), assistant("b", tool_calls=[{}])]},
            "message 2 of 'messages': each of tool_calls must",
        ),
        (
            {"messages": [user("a"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
            "with a JSON object as arguments",
        ),
        (
            {"messages": [user("a"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": DEEP}}])]},
            "with a JSON object as arguments",
        ),
        ({"messages": [user("a"), assistant("b")], "tools": DEEP}, "'tools' must be a list of"),
        ({"messages": [user("a") | {"tool_calls": [CALL]}, assistant("b")]}, "only the assistant calls tools"),
        ({"messages": [user("a"), assistant("b")], "tools": [{"call": "f"}]}, "'tools' must be a list of"),
        ({"messages": [user("a"), assistant("b")], "tools": 3}, "'tools' must be a list of"),
        ({"instruction": "a", "instances": [{"input": "b"}]}, "the output of instance 1 must be a string"),
        ({"instruction": "a", "instances": ["b"]}, "instance 1 must be an object, found str"),
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [1]}, "must be lists of the same length, two or more"),
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [1, "x"]}, "'ranks' must be numbers"),
        ({"prompt": "p", "completions": ["a", ""], "ranks": [1, 2]}, "completion 2 is empty"),
        ({"prompt": "p", "completion": {"role": "system", "content": ""}}, "'completion' has no turn with a text"),
        ({"message_tree_id": "t", "prompt": "p"}, "'prompt' of a message tree must be the first message"),
        (
            {"question": "q", "documents": 3, "answer": "a"},
            "a document of 'documents' must be a string, found NoneType",
        ),
        ({"question": "q", "context": [[]], "answer": "a"}, "a document of 'context' must be a string, found list"),
        ({"question": "q", "context": [{"title": "t", "text": ""}], "answer": "a"}, "a document of 'context' is empty"),
    ],
)
def test_broken_rows(row, part):
    with pytest.raises(BadRow, match=part.replace("'", ".")):
        to_examples(row)


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": "p", "completion": "a", "rating": NUMBER}',
        '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, NUMBER]}',
        '{"prompt": "p", "completions": ["a", "b"], "ranks": "[1, NUMBER]"}',
        '{"prompt": "p", "completions": ["a", "b"], "ranks": "(1, NUMBER)"}',
    ],
)
def test_a_number_that_is_too_large_is_a_bad_row(row):
    row = RowDecoder().row(row.replace("NUMBER", "1" + "0" * 400))
    with pytest.raises(BadRow):
        to_judgements(row)


def test_only_comparisons_mind_two_equal_answers():
    row = {"prompt": "p", "chosen": "a", "rejected": "a"}
    assert to_demonstration(row).messages == (user("p"), assistant("a"))
    assert to_prompt(row).messages == (user("p"),)
    with pytest.raises(BadRow, match="are the same"):
        to_comparisons(row)


# --- published data --------------------------------------------------------------------------------------------------

SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")


def published(name, convert, **options):
    if not (SHARED / name).exists():
        pytest.skip(f"no {name}; name the folder of published data in ALIGNMENT_TEST_DATA")
    return read_records(SHARED / name, convert, DataConfig(train="unused", **options))


def test_self_instruct_reads_as_published():
    records = published("self-instruct/user_oriented_instructions.jsonl", to_examples)
    assert (len(records.items), len(records.bad)) == (252, 0)


def test_openassistant_reads_as_published():
    records = published("oasst/trees.jsonl", to_examples)
    assert (len(records.items), len(records.bad)) == (102, 0)
    assert len({record.group for record in records.items}) == 100
    lines = (SHARED / "oasst/trees.jsonl").read_text().splitlines()
    assert sum(len(tree_rankings(json.loads(line))) for line in lines) == 212


def test_qa_feedback_reads_as_rag_rows_with_two_columns_renamed():
    """One question has no passages at all."""
    columns = {"documents": "passages", "answer": "gold"}
    records = published("qa-feedback/feedback.json", to_examples, columns=columns)
    assert (len(records.items), len(records.bad)) == (349, 1)
    assert "no document" in records.bad[0][1]


PANDALM = {
    "instruction": "Sort.",
    "input": "3 1",
    "response1": "1 3",
    "response2": "3 1",
    "annotator1": 1,
    "annotator2": 0,
    "annotator3": 2,
    "annotator10": 1,
    "cmp_key": "one_other",
}
QA = {
    "question": "When?",
    "passages": [["Hours", "Hours\n\nNine", "to five."]],
    "gold": "At nine.",
    "prediction 1": "a",
    "prediction 2": "b",
    "prediction 3": "c",
    "preference": [1, 0, 2],
}


def test_a_pandalm_row_is_one_comparison_with_a_vote_of_each_annotator():
    (pair,) = to_comparisons(PANDALM)
    assert pair.prompt == (user("Sort.\n\n### Input:\n3 1"),)
    assert (pair.first, pair.second, pair.size) == ("1 3", "3 1", 2)
    assert [(vote.labeler, vote.choice) for vote in pair.votes] == [
        ("annotator1", "first"),
        ("annotator2", "tie"),
        ("annotator3", "second"),
        ("annotator10", "first"),
    ]
    assert to_demonstration(PANDALM).messages == (*pair.prompt, assistant("1 3"))
    assert to_prompt(PANDALM).messages == pair.prompt


def test_a_pandalm_row_without_an_instruction_is_its_input():
    assert to_prompt(PANDALM | {"instruction": " "}).messages == (user("3 1"),)
    with pytest.raises(BadRow, match="'instruction' is empty"):
        to_prompt(PANDALM | {"instruction": " ", "input": ""})


def test_pandalm_votes_may_be_missing_or_texts_and_answers_empty_or_truth_values():
    row = PANDALM | {"annotator1": "2", "annotator2": "", "annotator3": None, "response1": True, "response2": ""}
    (pair,) = to_comparisons(row)
    assert (pair.first, pair.second) == ("True", "")
    assert [(vote.labeler, vote.choice) for vote in pair.votes] == [("annotator1", "second"), ("annotator10", "first")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"annotator2": 3}, "'annotator2' is 3; expected 0"),
        ({"annotator2": True}, "'annotator2' is True"),
        ({"annotator2": "left"}, "'annotator2' is 'left'"),
        (dict.fromkeys(["annotator1", "annotator2", "annotator3", "annotator10"]), "no annotator said"),
        ({"response1": None}, "'response1' must be a string, found NoneType"),
    ],
)
def test_bad_pandalm_rows_say_why(change, reason):
    with pytest.raises(BadRow, match=reason):
        to_comparisons(PANDALM | change)


def test_pandalm_rows_with_nothing_to_compare_or_prefer_are_passed_over():
    with pytest.raises(PassedOver, match="both responses are the same"):
        to_comparisons(PANDALM | {"response1": "3 1"})
    with pytest.raises(PassedOver, match="neither response was preferred"):
        to_demonstration(PANDALM | {"annotator10": 0})


def test_a_qa_feedback_row_is_a_comparison_for_each_two_predictions():
    pairs = to_comparisons(QA)
    assert [(pair.first, pair.second, pair.votes[0].choice) for pair in pairs] == [
        ("a", "b", "first"),
        ("a", "c", "tie"),
        ("b", "c", "second"),
    ]
    assert {pair.size for pair in pairs} == {3}
    assert sum(pair.weight for pair in pairs) == pytest.approx(1)
    as_rag = {"question": "When?", "documents": QA["passages"], "answer": QA["gold"]}
    assert to_demonstration(QA) == to_demonstration(as_rag)
    assert [pair.prompt for pair in pairs] == [to_prompt(QA).messages] * 3
    assert to_prompt(QA) == to_prompt(as_rag)


def test_qa_feedback_without_passages_asks_the_question_alone_and_equal_answers_are_passed_over():
    pairs = to_comparisons(QA | {"passages": [], "prediction 3": "a"})
    assert [(pair.prompt, pair.first, pair.second) for pair in pairs] == [((user("When?"),), "a", "b"),
                                                                         ((user("When?"),), "b", "a")]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preference": [1, 0]}, "an entry for each pair of the 3 predictions, found 2 entries"),
        ({"preference": "102"}, "found str"),
        ({"preference": [1, 0, 5]}, "entry 3 of 'preference' is 5"),
        ({"prediction 2": " "}, "'prediction 2' is empty"),
    ],
)
def test_bad_qa_feedback_rows_say_why(change, reason):
    with pytest.raises(BadRow, match=reason):
        to_comparisons(QA | change)


def test_pandalm_reads_as_published():
    records = published("pandalm/testset-v1.json", to_comparisons)
    assert (len(records.items), len(records.bad)) == (999, 0)
    votes = Counter(vote.choice for record in records.items for vote in record.votes)
    rows = json.loads((SHARED / "pandalm/testset-v1.json").read_text())
    told = Counter(row[f"annotator{number}"] for row in rows for number in (1, 2, 3))
    assert votes == {"tie": told[0], "first": told[1], "second": told[2]}


def test_qa_feedback_reads_as_published():
    records = published("qa-feedback/feedback.json", to_comparisons)
    assert (len(records.items), len(records.bad)) == (2100, 0)
    assert Counter(record.votes[0].choice for record in records.items) == {"first": 1144, "second": 696, "tie": 260}
    assert len({json.dumps(record.prompt) for record in records.items}) == 350
    assert {record.size for record in records.items} == {4}
    demonstrations = published("qa-feedback/feedback.json", to_examples)
    assert (len(demonstrations.items), len(demonstrations.bad)) == (350, 0)


def test_comparisons_with_tools_are_refused_and_not_read_without_them():
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
    assert len(to_comparisons(row)) == 1
    with pytest.raises(BadRow, match="the reward model would not see the tools"):
        to_comparisons(row | {"tools": [{"type": "function", "function": {"name": "find"}}]})
