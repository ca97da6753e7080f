"""Exports of annotation tools, in the shapes that their documentation gives, as votes of the people who made them."""

import json

import pytest
from helpers.votes import QUESTION, RIGHT, WRONG, Imported

from alignment.errors import UserError

# --- Label Studio ----------------------------------------------------------------------------------------------------


def pairwise(selected, by, **more):
    part = {"value": {"selected": selected}, "from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise"}
    return {"id": 7, "completed_by": by, "result": [part], "was_cancelled": False, "lead_time": 8.5} | more


def task(*annotations, **data):
    given = {"prompt": QUESTION, "answer1": RIGHT, "answer2": WRONG} | data
    return {"id": 1, "data": given, "annotations": list(annotations), "predictions": []}


ADA, BO = {"id": 1, "email": "ada@example.org"}, 2


def test_each_annotator_of_a_label_studio_task_has_a_vote(tmp_path):
    done = Imported(tmp_path, [task(pairwise("left", ADA), pairwise("right", BO))], name="export.json")
    assert done.result["read_as"] == "Label Studio: 1 pair, 2 votes of 2 labelers"
    assert done.winners() == [("ada@example.org", RIGHT), ("2", WRONG)]
    assert {rating.seconds for rating in done.ratings} == {8.5}
    assert done.items[0].prompt == ({"role": "user", "content": QUESTION},)


def test_what_is_no_vote_in_label_studio_is_counted(tmp_path):
    rows = [
        task(pairwise("left", ADA), pairwise("left", BO, was_cancelled=True)) | {"predictions": [{"result": []}]},
        task(pairwise("left", BO, result=[]), prompt="Second?") | {"drafts": [{"result": []}]},
        task(prompt="Third?"),
    ]
    done = Imported(tmp_path, rows)
    assert done.result["passed_over"] == {
        "a prediction of a model": 1,
        "a skipped annotation": 1,
        "a draft": 1,
        "an annotation without a vote": 1,
        "a task that nobody annotated": 1,
    }
    assert done.votes == [("ada@example.org", "first")]


def test_the_left_side_is_the_first_name_of_the_tag(tmp_path):
    swapped = pairwise("left", ADA)
    swapped["result"][0]["to_name"] = "answer2,answer1"
    assert Imported(tmp_path, [task(swapped)]).winners() == [("ada@example.org", WRONG)]


def test_the_tag_names_its_answers_whatever_they_are_called(tmp_path):
    vote = pairwise("right", BO)
    vote["result"][0]["to_name"] = "baseline,ours"
    row = {"data": {"prompt": QUESTION, "ours": RIGHT, "baseline": WRONG}, "annotations": [vote]}
    assert Imported(tmp_path, [row]).winners() == [("2", RIGHT)]


def test_annotations_without_a_name_are_not_one_persons(tmp_path):
    done = Imported(tmp_path, [task(pairwise("left", None), pairwise("right", None))])
    assert [item.kind for item in done.items] == ["pair", "pair"]
    assert sorted(done.winners()) == sorted([("unnamed", RIGHT), ("unnamed", WRONG)])


def test_a_label_studio_ranker_is_a_ranking(tmp_path):
    items = [{"id": "x", "title": "one", "body": "A"}, {"id": "y", "body": "B"}, {"id": "z", "html": "C"}]
    part = {"value": {"ranker": {"rank": ["z", "x", "y"]}}, "from_name": "rank", "to_name": "results", "type": "ranker"}
    buckets = {"value": {"ranker": {"one": ["x"], "two": ["y"], "_": ["z"]}}, "from_name": "rank", "type": "ranker"}
    row = {"id": 1, "data": {"prompt": QUESTION, "items": items}}
    annotations = [{"completed_by": 3, "result": [part]}, {"completed_by": 4, "result": [buckets]}]
    done = Imported(tmp_path, [row | {"annotations": annotations}])
    assert done.texts() == ["A", "B", "C"]
    assert [(rating.labeler, rating.ranks) for rating in done.ratings] == [("3", (2, 3, 1))]
    assert list(done.result["passed_over"]) == [
        "a sorting into buckets, of which none is known to be the better; --labels='BUCKET=1,OTHER=2' says which (1 "
        "the best), for one, two"
    ]


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("good", "bad"), {}), (("one", "two"), {"one": "1", "two": "2"}), (("two", "one"), {"one": "2", "two": "1"})],
)
def test_buckets_of_a_label_studio_ranker_whose_order_is_known_are_votes(tmp_path, names, labels):
    value = {"ranker": {names[0]: ["x"], names[1]: ["y", "z"], "_": ["w"]}}
    result = [{"value": value, "from_name": "rank", "to_name": "items", "type": "ranker"}]
    data = {"prompt": QUESTION, "items": [{"id": name, "body": name.upper()} for name in "wxyz"]}
    row = {"id": 1, "data": data, "annotations": [{"completed_by": 3, "result": result}]}
    done = Imported(tmp_path, [row], labels=labels)
    assert [done.texts(item) for item in range(2)] == [["X", "Y"], ["X", "Z"]]
    assert done.winners() == [("3", "X"), ("3", "X")]


