"""Services that answer for ever, elsewhere, or what is not asked for; each ends in one line."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from alignment.errors import ConfigError
from alignment.evaluation.reward_values import RewardError
from ppo import reward_services
from ppo.config import RewardSource
from ppo.reward_services import HTTPReward
from ppo.rows import Row
from tests.unit.ppo.test_reward_sources import PROMPTS, RESPONSES, service

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def raw_service(talk):
    """A server that calls talk(connection, stopped) with each request; yields its address and the requests."""
    asked, stopped = [], threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection, suppress(OSError):
            asked.append(connection.recv(2**16))
            talk(connection, stopped)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/score", asked
    finally:
        stopped.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def ask(url, timeout=0.6):
    return HTTPReward(RewardSource(url=url, timeout=timeout), max_retries=0)


def refused(url, **options):
    with pytest.raises(RewardError) as error:
        ask(url, **options).score(PROMPTS, RESPONSES)
    return str(error.value)


def dripping(first):
    def talk(connection, stopped):
        connection.sendall(first)
        while not stopped.wait(0.1):
            connection.sendall(b"x")

    return talk


@pytest.mark.parametrize("first", [OK + b"X-Slow: ", OK + b"\r\n", OK + b"Content-Length: 100000\r\n\r\n"])
def test_the_timeout_is_of_the_whole_request(first):
    """A byte now and then, of the headers or of the body, once kept a run waiting for ever."""
    started = time.monotonic()
    with raw_service(dripping(first)) as (url, _):
        assert "timed out: no whole answer within 0.6 s" in refused(url)
    assert time.monotonic() - started < 5


def test_the_body_of_a_refusal_is_not_waited_for_either():
    started = time.monotonic()
    with raw_service(dripping(b"HTTP/1.1 404 Not Found\r\n\r\n")) as (url, _):
        assert "HTTP 404 Not Found" in refused(url)
    assert time.monotonic() - started < 5


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(reward_services, "MAX_ANSWER", 2**20)

    def talk(connection, stopped):
        connection.sendall(OK + b"\r\n")
        while not stopped.is_set():
            connection.sendall(b"1, " * 2**14)

    with raw_service(talk) as (url, _):
        assert "answered more than 1 MiB" in refused(url, timeout=20)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    with service((200, '{"scores": [1, 2]}')) as (elsewhere, followed):

        def talk(connection, stopped):
            connection.sendall(f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}\r\n\r\n".encode())

        with raw_service(talk) as (url, asked):
            message = refused(url)
    assert f"HTTP {status} Moved: redirects are not followed" in message
    assert "(1 tries" in message
    assert (len(asked), followed) == (1, [])


@pytest.mark.parametrize(
    "answer",
    [
        '{"scores": "12"}',
        '{"scores": {"4": 0.1, "5": 0.2}}',
        '{"scores": [1, 2], "error": "half of them are guessed"}',
        '[1, 2]',
        '{"scores": null}',
        "null",
        "",
        "[" * 100_000,
        '{"scores": [1, ' + "7" * 5000 + "]}",
    ],
    ids=lambda answer: answer[:20],
)  # fmt: skip
def test_an_answer_has_scores_and_nothing_else(answer):
    with service((200, answer)) as (url, _):
        message = refused(url, timeout=20)
    assert '/score must answer {"scores": [a number for each response]} and nothing else' in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("[1, true]", "must answer numbers"),
        ("[1, " + "7" * 400 + "]", "gave inf for response 1"),
        ("[1, 1e39]", r"gave 1e\+39 for response 1"),
        ("[1, -1e38]", r"gave -1e\+38 for response 1"),
        ("[1, 1e999]", "gave inf for response 1"),
        ("[1, [2]]", r"gave \[2\] \(type list\) for response 1"),
    ],
)
def test_scores_are_numbers_of_a_size_to_compute_with(scores, message):
    with service((200, f'{{"scores": {scores}}}')) as (url, _):
        assert re.search(f"/score .*{message}", refused(url))


def test_what_a_refusal_says_is_shown_without_secrets(monkeypatch):
    monkeypatch.setenv("SERVICE_API_KEY", "correct-horse-battery")
    body = json.dumps(
        {"detail": "no such model\nfor correct-horse-battery or sk-abcdefghijklmnopqrst", "more": "x" * 999}
    )
    with service((422, body)) as (url, _):
        message = refused(url)
    assert "HTTP 422 " in message
    assert "no such model" in message
    assert "correct-horse" not in message
    assert "sk-abc" not in message
    assert len(message) < 420
    with service((200, body)) as (url, _):
        assert "correct-horse" not in refused(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host:abc/", "is no http:// or https:// address"),
        ("http://host:99999/", "is no http:// or https:// address"),
        ("http://[::1", "is no http:// or https:// address"),
        ("http:///score", "is no http:// or https:// address"),
        ("http://me:hunter2-secret@host/score", "a user and password before the host are not sent"),
        ("http://host/a b", "write spaces and other characters than ASCII as %20"),
        ("http://host/\u00e4", "write spaces and other characters than ASCII as %20"),
    ],
)
def test_an_address_that_cannot_be_asked_is_refused_before_training(url, message):
    with pytest.raises(ConfigError, match=r"rewards\.others: url=") as error:
        ask(url)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


# a service that wants more than text


class Asking:
    """A service that refuses with `Alignment-Wants` until it is sent what it wants; `asked` has what it was sent."""

    def __init__(self, *wants):
        self.wants, self.asked = wants, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((dict(self.headers), sent))
                has = {"tokens": "tokens" in sent, "key": self.headers.get("Authorization") == "Bearer secret"}
                missing = [want for want in outer.wants if not has.get(want)]
                self.send_response(428 if missing else 200)
                if missing:
                    self.send_header("Alignment-Wants", missing[0])
                self.end_headers()
                self.wfile.write(b"more, please" if missing else b'{"scores": [1, 2]}')

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def reward(self, tokenizer):
        url = f"http://127.0.0.1:{self.server.server_port}/score"
        return HTTPReward(RewardSource(url=url), max_retries=0, tokenizer=tokenizer)


TOKENS = [Row([5, 6], [7]), Row([5], [8, 9])]


def test_what_a_service_does_not_ask_for_it_does_not_get(tokenizer, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_SCORE_TOKEN", "secret")
    with Asking() as service:
        assert service.reward(tokenizer).score(PROMPTS, RESPONSES, TOKENS) == [1.0, 2.0]
    ((headers, sent),) = service.asked
    assert list(sent) == ["prompts", "responses"] and "Authorization" not in headers
    assert headers["Alignment-Offers"] == "tokens"


def test_a_service_gets_the_tokens_and_the_key_that_it_asks_for_and_is_asked_once(tokenizer, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_SCORE_TOKEN", "secret")
    with Asking("key", "tokens") as service:
        reward = service.reward(tokenizer)
        assert reward.score(PROMPTS, RESPONSES, TOKENS) == reward.score(PROMPTS, RESPONSES, TOKENS) == [1.0, 2.0]
    has = [("Authorization" in headers, "tokens" in sent) for headers, sent in service.asked]
    assert has == [(False, False), (True, False), (True, True), (True, True)]
    sent = service.asked[-1][1]["tokens"]
    assert (sent["prompts"], sent["responses"], sent["vocabulary"]) == ([[5, 6], [5]], [[7], [8, 9]], len(tokenizer))


@pytest.mark.parametrize(
    ("wants", "key"), [(("tokens", "more"), "secret"), (("key",), ""), (("key",), "another"), (("tokens\t",), "")]
)
def test_a_service_that_wants_what_cannot_be_given_ends_in_one_line(tokenizer, wants, key, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_SCORE_TOKEN", key)
    with Asking(*wants) as service, pytest.raises(RewardError, match=r"HTTP 428 .*more, please"):
        service.reward(tokenizer).score(PROMPTS, RESPONSES, TOKENS)
    assert len(service.asked) <= 2


def test_without_tokens_none_are_offered(tokenizer):
    with Asking() as service:
        service.reward(tokenizer).score(PROMPTS, RESPONSES)
        service.reward(None).score(PROMPTS, RESPONSES, TOKENS)
    assert not any("Alignment-Offers" in headers for headers, _ in service.asked)
