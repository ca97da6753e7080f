"""Rows as published sets and tools write them, each with what is learned from it."""

import json
import math

import pytest

from alignment.config.sections import DataConfig
from alignment.data.importers import PassedOver
from alignment.data.messages import LongAnswer
from alignment.data.openassistant import flat_trees
from alignment.data.parsing import to_comparisons, to_examples, to_judgements, to_prompts
from alignment.data.reading import read_records
from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.data.row_files import BadRow


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


ASKED = user("Where is the key?")
TOLD = assistant("On the hook.")
RUDE = assistant("Who knows.")
CHAT = (ASKED, TOLD)
CALL = {"type": "function", "function": {"name": "find", "arguments": {"item": "key"}}}
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def only(row, read=to_examples):
    (record,) = read(row)
    return record


def turns(*pairs):
    return [{"from": sender, "value": text} for sender, text in pairs]


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        *(
            ({key: turns((asks, "Where is the key?"), (tells, "On the hook."))}, CHAT)
            for key, asks, tells in [
                ("conversations", "human", "chatgpt"),
                ("conversations", "Human", "Assistant"),
                ("items", "user", "model"),
                ("conversation", "User", "bing"),
                ("dialog", "prompter", "bard"),
            ]
        ),
        ({"conversation": [{"input": "Where is the key?", "output": "On the hook."}]}, CHAT),
        ({"conversations": ["Where is the key?", "On the hook."]}, CHAT),
        ({"conversation": [dict(ASKED) | {"toxic": False}, dict(TOLD) | {"language": "en"}], "turn": 1}, CHAT),
        ({"messages": json.dumps(CHAT)}, CHAT),  # a column of a table
        ({"messages": str(list(CHAT))}, CHAT),  # as pandas prints it
        ({"messages": [{"role": "developer", "content": "Be brief."}, *CHAT]}, (system("Be brief."), *CHAT)),
        ({"messages": [system(""), *CHAT]}, CHAT),
        ({"messages": [*CHAT, user("Thanks!")]}, CHAT),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "refusal": "No."}]}, (ASKED, assistant("No."))),
        ({"system": "Be brief.", "messages": list(CHAT)}, (system("Be brief."), *CHAT)),
        ({"system": [{"type": "text", "text": "Be brief."}], "messages": list(CHAT)}, (system("Be brief."), *CHAT)),
        ({"system": "A.", "messages": [system("B."), *CHAT]}, (system("A.\n\nB."), *CHAT)),
        (
            {"system": "A.", "conversations": turns(("system", "A."), ("human", "q"), ("gpt", "a"))},
            (system("A."), user("q"), assistant("a")),
        ),
        ({"system": "S.", "prompt": "q", "completion": "a"}, (system("S."), user("q"), assistant("a"))),
        ({"system_prompt": "S.", "question": "q", "response": "a"}, (system("S."), user("q"), assistant("a"))),
        ({"system": "S.", "question": "q", "chosen": "a", "rejected": "b"}, (system("S."), user("q"), assistant("a"))),
        (
            {"prompt": [user("q"), assistant("Sure, ")], "completion": "it hangs."},
            (user("q"), assistant("Sure, it hangs.")),
        ),
        (
            {"instruction": "q", "input": "", "output": "a", "history": [["p", "b"]]},
            (user("p"), assistant("b"), user("q"), assistant("a")),
        ),
        (
            {"instruction": "q", "context": "c", "response": "a", "category": "qa"},
            (user("q\n\n### Input:\nc"), assistant("a")),
        ),
        ({"input": "q", "output": "a"}, (user("q"), assistant("a"))),
        ({"prompt": '["b", "a"]', "completion": '["a", "b"]'}, (user('["b", "a"]'), assistant('["a", "b"]'))),
        ({"instruction": "Sort.", "output": "[1, 2]"}, (user("Sort."), assistant("[1, 2]"))),
    ],
)
def test_chats_in_any_dialect(row, messages):
    assert only(row).messages == messages


