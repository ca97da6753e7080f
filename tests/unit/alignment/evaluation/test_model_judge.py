"""An instruction model as a judge, behind a real server that says what a test tells it."""

import json
import re

import pytest
from helpers.chat_server import ChatServer, completion
from helpers.comparing import contest, question

from alignment.errors import UserError
from alignment.evaluation.drawing import DrawOptions, open_endpoint
from alignment.evaluation.judgments import KnownJudgments
from alignment.evaluation.model_judge import BETTER, ModelJudge

PROMPTS = [question(f"Q{number}") for number in range(3)]


def verdict(better, reason="So."):
    return completion(json.dumps({"reason": reason, "better": better}))


def parts(prompt):
    """The request and the two answers that a judge is shown."""
    return re.search(
        r"=== request\n(.*?)\n=== answer A\n(.*?)\n=== answer B\n(.*?)\n=== end", prompt, re.DOTALL
    ).groups()


def longer(prompt, seen):
    _, first, second = parts(prompt)
    return verdict("A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie")


def judge_with(server, tmp_path, found):
    judge = ModelJudge(open_endpoint(f"{server.url}#m", DrawOptions()), f"{server.url}#m")
    return judge, judge.judge(found, KnownJudgments(tmp_path / "judgments.jsonl"))


def test_each_pair_is_asked_in_both_orders(tmp_path):
    with ChatServer(longer) as server:
        judge, found = judge_with(server, tmp_path, contest(PROMPTS, a=["xx", "x", "same"], b=["y", "yy", "same"]))
    assert [judgment.outcome for judgment in found] == [1.0, 0.0, 0.5]
    assert sorted(map(parts, server.prompts)) == [
        ("Q0", "xx", "y"),
        ("Q0", "y", "xx"),
        ("Q1", "x", "yy"),
        ("Q1", "yy", "x"),
    ]
    assert judge.notes == []
    assert {request["temperature"] for request in server.requests} == {0.0}


def test_a_judge_that_likes_a_place_ties_every_pair(tmp_path):
    with ChatServer(lambda prompt, seen: verdict("A")) as server:
        judge, found = judge_with(server, tmp_path, contest(PROMPTS, a=["1", "2", "3"], b=["4", "5", "6"]))
    assert [judgment.outcome for judgment in found] == [0.5] * 3
    assert judge.notes == ["its two orders disagreed on 100% of the pairs, which count as ties"]


def test_what_it_said_is_not_asked_again(tmp_path):
    with ChatServer(longer) as server:
        judge_with(server, tmp_path, contest(PROMPTS, a=["xx", "x", "x"], b=["y", "yy", "yy"]))
        asked = len(server.prompts)
        _, found = judge_with(server, tmp_path, contest(PROMPTS, a=["xx", "x", "new"], b=["y", "yy", "yy"]))
        assert (asked, len(server.prompts)) == (6, 8)
    assert [judgment.outcome for judgment in found] == [1.0, 0.0, 1.0]


def test_a_reply_that_is_no_judgment_is_asked_for_again_and_then_left_out(tmp_path):
    def answer(prompt, seen):
        request = parts(prompt)[0]
        if request == "Q0" and seen == 0:
            return completion("I think A is better.")
        return completion("no") if request == "Q1" else longer(prompt, seen)

    with ChatServer(answer) as server:
        judge, found = judge_with(server, tmp_path, contest(PROMPTS, a=["xx", "x", "x"], b=["y", "yy", "yy"]))
    assert [judgment.outcome for judgment in found] == [1.0, 0.0]  # of Q0 and Q2
    assert judge.notes == ["1 of 3 pairs have no reply of it that could be read"]
    assert len({(request["seed"], request["temperature"]) for request in server.requests}) == 3


def test_a_judge_whose_replies_can_never_be_read_is_an_error(tmp_path):
    with (
        ChatServer(lambda prompt, seen: completion("A!")) as server,
        pytest.raises(UserError, match="no reply could be read"),
    ):
        judge_with(server, tmp_path, contest(PROMPTS, a=["1", "2", "3"], b=["4", "5", "6"]))


def test_a_server_that_refuses_is_one_line_and_keeps_what_was_judged(tmp_path):
    with (
        ChatServer(lambda prompt, seen: (401, {}, {"error": {"message": "who are you?"}})) as server,
        pytest.raises(UserError, match="401 who are you"),
    ):
        judge_with(server, tmp_path, contest(PROMPTS, a=["1", "2", "3"], b=["4", "5", "6"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "x", "better": "A"}', "A"),
        ('```json\n{"better": "tie"}\n```', "tie"),
        ('{"better": "a"}', None),
        ('{"better": "A"} or {"better": "B"}', None),
        ("A", None),
        ('["A"]', None),
        ("[" * 100_000, None),
    ],
    ids=["object", "fenced", "lower case", "two objects", "bare", "list", "deep"],
)
def test_replies_are_read_strictly(text, expected):
    assert BETTER.read(text) == expected