def test_label_studio_ratings_stand_at_their_answers(tmp_path):
    parts = [
        {"value": {"rating": stars}, "from_name": f"stars{n}", "to_name": f"answer{n}", "type": "rating"}
        for n, stars in ((1, 5), (2, 1))
    ]
    reason = {"value": {"text": ["kurz"]}, "from_name": "why", "to_name": "prompt", "type": "textarea"}
    spans = {"value": {"labels": ["x"], "start": 0, "end": 1}, "from_name": "ner", "type": "labels"}
    done = Imported(tmp_path, [task({"completed_by": 1, "result": [*parts, reason, spans]})])
    assert [(done.texts(n)[0], r.score, r.comment) for n, r in enumerate(done.ratings)] == [
        (RIGHT, 5, "kurz"),
        (WRONG, 1, "kurz"),
    ]
    assert done.result["passed_over"] == {"an answer of kind labels, which is no vote": 1}


def test_a_second_question_on_the_same_answers_is_an_attribute_or_can_be_chosen(tmp_path):
    overall, style = (
        pairwise(side, ADA)["result"][0] | {"from_name": name}
        for side, name in (("left", "overall"), ("right", "style"))
    )
    rows = [task({"completed_by": ADA, "result": [overall, style]})]
    done = Imported(tmp_path / "a", rows)
    assert done.winners() == [("ada@example.org", RIGHT)]
    assert done.result["passed_over"] == {}
    sign = {RIGHT: -1, WRONG: 1}[done.texts()[0]]  # the right side won in style, without a degree
    assert done.ratings[0].answers == {"attributes": {"style": 2 * sign}}
    assert Imported(tmp_path / "b", rows, columns={"choice": "style"}).winners() == [("ada@example.org", WRONG)]


@pytest.mark.parametrize("name", ["min.json", "min.csv"])
def test_label_studio_min_has_a_row_for_each_annotation(tmp_path, name):
    flat = {"prompt": QUESTION, "answer1": RIGHT, "answer2": WRONG, "id": 0, "lead_time": 3.5}
    said = (("left", 1), ("right", 2))
    value = {side: {"selected": side} if name == "min.json" else json.dumps({"selected": side}) for side, _ in said}
    done = Imported(tmp_path, [flat | {"pw": value[side], "annotator": by} for side, by in said], name=name)
    assert done.result["read_as"] == "Label Studio: 1 pair, 2 votes of 2 labelers"
    assert done.winners() == [("1", RIGHT), ("2", WRONG)]


def test_label_studio_choices_name_an_answer(tmp_path):
    def chosen(value, by):
        part = {"value": {"choices": [value]}, "from_name": "best", "to_name": "prompt", "type": "choices"}
        return {"completed_by": by, "result": [part]}

    rows = [task(chosen("Answer 2", 1), chosen("Both bad", 2), chosen("tie", 3))]
    done = Imported(tmp_path / "a", rows)
    assert done.winners() == [("1", WRONG), ("2", "tie"), ("3", "tie")]
    assert [rating.flags for rating in done.ratings] == [(), ("both_bad",), ()]
    rows = [task(chosen("Die zweite", 1))]
    with pytest.raises(UserError, match=r"the choice 'Die zweite' is none of answer1, answer2 or tie; say .*--labels"):
        Imported(tmp_path / "b", rows)
    assert Imported(tmp_path / "c", rows, labels={"Die zweite": "b"}).winners() == [("1", WRONG)]


def test_an_export_without_any_vote_is_refused(tmp_path):
    flat = {"prompt": QUESTION, "answer1": RIGHT, "answer2": WRONG, "annotator": 1, "lead_time": 2, "mood": "Answer 2"}
    with pytest.raises(
        UserError, match=r"no vote in it as Label Studio: 1 times an annotation without a vote; --columns"
    ):
        Imported(tmp_path / "a", [flat])
    assert Imported(tmp_path / "b", [flat], columns={"choice": "mood"}).winners() == [("1", WRONG)]