def test_parts_are_paragraphs_unless_white_space_is_there():
    parts = [
        {"type": "text", "text": "Read this."},
        {"type": "text", "text": "Now?"},
        {"type": "text", "text": "\nYes"},
    ]
    assert only({"messages": [user(parts), TOLD]}).messages[0]["content"] == "Read this.\n\nNow?\nYes"


def test_what_follows_the_last_answer_is_noted():
    assert only({"messages": [*CHAT, user("Thanks!")]}).notes == ("the turns after the last answer are left out",)


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}, {"type": "file"}]
)
def test_other_parts_than_texts_are_refused(part):
    with pytest.raises(BadRow, match=f"a part of type '{part['type']}': only texts are read, images are not supported"):
        to_examples({"messages": [user([{"type": "text", "text": "q"}, part]), TOLD]})
    with pytest.raises(BadRow, match="has 'images': images, films and sound are not supported"):
        to_examples({"messages": [user("q") | {"images": ["x"]}, TOLD]})


# --- what is not to be learned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [{"train": False}, {"loss": False}, {"weight": 0}, {"loss_mask": 0}, {"weight": 0.0}])
def test_a_marked_answer_is_context_only(mark):
    rows = [
        {"messages": [ASKED, assistant("Bad.") | mark, user("Really?"), TOLD]},
        {"conversation": [{"input": "q", "output": "Bad."} | mark, {"input": "r", "output": "a"}]},
        {
            "conversations": [
                *turns(("human", "q")),
                {"from": "gpt", "value": "Bad."} | mark,
                *turns(("human", "r"), ("gpt", "a")),
            ]
        },
    ]
    for row in rows:
        weights = [turn.get("weight", 1) for turn in only(row).messages if turn["role"] == "assistant"]
        assert weights == [0, 1]
    for row in ({"messages": [ASKED, TOLD | mark]}, {"prompt": [ASKED], "completion": [TOLD | mark]}):
        with pytest.raises(PassedOver, match="every answer is marked"):
            to_examples(row)


def test_a_user_turn_may_be_marked_as_not_trained_on():
    row = {"conversations": [{"from": "human", "value": "q", "weight": 0}, {"from": "gpt", "value": "a", "weight": 1}]}
    assert only(row).messages == (user("q"), assistant("a", weight=1))


def test_a_judgement_of_a_turn_is_not_dropped():
    for key, value in (("score", 1), ("label", "bad"), ("rejected", "x")):
        with pytest.raises(BadRow, match=rf"message 2 of 'messages' has '{key}' \(.*\), which is not read of a turn"):
            to_examples({"messages": [ASKED, TOLD | {key: value}]})


def test_an_answer_beside_another_one_is_not_dropped():
    row = {"prompt": "q", "completion": "It is 42."}
    assert only(row | {"answer": "42"}).messages == (user("q"), assistant("It is 42."))
    with pytest.raises(BadRow, match=r"'answer' \(an answer\) is not read in completion rows"):
        to_examples(row | {"answer": "43"})


def test_a_row_is_marked_as_a_whole():
    for mark in ({"train": False}, {"weight": 0}, {"loss": "false"}):
        with pytest.raises(PassedOver, match="marked as one not to train on"):
            to_examples({"messages": list(CHAT), **mark})
    with pytest.raises(BadRow, match=r"'weight' is 0.5; expected true or false: no row has a fraction of a loss"):
        to_examples({"prompt": "q", "completion": "a", "weight": 0.5})
    with pytest.raises(BadRow, match="has a mask of parts that are not trained on, which is not read"):
        to_examples({"messages": [ASKED, TOLD | {"mask": [[0, 3]]}]})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [user("q")], "completion": [assistant("a")]},
        {"messages": [user("q"), assistant("a")]},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_only_good_answers_of_unpaired_rows_are_demonstrations(row):
    for key, good, bad in (("label", True, False), ("kto_tag", "True", "False"), ("label", 1, 0)):
        assert only(row | {key: good}).messages == (user("q"), assistant("a"))
        with pytest.raises(PassedOver, match="marked as a bad one"):
            to_examples(row | {key: bad})
        ratings = [only(row | {key: said}, to_judgements) for said in (good, bad)]
        assert ratings == [CompletionRating((user("q"),), "a", 1.0), CompletionRating((user("q"),), "a", 0.0)]
    with pytest.raises(BadRow, match="'label' is 'spam'; expected true or false"):
        to_examples(row | {"label": "spam"})


