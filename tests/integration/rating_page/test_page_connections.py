"""The page while some connections are slow, many or broken: others are served, and the log stays small."""

import contextlib
import logging
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn
from helpers.rating_page import PageServer, pairs

from alignment.labeling import web_connections
from alignment.labeling.web_connections import OncePerMinute, PageConnection, listen, page_server, quiet_logs

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
WHOLE = b"GET /static/rate.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
FORM = (
    b"POST /start HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ntok"
)


class Running:
    """The page's server in a thread of this process."""

    def __init__(self, app, most: int) -> None:
        self.server: uvicorn.Server = page_server(app)
        self.listener = listen("127.0.0.1", 0, self.server, most)
        self.address = self.listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=10)
        connection.sendall(sent)
        return connection

    def serves(self) -> bool:
        with self.connect(WHOLE) as connection:
            return connection.recv(65536).startswith(b"HTTP/1.1 200")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture
def running(app, request) -> Iterator[Running]:
    with quiet_logs():
        running = Running(app, most=getattr(request, "param", 100))
        yield running
        running.stop()


def is_closed(connection: socket.socket, within: float) -> bool:
    """Whether the server closes the connection in this time."""
    connection.settimeout(within)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


class Attack(threading.Thread):
    """Holds connections with half a header, and opens another for each that the server closes."""

    def __init__(self, address: tuple[str, int], number: int) -> None:
        super().__init__()
        self.address, self.number, self.opened = address, number, 0
        self.held: list[socket.socket] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.held = [connection for connection in self.held if self._is_open(connection)]
            while len(self.held) < self.number and not self.stopping.is_set():
                with contextlib.suppress(OSError):
                    connection = socket.create_connection(self.address, timeout=1)
                    connection.sendall(HALF)
                    connection.setblocking(False)
                    self.held.append(connection)
                    self.opened += 1
            self.stopping.wait(0.1)
        for connection in self.held:
            connection.close()

    def _is_open(self, connection: socket.socket) -> bool:
        try:
            connection.send(b"a")
            return connection.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            connection.close()
            return False


def test_half_open_connections_beyond_the_limit_of_files_keep_nobody_out(db, store):
    """300 of them against 256 files, each with another byte ten times a second; opened anew when they are closed."""
    pairs(store, 1)
    token = store.people.invite("ada")
    server = PageServer(db, files=256)
    host, port = server.base.removeprefix("http://").split(":")
    attack = Attack((host, int(port)), 300)
    try:
        attack.start()
        slowest, end = 0.0, time.monotonic() + 5
        while time.monotonic() < end:
            began = time.monotonic()
            with urllib.request.urlopen(f"{server.base}/l/{token}", timeout=10) as answer:
                assert answer.status == 200 and b"ada" in answer.read()
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    finally:
        attack.stopping.set()
        attack.join(20)
        code, said = server.stop(signal.SIGINT)
    assert attack.opened > 300
    assert slowest < 2
    assert code == 0 and said == "Stopped. Every answer is saved.\n"


def test_a_header_has_a_deadline_which_its_bytes_do_not_extend(running, monkeypatch):
    monkeypatch.setitem(web_connections.SECONDS, "header", 0.5)
    for sent in (b"", HALF, WHOLE + HALF):
        connection, end = running.connect(sent), time.monotonic() + 10
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                connection.sendall(b"a" if sent else b"")
                if is_closed(connection, 0.05):
                    break
        assert time.monotonic() < end, sent


@pytest.mark.parametrize(
    ("stage", "sent"),
    [("body", FORM), ("answer", 4000 * WHOLE)],
    ids=["a form that does not end", "answers that nobody reads"],
)
def test_forms_and_answers_have_a_deadline(running, monkeypatch, stage, sent):
    monkeypatch.setitem(web_connections.SECONDS, stage, 0.3)
    connection = socket.create_connection(running.address)
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent:
            sent = sent[connection.send(sent) :]
    end = time.monotonic() + 10
    while running.server.server_state.connections and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end
    assert running.serves()


@pytest.mark.parametrize("running", [8], indirect=True)
def test_the_connection_that_has_waited_longest_makes_room(running):
    first = running.connect(WHOLE)
    assert first.recv(65536).startswith(b"HTTP/1.1 200")
    others = [running.connect(HALF) for _ in range(7)]
    time.sleep(0.2)
    assert running.serves()
    assert is_closed(first, 5)
    assert not is_closed(others[-1], 0.2)
    for _ in range(20):
        assert running.serves()
    assert len(running.server.server_state.connections) <= 8


@pytest.mark.parametrize("running", [400], indirect=True)
@pytest.mark.parametrize(("address", "held"), [("203.0.113.5", 4), ("127.0.0.1", 12), ("::1", 12)])
def test_one_address_holds_a_quarter_but_the_local_proxy_may_hold_all(running, monkeypatch, address, held):
    monkeypatch.setattr(web_connections, "most_connections", lambda: 16)
    monkeypatch.setattr(PageConnection, "address", address)
    connections = [running.connect(HALF) for _ in range(12)]
    time.sleep(0.3)
    assert len(running.server.server_state.connections) == held
    assert not is_closed(connections[-1], 0.1)
    assert running.serves()


def test_broken_requests_write_one_line(running, caplog):
    for _ in range(30):
        with running.connect(b"\x16\x03\x01 no HTTP\r\n\r\n") as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 400")
        running.connect(FORM).close()
    assert running.serves()
    time.sleep(0.3)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "Invalid HTTP request received."
    ]


def test_a_message_comes_once_a_minute():
    once = OncePerMinute(seconds=0.2)
    assert [once.admit(text) for text in ("a", "a", "b", "a")] == [True, False, True, False]
    time.sleep(0.25)
    assert once.admit("a") and not once.admit("a")


@pytest.mark.parametrize(("files", "expected"), [(64, 16), (256, 96), (1024, 864), (10**6, 1000), (-1, 1000)])
def test_connections_stay_below_the_limit_of_files(monkeypatch, files, expected):
    monkeypatch.setattr(web_connections.resource, "getrlimit", lambda _: (files, files))
    assert web_connections.most_connections() == expected
