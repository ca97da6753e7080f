"""Reward functions, and a real service on this machine that answers late, wrongly, or not at all."""

from __future__ import annotations

import http.server
import json
import os
import re
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest
import torch

from alignment.data.records import Prompt
from alignment.errors import ConfigError
from alignment.evaluation.reward_values import RewardError
from ppo.config import RewardsConfig, RewardSource
from ppo.reward_services import HTTPReward
from ppo.reward_sources import load_sources, weighted

HERE = "tests.unit.ppo.reward_functions"
TURN = {"role": "user", "content": "one?"}
CHAT = ({"role": "system", "content": "Be kind."}, TURN)
PROMPTS = [Prompt((TURN,), {"answer": "yes", "id": 7}), Prompt(CHAT, {"answer": "no"})]
RESPONSES = ["yes", "never"]
CHAT_ALONE = [Prompt(CHAT, {})]


def load(*entries, prompts=None):
    return load_sources(RewardsConfig(others=entries), PROMPTS if prompts is None else prompts)


def function(name, **more):
    return load({"function": f"{HERE}:{name}", **more})[0]


def test_a_function_gets_prompts_responses_and_the_columns_that_it_takes():
    from tests.unit.ppo import reward_functions

    assert function("length").score(PROMPTS, RESPONSES) == [3.0, 5.0]
    prompts, responses = reward_functions.calls[-1]
    assert prompts == ["one?", [dict(turn) for turn in CHAT]]  # a single user message as its text
    assert responses == RESPONSES
    assert function("matches").score(PROMPTS, RESPONSES) == [1.0, 0.0]
    function("everything").score(PROMPTS, RESPONSES)
    assert reward_functions.calls[-1] == {"answer": ["yes", "no"], "id": [7, None]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "gave 1 scores for 2 responses"),
        ("nan", "gave nan for response 0"),
        ("nothing", "must give a list of numbers .*, and gave None"),
        ("words", "must give a list of numbers .*, and gave 'good' .* for response 0"),
        ("by_response", r"must give a list of numbers .*, and gave \{1: 0\.5, 2: 0\.5\} \(type dict\)"),
        ("digits", r"must give a list of numbers .*, and gave '12' \(type str\)"),
        ("one_by_one", r"must give a list of numbers .*, and gave <generator .* \(type generator\)"),
        ("columns", r"gave one of shape \(2, 1\); expected \(2,\)"),
        ("texts_of_numbers", r"gave '1' \(type str\) for response 0"),
        ("too_large", "gave inf for response 0"),
        ("leaves", r"leaves raised SystemExit: 0 \(.*reward_functions\.py:\d+\)"),
        ("beyond_float32", r"beyond_float32 gave 1e\+39 for response 0; give a finite number of at most 1e\+15"),
        ("beyond_its_square", r"beyond_its_square gave 1e\+38 for response 0"),
        ("panics", r"panics raised Panic: called `Option::unwrap\(\)` \(.*reward_functions\.py:\d+\)"),
        ("tells_a_secret", r"tells_a_secret raised RuntimeError: the service said: 401, key \(redacted\) is unknown"),
        ("broken", r"broken raised ZeroDivisionError: division by zero \(.*reward_functions\.py:\d+\)"),
    ],
)
def test_what_a_function_must_not_do(name, message):
    with pytest.raises(RewardError, match=message):
        function(name).score(PROMPTS, RESPONSES)


@pytest.mark.parametrize(("name", "code"), [("leaves", 1), ("panics", 1), ("broken", 2)])
def test_a_function_that_leaves_is_no_finished_run(name, code):
    with pytest.raises(RewardError) as error:
        function(name).score(PROMPTS, RESPONSES)
    assert error.value.exit_code == code


@pytest.mark.parametrize("name", ["in_a_tuple", "in_a_tensor", "in_an_array", "of_any_kind"])
def test_what_a_function_may_give_beside_a_list_of_floats(name):
    assert function(name).score(PROMPTS, RESPONSES) == [1.0, 0.5]