# --- tools -----------------------------------------------------------------------------------------------------------


def test_the_dialects_of_function_calls_are_one():
    result = {"role": "tool", "content": "shed"}
    wanted = (ASKED, assistant("", tool_calls=[CALL]), result, TOLD)
    arguments = json.dumps({"item": "key"})
    rows = [
        {
            "functions": [FIND["function"]],
            "messages": [
                ASKED,
                assistant(None, function_call={"name": "find", "arguments": arguments}),
                {"role": "function", "name": "find", "content": "shed"},
                TOLD,
            ],
        },
        {
            "tools": json.dumps([FIND["function"]]),
            "conversations": turns(
                ("human", ASKED["content"]),
                ("function_call", json.dumps(CALL["function"])),
                ("observation", "shed"),
                ("gpt", TOLD["content"]),
            ),
        },
        {
            "tools": [{"name": "find", "input_schema": {"type": "object"}}],
            "messages": [
                ASKED,
                assistant([{"type": "tool_use", "id": None, "name": "find", "input": {"item": "key"}}]),
                user([{"type": "tool_result", "content": "shed"}]),
                TOLD,
            ],
        },
        {
            "system": "SYSTEM: Use these. " + json.dumps(FIND["function"]),
            "chat": f"USER: {ASKED['content']}\n\n\nASSISTANT: <functioncall> "
            + '{"name": "find", "arguments": \'{"item": "key"}\'} <|endoftext|>\n\n\nFUNCTION RESPONSE: shed'
            + f"\n\n\nASSISTANT: {TOLD['content']} <|endoftext|>",
        },
    ]
    for row in rows:
        found = only(row)
        messages = [
            {key: turn[key] for key in turn if key != "name"} for turn in found.messages if turn["role"] != "system"
        ]
        assert tuple(messages) == wanted
        assert found.tools == (FIND,)
        with pytest.raises(BadRow, match="prompts with tools are for python -m sft only"):
            to_prompts(row)


def test_a_parquet_column_of_tools_is_read_as_its_json():
    """Arrow gives every object the keys of all others, as null."""
    padded = {"type": "function", "function": {"name": "find", "arguments": {"item": "key", "floor": None}}}
    tool = {
        "type": "function",
        "function": {"name": "find", "description": None, "parameters": {"type": "object", "x": None}},
    }
    row = {
        "messages": [
            dict(ASKED) | {"tool_calls": None, "tool_call_id": None},
            {"role": "assistant", "content": None, "tool_calls": [padded], "tool_call_id": None},
            {"role": "tool", "content": "shed", "tool_calls": None, "tool_call_id": "1"},
            dict(TOLD) | {"tool_calls": None, "tool_call_id": None},
        ],
        "tools": [tool],
    }
    found = only(row)
    assert found.tools == (FIND,)
    assert found.messages[1] == assistant("", tool_calls=[CALL])


def test_a_call_may_be_a_completion_or_the_preferred_answer():
    calls = [assistant(None, tool_calls=[CALL])]
    assert only({"prompt": [ASKED], "completion": calls, "tools": [FIND]}).messages == (
        ASKED,
        assistant("", tool_calls=[CALL]),
    )
    pair = only({"prompt": [ASKED], "chosen": calls, "rejected": [RUDE]}, to_comparisons)
    assert isinstance(pair.first, LongAnswer) and pair.first.turns == (assistant("", tool_calls=[CALL]),)
    assert (json.loads(pair.first)["name"], pair.second) == ("find", "Who knows.")
    with pytest.raises(BadRow, match="comparisons with tools are not read"):
        to_judgements({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [FIND]})


