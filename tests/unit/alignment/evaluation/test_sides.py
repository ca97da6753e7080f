"""How a side is named, and what its model is asked."""

import json
from pathlib import Path

import pytest
from helpers.comparing import question

from alignment.errors import UserError
from alignment.evaluation.sides import parse_side, read_sides

SHOTS = [{"prompt": f"Q{number}", "completion": f"A{number}"} for number in range(3)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text("Be brief.\n")
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHOTS))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "model"),
    [
        ("desk@v3", None, "desk@v3"),
        ("ours=desk@v3", "ours", "desk@v3"),
        ("http://h:1/v1#m", None, "http://h:1/v1#m"),
        ("gpt=http://h/v1?system=a%20text#m", "gpt", "http://h/v1#m"),
        ("./model", None, "./model"),
        ("old=answers.jsonl#desk@v1", "old", "answers.jsonl#desk@v1"),
    ],
)
def test_a_side_has_a_name_if_it_is_given_one(here, text, name, model):
    spec = parse_side(text)
    assert (spec.name, spec.model) == (name, model)


def test_a_folder_with_an_equals_sign_is_a_folder(here):
    Path("lr=1").mkdir()
    assert parse_side("lr=1").model == "lr=1"


def test_system_examples_and_context_stand_before_the_question_in_this_order(here):
    spec = parse_side("p=base?system=prompt.txt&examples=few.jsonl&shots=2&context=docs")
    messages = spec.messages(question("Why?", docs=["One.", {"text": "Two."}]))
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [message["content"] for message in messages[:5]] == ["Be brief.", "Q0", "A0", "Q1", "A1"]
    assert messages[-1]["content"] == "Use this context to answer.\n\nOne.\n\nTwo.\n\nQuestion: Why?"
    assert spec.is_prompted and not parse_side("p=base").is_prompted


def test_an_example_that_asks_the_same_question_is_left_out(here):
    asked = parse_side("base?examples=few.jsonl").messages(question("Q1"))
    assert [message["content"] for message in asked] == ["Q0", "A0", "Q2", "A2", "Q1"]


def test_other_prompting_is_another_identity(here):
    one = parse_side("base?examples=few.jsonl").prompting
    Path("few.jsonl").write_text(json.dumps(SHOTS[0] | {"completion": "other"}) + "\n")
    assert parse_side("base?examples=few.jsonl").prompting != one


def test_a_file_of_sides(here):
    Path("sides.yaml").write_text("tuned: desk@v2\nprompted:\n  model: base\n  system: prompt.txt\n  shots: null\n")
    tuned, prompted = read_sides(Path("sides.yaml"))
    assert (tuned.name, tuned.model, tuned.system) == ("tuned", "desk@v2", None)
    assert (prompted.name, prompted.model, prompted.system) == ("prompted", "base", "Be brief.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base?sytem=prompt.txt", "unknown key 'sytem'; did you mean 'system'"),
        ("base?system", "found 'system' behind the `?`; write key=value"),
        ("base?system=promt.txt", "system=promt.txt: no such file; give a file with the system prompt"),
        ("base?examples=few.jsonl&shots=9", "shots=9: few.jsonl has 3 examples"),
        ("base?shots=0", "shots"),
        ("base?model=x", "the model stands before the `?`"),
    ],
)
def test_a_mistake_names_the_side_and_the_fix(here, text, message):
    with pytest.raises(UserError) as caught:
        parse_side(text)
    assert message in str(caught.value)


def test_a_row_without_the_context_is_named(here):
    with pytest.raises(UserError, match=r"context=docs: .* has no text there; its columns: topic"):
        parse_side("base?context=docs").messages(question("Why?", topic="x"))


def test_a_file_of_sides_with_a_wrong_key_is_refused(here):
    Path("sides.yaml").write_text("a: {model: base, sistem: prompt.txt}\n")
    with pytest.raises(UserError, match=r"sides.yaml: a: unknown key 'sistem'; did you mean 'system'"):
        read_sides(Path("sides.yaml"))


@pytest.mark.parametrize("text", ["base?best_of=4", "base?chosen_by=reward"])
def test_the_best_of_several_needs_who_chooses(here, text):
    with pytest.raises(UserError, match="stand together"):
        parse_side(text)