def test_a_column_that_no_prompt_has_is_named_before_training():
    with pytest.raises(ConfigError, match=r"takes a column 'answer', which no prompt of data\.train has; there: id"):
        load({"function": f"{HERE}:matches"}, prompts=[Prompt((TURN,), {"id": 1})])
    others = RewardsConfig(others=[{"function": f"{HERE}:matches"}])
    for prompts, held_out, where in (
        (PROMPTS, CHAT_ALONE, "the held-out prompts"),
        (CHAT_ALONE, PROMPTS, "data.train"),
    ):
        with pytest.raises(ConfigError, match=f"no prompt of {where} has; there: none"):
            load_sources(others, prompts, held_out)


def test_a_batch_without_a_column_that_other_prompts_have_gets_none():
    """Which prompts are together in a batch hangs on the seed and the number of processes."""
    assert function("matches").score([Prompt((TURN,), {"id": 1})], ["x"]) == [0.0]
    with service((200, '{"scores": [1]}')) as (url, asked):
        (source,) = load({"url": url})
        source.score([Prompt((TURN,), {})], ["x"])
    assert asked[0] == {"prompts": ["one?"], "responses": ["x"], "answer": [None], "id": [None]}


def test_a_column_does_not_take_the_place_of_the_responses():
    from tests.unit.ppo import reward_functions

    prompts = [Prompt((TURN,), {"responses": "of the data", "prompts": "of the data", "id": 7})]
    with service((200, '{"scores": [1]}')) as (url, asked):
        sources = load({"url": url}, {"function": f"{HERE}:everything"}, prompts=prompts)
        for source in sources:
            source.score(prompts, ["the policy's"])
    assert asked[0] == {"prompts": ["one?"], "responses": ["the policy's"], "id": [7]}
    assert reward_functions.calls[-1] == {"id": [7]}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HERE}:lenght", f"has no function lenght; did you mean {HERE}:length"),
        (f"{HERE}:number", "has no function number"),
        ("no_such_module_here:f", "the module no_such_module_here cannot be imported"),
        (
            "reward:score",
            r"reward is a package of this suite, and there is no reward\.py in the current folder; rename",
        ),
        (f"{HERE}_leaving:f", r"it calls sys\.exit\(0\)"),
        ("builtins:min", "does not say what it takes"),
        (f"{HERE}:unlike", re.escape("unlike(prompts=..., responses=..., **columns), and takes (texts)")),
    ],
)
def test_a_function_that_cannot_be_had_is_found_before_training(path, message):
    with pytest.raises(ConfigError, match=r"rewards\.others\.0\.function") as error:
        load({"function": path})
    assert re.search(message, str(error.value))