# --- preferences -----------------------------------------------------------------------------------------------------

PAIR = Comparison((ASKED,), "On the hook.", "Who knows.")
SIDES = {"chosen": [ASKED, TOLD], "rejected": [ASKED, RUDE]}


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": ASKED["content"],
            "prompt_id": "0",
            **SIDES,
            "messages": [ASKED, TOLD],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        {
            "id": "k",
            "prompt": ASKED["content"],
            **SIDES,
            "chosen_rating": 4.75,
            "rejected_rating": 2.0,
            "chosen_model": "m",
        },
        {"prompt": ASKED["content"], **SIDES, "chosen-rating": 4.75, "rejected-rating": 2.0},
        SIDES,
        {key: json.dumps(value) for key, value in SIDES.items()},
        {
            "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [TOLD],
            "non_preferred_output": [RUDE],
        },
        {"instruction": ASKED["content"], "input": "", "chosen": TOLD["content"], "rejected": RUDE["content"]},
        {"instruction": ASKED["content"], "input": "", "output": [TOLD["content"], RUDE["content"]]},
        {
            "conversations": turns(("human", ASKED["content"])),
            "chosen": turns(("gpt", TOLD["content"]))[0],
            "rejected": turns(("gpt", RUDE["content"]))[0],
        },
        {
            "chosen": [
                {"role": "Human", "content": ASKED["content"]},
                {"role": "Assistant", "content": TOLD["content"]},
            ],
            "rejected": [ASKED, RUDE],
        },
        {
            "prompt": ASKED["content"],
            "chosen": f"Human: {ASKED['content']}\nAssistant: On the hook.",
            "rejected": f"Human: {ASKED['content']}\nAssistant: Who knows.",
        },
        {
            "prompt": ASKED["content"],
            "chosen": f"{ASKED['content']}\nOn the hook.",
            "rejected": f"{ASKED['content']}\nWho knows.",
        },
        {"prompt": f"\n\nHuman: {ASKED['content']}\n\nAssistant:", "chosen": "On the hook.", "rejected": "Who knows."},
        {
            "prompt": ASKED["content"],
            "answers": [{"answer": "On the hook.", "rank": 1.0}, {"answer": "Who knows.", "rank": 2.0}],
            "turns": 1,
        },
        {
            "instruction": ASKED["content"],
            "models": ["m"],
            "completions": [
                {"response": "On the hook.", "overall_score": 8},
                {"response": "Who knows.", "overall_score": 3},
            ],
        },
        {
            "instruction": ASKED["content"],
            "completions": [
                {"response": "On the hook.", "annotations": {"a": {"Rating": "5"}}},
                {"response": "Who knows.", "annotations": {"a": {"Rating": "1"}, "b": {"Rating": "N/A"}}},
            ],
        },
        {"query": ASKED["content"], "responses": ["On the hook.", "Who knows."], "scores": [9, 2]},
        {
            "question": {"full_text": ASKED["content"]},
            "quotes_0": {},
            "answer_0": "On the hook.",
            "score_0": 0.5,
            "answer_1": "Who knows.",
            "score_1": -0.5,
        },
        {"prompt": ASKED["content"], "response_0": "On the hook.", "response_1": "Who knows.", "better_response_id": 0},
        {"history": ASKED["content"], "human_ref_A": "On the hook.", "human_ref_B": "Who knows.", "labels": 1},
        {"instruction": ASKED["content"], "output_1": "On the hook.", "output_2": "Who knows.", "preference": 1},
        {
            "id": "0",
            "prompt": json.dumps([ASKED["content"]]),
            "response_a": '["On the hook."]',
            "response_b": '["Who knows."]',
            "winner_model_a": "1",
            "winner_model_b": "0",
            "winner_tie": "0",
        },
    ],
    ids=lambda row: "+".join(row)[:40],
)
def test_preference_sets_are_comparisons(row):
    found = only(row, to_judgements)
    assert (found.prompt, found.first, found.second, found.target) == (*(PAIR.prompt, PAIR.first, PAIR.second), 1.0)
    assert only(row).messages == CHAT
    assert [prompt.messages for prompt in to_prompts(row)] == [(ASKED,)]
    assert found.margin is None  # never guessed from scores


