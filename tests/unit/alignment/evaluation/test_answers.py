"""The answers file: written as answers are drawn, refused with other settings, and read after a kill."""

import json

import pytest
from helpers.comparing import question

from alignment.errors import UserError
from alignment.evaluation.answers import AnswerSettings, AnswersFile, SideAnswer, prompt_id, read_answers

SETTINGS = AnswerSettings(0, 1.0, 8)
WHO = {"kind": "model", "model": "desk@v1", "digest": "sha256:1"}
PROMPTS = [question(f"Q{number}", topic=number) for number in range(3)]


def add(path, prompts, texts, settings=SETTINGS, identity=WHO, side="a"):
    with AnswersFile(path, settings) as file:
        file.add_side(side, identity)
        file.add(side, prompts, [SideAnswer(text, True, 2, 0.5) for text in texts])


def test_answers_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "c" / "answers.jsonl"
    add(path, PROMPTS, "xyz")
    content = read_answers(path)
    assert content.settings == SETTINGS and content.sides == {"a": WHO}
    keys = [prompt_id(prompt.messages) for prompt in PROMPTS]
    assert content.answers == {"a": dict(zip(keys, [SideAnswer(text, True, 2, 0.5) for text in "xyz"], strict=True))}
    assert [content.prompts[key].columns for key in keys] == [{"topic": number} for number in range(3)]


def test_answers_without_latency_and_memory_are_read(tmp_path):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:1], "x")
    *head, last = path.read_text().splitlines()
    row = {key: value for key, value in json.loads(last).items() if key not in ("latency", "peak_bytes")}
    path.write_text("\n".join([*head, json.dumps(row)]) + "\n")
    (answer,) = read_answers(path).answers["a"].values()
    assert answer == SideAnswer("x", True, 2, 0.5, None, None)


def test_each_answer_stands_by_itself_in_its_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:1], "x")
    row = json.loads(path.read_text().splitlines()[-1])
    assert row["messages"] == [{"role": "user", "content": "Q0"}]
    assert (row["side"], row["digest"], row["text"], row["columns"]) == ("a", "sha256:1", "x", {"topic": 0})


def test_an_answer_that_is_there_stays(tmp_path):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:2], "xy")
    size = path.stat().st_size
    add(path, PROMPTS, "abc")
    content = read_answers(path)
    assert [answer.text for answer in content.answers["a"].values()] == ["x", "y", "c"]
    assert len(path.read_bytes()[size:].splitlines()) == 1


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:2], "xy")
    path.write_bytes(path.read_bytes()[:-20])
    add(path, PROMPTS[1:], "YZ")
    assert [answer.text for answer in read_answers(path).answers["a"].values()] == ["x", "Y", "Z"]


@pytest.mark.parametrize(
    ("settings", "identity", "message"),
    [
        (AnswerSettings(1, 1.0, 8), WHO, "drawn with seed=0, now it is 1"),
        (AnswerSettings(0, 0.5, 8), WHO, "drawn with temperature=1.0, now it is 0.5"),
        (SETTINGS, WHO | {"digest": "sha256:2"}, "side a: its answers were drawn with digest=sha256:1"),
        (
            SETTINGS,
            WHO | {"system": "Be brief."},
            "side a: its answers were drawn with system=None, now it is Be brief.",
        ),
    ],
    ids=["seed", "temperature", "other weights", "a system prompt"],
)
def test_other_settings_are_refused_by_name(tmp_path, settings, identity, message):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:2], "xy")
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        add(path, PROMPTS, "abc", settings, identity)
    assert message in str(caught.value) and "name another --out" in str(caught.value)
    assert path.read_bytes() == before


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, SETTINGS), pytest.raises(UserError, match="another command is writing to it"):
        AnswersFile(path, SETTINGS)
    AnswersFile(path, SETTINGS).__exit__()  # the lock went with the first


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "x"}', "no JSON", '{"row": "answer", "side": "b", "prompt": "1"}', '{"row": "settings", "format": 9}'],
)
def test_a_strange_line_is_named(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    add(path, PROMPTS[:1], "x")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"answers.jsonl:4: not a line of an answers file"):
        read_answers(path)