@pytest.mark.parametrize("name", ["reward", "json", "my_own_reward"])
def test_a_file_of_the_current_folder_is_taken_whatever_else_has_its_name(name, tmp_path, monkeypatch):
    """Also from the command `alignment`, whose first place to look is not the current folder."""
    (tmp_path / f"{name}.py").write_text("def score(prompts, responses):\n    return [7.0] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    assert load({"function": f"{name}:score"})[0].score(PROMPTS, RESPONSES) == [7.0, 7.0]


def test_weights_and_names():
    one, two = load({"function": f"{HERE}:length", "weight": 2}, {"function": f"{HERE}:length", "weight": -1})
    assert [one.name, two.name] == ["length", "length-1"]
    assert function("model").name == "model-0"  # the reward model's own part has that name
    parts = {"model": torch.tensor([1.0, 2.0]), one.name: torch.tensor([3.0, 5.0]), two.name: torch.tensor([1.0, 0.0])}
    total = weighted(parts, {"model": 0.5, one.name: one.weight, two.name: two.weight})
    assert total.tolist() == [0.5 + 6 - 1, 1 + 10]


# --- a service -----------------------------------------------------------------------------------------------------


@contextmanager
def service(*answers):
    """A server that gives each answer once, (status, body), and keeps what it was asked; None closes the connection."""
    left, asked = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = left.pop(0)
            if answer is None:
                self.connection.close()
                return
            status, body = answer
            if status == "late":
                stopped.wait(5)
                return
            if status == "garbled":
                self.wfile.write(b"no line of HTTP\r\n\r\n")
                return
            self.send_response(200 if status == "cut" else status)
            if status == "cut":
                self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    stopped = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", asked
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()


GOOD = (200, '{"scores": [1, -0.5]}')


def ask(url, max_retries=3, **options):
    waits = []
    reward = HTTPReward(RewardSource(url=url, **options), ["answer"], sleep=waits.append, max_retries=max_retries)
    return reward, waits


def test_a_service_is_asked_with_the_columns_beside():
    with service(GOOD) as (url, asked):
        reward, waits = ask(url)
        assert reward.score(PROMPTS, RESPONSES) == [1.0, -0.5]
    assert waits == []
    assert asked[0]["prompts"][0] == "one?"
    assert asked[0]["responses"] == RESPONSES
    assert asked[0]["answer"] == ["yes", "no"]


@pytest.mark.parametrize(
    "trouble",
    [(500, "down"), (429, "slow"), None, ("cut", '{"scores": ['), ("garbled", "")],
    ids=["500", "429", "closed", "cut", "garbled"],
)
def test_trouble_that_passes_is_waited_for_longer_and_longer(trouble):
    with service(trouble, trouble, trouble, GOOD) as (url, asked):
        reward, waits = ask(url)
        assert reward.score(PROMPTS, RESPONSES) == [1.0, -0.5]
    assert waits == [1.0, 2.0, 4.0]
    assert len(asked) == 4


def test_trouble_that_stays_ends_in_one_line_without_the_key():
    with service(*[(503, "")] * 3) as (url, _):
        reward, waits = ask(f"{url}?key=hunter2", max_retries=2)
        with pytest.raises(RewardError, match=r"/score: HTTP 503 .* \(3 tries") as error:
            reward.score(PROMPTS, RESPONSES)
    assert waits == [1.0, 2.0]
    assert "hunter2" not in str(error.value)


def test_a_late_answer_is_none():
    with service(("late", "")) as (url, _):
        reward, _ = ask(url, timeout=0.2, max_retries=0)
        with pytest.raises(RewardError, match="timed out"):
            reward.score(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, ""), "HTTP 404"),
        ((200, "<html>"), "must answer .* and answered '<html>'"),
        ((200, "[1, 2]"), "must answer"),
        ((200, '{"scores": [1]}'), "gave 1 scores for 2 responses"),
        ((200, '{"scores": [1, null]}'), "must give a list of numbers"),
        ((200, '{"scores": [1, NaN]}'), "gave nan for response 1"),
    ],
)
def test_an_answer_that_will_not_get_better_is_not_asked_for_again(answer, message):
    with service(answer) as (url, asked):
        reward, waits = ask(url)
        with pytest.raises(RewardError, match=message):
            reward.score(PROMPTS, RESPONSES)
    assert (waits, len(asked)) == ([], 1)


def test_a_proxy_of_the_environment_is_named_and_how_to_go_without(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which has read the environment once for all
    monkeypatch.setenv("http_proxy", "http://me:hunter2@127.0.0.1:9")  # where nothing listens
    with service(GOOD) as (url, asked):
        reward, _ = ask(url, max_retries=0)
        with pytest.raises(RewardError, match=r"refused.* through the proxy 127\.0\.0\.1:9 of http_proxy") as error:
            reward.score(PROMPTS, RESPONSES)
        assert "hunter2" not in str(error.value)
        assert "set no_proxy=127.0.0.1" in str(error.value)
        assert not asked
        monkeypatch.setenv("no_proxy", "127.0.0.1")  # as it says
        assert reward.score(PROMPTS, RESPONSES) == [1.0, -0.5]


def test_what_is_no_address():
    with pytest.raises(ConfigError, match="no http:// or https:// address"):
        load({"url": "file:///etc/passwd"})