def test_margins_and_scores_are_told_apart():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert only(row | {"margin": 2.5}, to_judgements).margin == 2.5
    assert only(row | {"score_chosen": "1", "score_rejected": 4}, to_judgements).scores == (1.0, 4.0)
    with pytest.raises(BadRow, match="'margin' is -1: the rejected answer would be the better one"):
        to_judgements(row | {"margin": -1})


def test_the_prompt_of_two_transcripts_is_their_common_start():
    start = [ASKED, TOLD, user("And now?")]
    pair = only({"chosen": [*start, assistant("a")], "rejected": [*start, assistant("b")]}, to_comparisons)
    assert (pair.prompt, pair.first, pair.second) == (tuple(start), "a", "b")
    row = {
        "prompt": [ASKED],
        "chosen": [TOLD, user("And in winter?"), assistant("In the cellar.")],
        "rejected": [RUDE, user("That is rude."), assistant("So it is.")],
    }
    pair = only(row, to_comparisons)
    assert pair.prompt == (ASKED,)
    assert [turn["content"] for turn in pair.first.turns] == ["On the hook.", "And in winter?", "In the cellar."]
    assert pair.second == "Who knows.\n\nUser: That is rude.\n\nAssistant: So it is."
    assert only(row).messages == (ASKED, *row["chosen"])


def test_votes_ties_strengths_and_judges():
    sides = {"conversation_a": [ASKED, TOLD, user("More?"), TOLD], "conversation_b": [ASKED, RUDE, user("More?"), RUDE]}
    row = {"question_id": 1, "model_a": "m", "winner": "model_b", "judge": "ann", "turn": 1, **sides}
    assert only(row, to_judgements) == Comparison(
        (ASKED,), "On the hook.", "Who knows.", (Vote("second", None, "ann"),)
    )
    both = only(row | {"turn": 2, "winner": "tie (bothbad)"}, to_judgements)
    assert (both.target, len(both.first.turns)) == (0.5, 3)
    for value, vote in ((-2, Vote("first", 2)), (3, Vote("second", 3)), (0, Vote("tie"))):
        row = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": value}
        assert only(row, to_judgements) == Comparison((user("q"),), "a", "b", (vote,))
        row = {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": value}
        assert only(row, to_judgements) == Comparison((user("q"),), "a", "b", (vote,))
    row = {"prompt": "q", "answer_a": "a", "answer_b": "b", "rater": 7}
    assert only(row | {"vote": "B"}, to_judgements).votes == (Vote("second", None, "7"),)
    with pytest.raises(PassedOver, match="neither response was preferred"):
        to_examples(row | {"vote": "tie"})
    with pytest.raises(BadRow, match=r"who won is 'c'; expected a, b, 1, 2"):
        to_judgements(row | {"vote": "c"})
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "annotator": "bo"}
    assert only(pair, to_judgements).votes == (Vote("first", None, "bo"),)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a \n"}, "differ in white space alone"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "'rejected' is empty"),
        ({"prompt": "other", **SIDES}, "'prompt' is not in the conversations beside it"),
        ({"chosen": [ASKED, TOLD, user("Thanks")], "rejected": [ASKED, RUDE]}, "must end with the assistant's turn"),
        (
            {"prompt": "q", "completions": ["a", "b"], "ranks": ["1", "2"]},
            "'ranks' must be numbers .1 is the best., not texts",
        ),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, math.inf]}, "'scores' must be finite numbers"),
        ({"prompt": "q", "completions": ["a", "b"]}, "has neither ranks nor scores"),
        ({"prompt": "q", "completion": "a", "rating": math.nan}, "'rating' must be a number, found nan"),
        ({"prompt": "q", "completion": "a", "rating": math.inf}, "'rating' must be a number, found inf"),
        ({"text": "q", "label": ["good"]}, "which is not read here"),
        ({"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}, "'rejected' holds 2 texts; a row of several answers"),
    ],
)
def test_judgements_that_say_nothing_usable(row, part):
    with pytest.raises(BadRow, match=part):
        to_judgements(row)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_an_answer_without_a_rank_was_not_judged(nothing):
    row = {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [2, nothing, 1]}
    assert only(row, to_judgements) == Comparison((user("q"),), "a", "c", (Vote("second"),))
    assert only(row).messages[-1] == assistant("c")
    with pytest.raises(PassedOver, match="fewer than two of the 2 answers were judged"):
        to_judgements({"prompt": "q", "completions": ["a", "b"], "ranks": [1, nothing]})