# --- Argilla ---------------------------------------------------------------------------------------------------------

FIELDS = {"prompt": QUESTION, "response-1": RIGHT, "response-2": WRONG}
FIRST, SECOND = ["response-1", "response-2"], ["response-2", "response-1"]


def argilla_nested():
    said = [
        (FIRST, "u1", "submitted"),
        (SECOND, "u2", "submitted"),
        (SECOND, "u3", "discarded"),
        (FIRST, "u4", "draft"),
    ]
    answers = [{"value": value, "user_id": user, "status": status} for value, user, status in said]
    return {"id": "r0", "fields": FIELDS, "metadata": {}, "suggestions": {}, "responses": {"rank": answers}}


def argilla_list():
    nested = argilla_nested()
    return nested | {"responses": [{"question_name": "rank"} | each for each in nested["responses"]["rank"]]}


def argilla_flat():
    answers = argilla_nested()["responses"]["rank"]
    columns = {"rank.responses": "value", "rank.responses.users": "user_id", "rank.responses.status": "status"}
    found = {column: [each[key] for each in answers] for column, key in columns.items()}
    return {"id": "r0", "_server_id": "x", "status": "completed"} | FIELDS | found


def argilla_1():
    answers = argilla_nested()["responses"]["rank"]
    ranked = {
        each["user_id"]: [{"value": name, "rank": n} for n, name in enumerate(each["value"], 1)] for each in answers
    }
    responses = [
        {"user_id": each["user_id"], "status": each["status"], "values": {"rank": {"value": ranked[each["user_id"]]}}}
        for each in answers
    ]
    return {"fields": FIELDS, "responses": responses, "external_id": "r0"}


def argilla_1_hub():
    answers = argilla_nested()["responses"]["rank"]
    ranked = [
        each | {"value": [{"value": name, "rank": n} for n, name in enumerate(each["value"], 1)]} for each in answers
    ]
    return FIELDS | {"rank": ranked, "rank-suggestion": None, "external_id": "r0", "metadata": "{}"}


@pytest.mark.parametrize("row", [argilla_nested, argilla_list, argilla_flat, argilla_1, argilla_1_hub])
def test_argilla_rankings_in_each_layout(tmp_path, row):
    done = Imported(tmp_path, [row()])
    assert done.result["read_as"] == "Argilla: 1 pair, 2 votes of 2 labelers"
    assert done.winners() == [("u1", RIGHT), ("u2", WRONG)]
    assert done.result["passed_over"] == {
        "an answer that is discarded, not submitted": 1,
        "an answer that is draft, not submitted": 1,
    }