def test_ratings_keep_the_scale_of_one_attribute_and_the_name():
    row = {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 1, "verbosity": 2}
    assert only(row, to_judgements) == CompletionRating((user("q"),), "a", 3.0)
    row = {"prompt": "q", "completion": "a", "rating": "4.0", "annotator": 12}
    assert only(row, to_judgements) == CompletionRating((user("q"),), "a", 4.0, "12")


# --- documents, trees, reasoning -------------------------------------------------------------------------------------


def test_squad_and_its_unanswerable_questions():
    row = {"id": "1", "title": "Yard", "context": "In the shed.", "question": "Where?"}
    assert only(row | {"answers": {"text": ["shed"], "answer_start": [7]}}).messages[-1] == assistant("shed")
    for nothing in ({"answers": {"text": [], "answer_start": []}}, {"answer": "", "is_impossible": True}):
        assert only(row | nothing).messages[-1] == assistant("The documents do not answer this.")
    listed = {"question": "Where?", "context": ["In the shed.", ""], "answer": "Shed."}
    assert only(listed).messages[0]["content"] == "Documents:\n\n[1] In the shed.\n\nQuestion: Where?"


def test_a_table_of_messages_becomes_trees(tmp_path):
    rows = [
        {"message_id": "a", "parent_id": "q", "text": "On the hook.", "role": "assistant", "rank": 0.0},
        {"message_id": "q", "parent_id": None, "text": "Where is the key?", "role": "prompter", "rank": None},
        {"message_id": "b", "parent_id": "q", "text": "Who knows.", "role": "assistant", "rank": 1.0},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train="unused")
    assert [record.messages for record in read_records(path, to_examples, config).items] == [CHAT]
    assert read_records(path, to_judgements, config).items == [PAIR]
    lost = {"message_id": "c", "parent_id": "gone", "text": "x", "role": "assistant", "rank": None}
    found = dict(flat_trees((f"d:{n}", row) for n, row in enumerate([*rows, lost], 1)))
    assert str(found["d:4"]) == "parent_id 'gone' leads to no first message of this file"
    assert [reply["text"] for reply in found["d:2"]["prompt"]["replies"]] == ["On the hook.", "Who knows."]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, TOLD | {"reasoning_content": "Hm."}]},
        {"messages": [ASKED, TOLD | {"thinking": "Hm."}]},
        {
            "messages": [
                ASKED,
                assistant([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "On the hook."}]),
            ]
        },
        {"question": "Where is the key?", "thinking": "Hm.", "answer": "On the hook."},
    ],
)
def test_reasoning_stays_beside_the_answer(row):
    assert only(row).messages == (ASKED, TOLD | {"reasoning_content": "Hm."})


@pytest.mark.parametrize(("no", "yes"), [("False", "True"), ("false", "true"), ("0", "1"), ("", "1"), (False, True)])
def test_marks_of_a_tree_are_read_as_tables_write_them(no, yes):
    rows = [
        {"message_id": "q", "parent_id": "", "text": "When?", "role": "prompter", "deleted": no},
        {"message_id": "a", "parent_id": "q", "text": "At nine.", "role": "assistant", "deleted": no, "rank": "2"},
        {"message_id": "b", "parent_id": "q", "text": "Gone.", "role": "assistant", "deleted": yes, "rank": "0"},
        {"message_id": "c", "parent_id": "q", "text": "Bad.", "role": "assistant", "review_result": no, "rank": "1"},
    ]
    ((_, tree),) = flat_trees((f"d:{n}", row) for n, row in enumerate(rows, 1))
    is_reviewed = no != ""
    assert only(tree).messages[-1]["content"] == ("At nine." if is_reviewed else "Bad.")


def tree(*replies, **changes):
    question = {"message_id": "q", "text": "Where?", "role": "prompter", "replies": list(replies)} | changes
    return {"message_tree_id": "q", "prompt": question}


def reply(text, **keys):
    return {"message_id": text, "text": text, "role": "assistant", **keys}


@pytest.mark.parametrize(
    "broken",
    [
        tree(replies=2.5),
        tree(replies={"text": "x"}),
        tree("x"),
        tree(reply("a", replies=[None])),
        tree(reply("a", rank="first"), reply("b", rank=1)),
        tree(reply("a", rank=[0]), reply("b", rank=1)),
    ],
)
@pytest.mark.parametrize("read", [to_examples, to_judgements])
def test_a_damaged_tree_is_a_bad_row(broken, read):
    with pytest.raises(BadRow, match=r"'replies'|'rank'"):
        read(broken, "tree")


def test_ranks_of_a_tree_that_are_text_are_numbers():
    row = tree(reply("tenth", rank="10"), reply("second", rank="2"), reply("unranked"))
    assert only(row).messages[-1] == assistant("second")
    (pair,) = to_judgements(row, "tree")
    assert (pair.first, pair.second, pair.votes) == ("second", "tenth", (Vote("first"),))


def test_a_bad_rank_in_a_table_of_messages_is_a_bad_row_and_the_others_are_read():
    rows = [
        {"message_id": "q", "parent_id": None, "text": "Where?", "role": "prompter", "rank": None},
        {"message_id": "a", "parent_id": "q", "text": "Here.", "role": "assistant", "rank": "best"},
        {"message_id": "b", "parent_id": "q", "text": "There.", "role": "assistant", "rank": "1"},
    ]
    found = dict(flat_trees((f"d:{n}", row) for n, row in enumerate(rows, 1)))
    assert "'rank' must be a number, found 'best'" in str(found["d:2"])
    assert [each["text"] for each in found["d:1"]["prompt"]["replies"]] == ["There."]


def test_a_document_of_empty_lists_is_a_bad_row():
    for empty in ([], [[]]):
        with pytest.raises(BadRow, match="a document of 'context' must be a string, found list"):
            only({"question": "Where?", "context": [empty, "In the shed."], "answer": "Shed."})


def test_what_no_parser_thought_of_is_a_bad_row(monkeypatch):
    """One row is set aside, and the others are read; a mistake of the command's own user is still told as such."""
    from alignment.data import parsing
    from alignment.errors import ConfigError

    def broken(error):
        def read(*_):
            raise error

        return read

    row = {"prompt": "Where is the key?", "completion": "On the hook."}
    for error in (TypeError("'float' object is not iterable"), KeyError("x"), RecursionError("deep")):
        monkeypatch.setattr(parsing, "_examples", broken(error))
        with pytest.raises(BadRow, match=r"a value is built otherwise than in the shape 'completion' \("):
            to_examples(row)
    monkeypatch.setattr(parsing, "_examples", broken(ConfigError("no such column")))
    with pytest.raises(ConfigError, match="no such column"):
        to_examples(row)