def test_argilla_ranks_of_three_with_a_tie(tmp_path):
    value = [{"value": "response-3", "rank": 1}, {"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 2}]
    fields = FIELDS | {"response-3": "Dort drüben."}
    done = Imported(
        tmp_path, [{"id": "a", "fields": fields, "responses": {"rank": [{"value": value, "user_id": "u1"}]}}]
    )
    assert [(r.labeler, r.kind, r.ranks) for r in done.ratings] == [("u1", "rank", (2, 2, 1))]


def test_argilla_ratings_of_each_answer_and_texts_and_spans(tmp_path):
    responses = {
        "response-1-rating": [{"value": 5, "user_id": "u1"}, {"value": 2, "user_id": "u2"}],
        "response-2-rating": [{"value": 1, "user_id": "u1"}],
        "why": [{"value": "weil es stimmt", "user_id": "u1"}],
        "errors": [{"value": [{"label": "wrong", "start": 0, "end": 3}], "user_id": "u2"}],
    }
    suggestions = {"response-1-rating": {"value": 3, "agent": "gpt"}}
    row = {"id": "a", "fields": FIELDS, "responses": responses, "suggestions": suggestions}
    done = Imported(tmp_path, [row])
    assert sorted((r.labeler, done.texts(r.item - 1)[0], r.score, r.comment) for r in done.ratings) == [
        ("u1", RIGHT, 5, "weil es stimmt"),
        ("u1", WRONG, 1, "weil es stimmt"),
        ("u2", RIGHT, 2, ""),
    ]
    assert done.result["passed_over"] == {"a suggestion of a model": 1, "spans, which are no vote": 1}


def test_an_argilla_label_names_the_better_answer(tmp_path):
    answers = [{"value": "response-2", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]
    done = Imported(tmp_path, [{"id": "a", "fields": FIELDS, "responses": {"better": answers}}])
    assert done.winners() == [("u1", WRONG), ("u2", "tie")]


def test_an_argilla_rating_of_one_answer_on_a_scale_of_its_own(tmp_path):
    fields = {"instruction": QUESTION, "response": RIGHT}
    row = {"id": "a", "fields": fields, "responses": {"quality": [{"value": 9, "user_id": "u1"}]}}
    with pytest.raises(UserError, match=r"the rating 9 is no whole number from 1 to 7; name the scale with --scale"):
        Imported(tmp_path / "a", [row])
    done = Imported(tmp_path / "b", [row], scale=(0.0, 10.0))
    assert [(r.score, r.given) for r in done.ratings] == [(6, 9.0)]
    assert done.result["read_as"] == "Argilla: 1 single answer (0 to 10), 1 vote of 1 labeler"


def test_an_argilla_record_that_nobody_answered_is_counted(tmp_path):
    done = Imported(tmp_path, [argilla_nested(), {"id": "b", "fields": FIELDS, "responses": {}}])
    assert done.result["passed_over"]["a record that nobody answered"] == 1


# --- Potato ----------------------------------------------------------------------------------------------------------


def potato(answers, user, **more):
    shown = {"displayed_text": f"{QUESTION}<br>A. {RIGHT}<br>B. {WRONG}"}
    return {"id": "1", "user_id": user, "label_annotations": answers, "span_annotations": {}} | shown | more


def test_potato_pairs_by_selection_scale_and_order(tmp_path):
    rows = [
        potato({"preference": {"selection": "A"}}, "ada", behavioral_data={"time_spent": 12.5}),
        potato({"preference": {"selection": "tie"}}, "bo"),
        potato({"degree": {"scale_value": "2"}}, "cy"),
        potato({"order": {"rank_order": "B,A"}}, "dee"),
        potato({"radio": {"B": "true", "A": None}}, "eve"),
        potato({"preference": {"selection": "A"}}, "bot", annotator_origin={"kind": "llm", "id": "x"}),
        potato({}, "fay"),
    ]
    done = Imported(tmp_path, rows)
    assert done.result["read_as"] == "Potato: 1 pair, 5 votes of 5 labelers"
    assert done.items[0].prompt[0]["content"] == QUESTION
    assert done.winners() == [("ada", RIGHT), ("bo", "tie"), ("cy", WRONG), ("dee", WRONG), ("eve", WRONG)]
    assert [rating.strength for rating in done.ratings] == [None, None, 2, None, None]
    assert done.result["passed_over"] == {"an answer of a machine": 1, "an item without an answer": 1}


def test_a_potato_folder_names_its_annotator(tmp_path):
    row = potato({"preference": {"selection": "B"}}, None)
    done = Imported(tmp_path / "annotation_output" / "gül", [row], name="annotated_instances.jsonl")
    assert done.winners() == [("gül", WRONG)]


def test_potato_scales_of_other_ends(tmp_path):
    row = potato({"degree": {"scale_value": "-5"}}, "ada")
    with pytest.raises(UserError, match=r"the degree -5 is beyond 3; name the scale with --scale"):
        Imported(tmp_path / "a", [row])
    assert [r.strength for r in Imported(tmp_path / "b", [row], scale=(-5.0, 5.0)).ratings] == [None]
    likert = {"id": "1", "user_id": "ada", "displayed_text": f"{QUESTION}<br>{RIGHT}"}
    rows = [likert | {"label_annotations": {"quality": {"scale_1": "1"}}}]
    assert [r.score for r in Imported(tmp_path / "c", rows).ratings] == [1]


def test_a_potato_state_file_is_refused_with_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"has no texts; export with `python -m potato.export --format jsonl`"):
        Imported(tmp_path, [{"user_id": "ada", "instance_id_to_label_to_value": {}}])


# --- Prodigy ---------------------------------------------------------------------------------------------------------


def prodigy(accept, by, answer="accept", **more):
    options = [{"id": 1, "text": RIGHT}, {"id": 2, "text": WRONG}]
    hashes = {"_input_hash": 1, "_task_hash": 2, "_view_id": "choice", "_timestamp": 1}
    return (
        {"text": QUESTION, "options": options, "accept": accept, "answer": answer, "_annotator_id": by} | hashes | more
    )


def test_prodigy_choices(tmp_path):
    rows = [
        prodigy([1], "votes-ada"),
        prodigy([2], "votes-bo"),
        prodigy([1, 2], "votes-cy"),
        prodigy([], "votes-dee", "ignore"),
        prodigy([], "votes-eve"),
    ]
    done = Imported(tmp_path, rows)
    assert done.result["read_as"] == "Prodigy: 1 pair, 3 votes of 3 labelers"
    assert done.winners() == [("votes-ada", RIGHT), ("votes-bo", WRONG), ("votes-cy", "tie")]
    assert done.result["passed_over"] == {"an ignored answer": 1, "an answer that accepts no option": 1}


def test_the_best_of_three_options_says_nothing_of_the_others(tmp_path):
    options = [{"id": n, "text": text} for n, text in enumerate((RIGHT, WRONG, "Dort."))]
    done = Imported(tmp_path, [prodigy([2], "ada", options=options)])
    assert done.result["read_as"] == "Prodigy: 2 pairs, 2 votes of 1 labeler"
    assert done.winners() == [("ada", "Dort."), ("ada", "Dort.")]


def test_prodigy_compare_and_binary(tmp_path):
    beside = {"_task_hash": 1, "_session_id": "set-ada"}
    sides = {"input": {"text": QUESTION}, "A": {"text": RIGHT}, "B": {"text": WRONG}}
    compared = sides | {"mapping": {"A": "reject", "B": "accept"}, "answer": "accept"} | beside
    judged = {"text": f"{QUESTION}\n{RIGHT}", "label": "GOOD", "answer": "reject"} | beside
    assert Imported(tmp_path / "a", [compared]).winners() == [("set-ada", WRONG)]
    done = Imported(tmp_path / "b", [judged])
    assert [(r.labeler, r.score, r.given) for r in done.ratings] == [("set-ada", 1, 0.0)]
    assert done.texts() == [RIGHT]


# --- doccano ---------------------------------------------------------------------------------------------------------


def test_doccano_labels_are_votes_on_the_answer_in_the_text(tmp_path):
    text = f"{QUESTION}\n{RIGHT}\nWirklich."
    rows = [
        {"id": 1, "text": text, "label": ["good"], "Comments": ["gut"]},
        {"id": 2, "text": "Noch eine?\nNein.", "label": ["bad"]},
        {"id": 3, "text": "Offen?\nJa.", "label": []},
        {"id": 4, "text": "Ort?\nUlm.", "label": [[5, 8, "CITY"]]},
    ]
    done = Imported(tmp_path / "a", rows, labeler="ada")
    assert [(r.labeler, r.score, r.given, r.comment) for r in done.ratings] == [
        ("ada", 7, 1.0, "gut"),
        ("ada", 1, 0.0, ""),
    ]
    assert done.texts() == [f"{RIGHT}\nWirklich."]
    assert done.result["passed_over"] == {"a text without a label": 1, "a span, which is no vote": 1}
    with pytest.raises(UserError, match=r"its text has one line, and a rating needs a question and an answer"):
        Imported(tmp_path / "b", [{"id": 1, "text": "one line", "label": ["good"]}])


def test_doccano_labels_beside_answers_and_with_users(tmp_path):
    beside = {"id": 1, "text": "x", "prompt": QUESTION, "answer_a": RIGHT, "answer_b": WRONG}
    done = Imported(tmp_path / "a", [beside | {"label": ["B is better"]}], labels={"B is better": "b"})
    assert done.winners() == [("unnamed", WRONG)]
    marks = [{"label": 1, "user": 4}, {"label": 2, "user": 5}]
    older = {"id": 1, "text": f"{QUESTION}\n{RIGHT}", "annotations": marks}
    done = Imported(tmp_path / "b", [older], labels={"1": "good", "2": "bad"})
    assert [(r.labeler, r.score) for r in done.ratings] == [("4", 7), ("5", 1)]


def test_responses_of_another_tool_are_not_said_to_be_skipped(tmp_path):
    fields = {"prompt": QUESTION, "response_1": RIGHT, "response_2": WRONG}
    response = {"id": "r", "data": {"Which is better?": "Response 1"}, "worker_id": "w0"}
    with pytest.raises(UserError, match=r"a response has the keys id, data, worker_id, and Argilla's have `values`"):
        Imported(tmp_path, [{"fields": fields, "responses": [response]}])
