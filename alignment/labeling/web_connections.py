"""What keeps the rating page open to everybody while some connections are slow, many or broken.

A connection that waits for its client is closed after a deadline, or earlier if room is needed for a new one. The event
loop would otherwise run out of file descriptors, log a traceback for each try and answer nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import select
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NoReturn
from weakref import WeakSet

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from alignment.errors import UserError

Stage = Literal["header", "body", "answer"]
SECONDS: dict[Stage, float] = {"header": 10.0, "body": 30.0, "answer": 60.0}
"""How long a request's header, its body, and the answer may take. A wait for the ratings file takes up to 30 s."""
NEW_SECONDS = 0.2
"""A younger connection is not closed to make room."""
MOST_CONNECTIONS = 1000
FILES_FOR_WORK = 160
"""Descriptors that are not for connections: three for each of 40 worker threads, and the process's own."""
WAITING_SHARE = 4
"""One address may hold a quarter of the connections while they wait; the proxy on this machine may hold all."""


def most_connections() -> int:
    """The number of connections to keep open, below the limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, limit - FILES_FOR_WORK))


class PageConnection(H11Protocol):
    """uvicorn's HTTP connection, with a deadline for each stage of a request."""

    stage: Stage = "header"
    since = 0.0
    is_dropped = False
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("header")
        address = self.address
        if not address.startswith("127.") and address != "::1":
            others = [other for other in page_connections(self.server_state) if other.address == address]
            drop_oldest(others, most_connections() // WAITING_SHARE)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        is_answered = self.cycle is None or self.cycle.response_complete
        stage: Stage = "header" if is_answered else "body" if self.cycle.more_body else "answer"
        if stage != self.stage:
            self._enter(stage)

    def on_response_complete(self) -> None:
        self._enter("header")  # bytes of the next request do not extend its deadline
        super().on_response_complete()

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to send a request, or to read its answer."""
        return not self.is_dropped and (self.stage != "answer" or self.flow.write_paused)

    @property
    def may_have_sent(self) -> bool:
        """Whether a request may have come that the event loop has not read yet: an honest one would be cut off."""
        if self.loop.time() - self.since < NEW_SECONDS:
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def drop(self) -> None:
        """Close the connection without waiting for the client."""
        self.is_dropped = True
        self.transport.abort()

    def _enter(self, stage: Stage) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.stage, self.since = stage, self.loop.time()
        self.deadline = self.loop.call_later(SECONDS[stage], self.drop)


def page_connections(state: ServerState) -> list[PageConnection]:
    """The open connections of a server."""
    return [connection for connection in state.connections if isinstance(connection, PageConnection)]


def drop_oldest(connections: Iterable[PageConnection], most: int) -> bool:
    """Drop the connection that has waited longest if more than `most` wait; returns whether one was dropped."""
    waiting = [connection for connection in connections if connection.waits]
    if len(waiting) <= most:
        return False
    min(waiting, key=lambda connection: connection.since).drop()
    return True


class PageListener(socket.socket):
    """A listening socket that keeps at most `most` connections open.

    If there is no room, `accept` says so with BlockingIOError, which the event loop takes as "nothing to accept now";
    by its next turn the connection that has waited longest is closed.
    """

    def __init__(self, listener: socket.socket, state: ServerState, most: int) -> None:
        super().__init__(listener.family, listener.type, listener.proto, listener.detach())
        self.state, self.most = state, most
        self.accepted: WeakSet[socket.socket] = WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """A new connection and its address, as `socket.accept`."""
        if sum(accepted.fileno() >= 0 for accepted in self.accepted) >= self.most:
            self._make_room()
        try:
            connection, address = super().accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            raise
        except OSError:  # no descriptor or memory is left after all
            self._make_room()
        self.accepted.add(connection)
        return connection, address

    def _make_room(self) -> NoReturn:
        """Close what has waited longest; the next try to accept finds its place."""
        silent = [each for each in page_connections(self.state) if each.waits and not each.may_have_sent]
        if not drop_oldest(silent, 0):
            time.sleep(0.005)  # the server works on all of them: wait for an answer to end, without a busy loop
        raise BlockingIOError


def page_server(app: ASGIApp) -> uvicorn.Server:
    """A server of the page, not started yet."""
    # No access log: the links in it would let its reader rate as anybody. Browsers keep connections open: waiting for
    # them to close would turn Ctrl-C into a long wait. Another event loop would accept past the `PageListener`.
    config = uvicorn.Config(
        app, loop="asyncio", http=PageConnection, lifespan="off", ws="none", log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def listen(host: str, port: int, server: uvicorn.Server, most: int | None = None) -> PageListener:
    """A listening socket for the server, with `most_connections` at a time unless told otherwise."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--port {port}: cannot listen on {host} ({reason}); choose another port") from error
    return PageListener(listener, server.server_state, most or most_connections())


class OncePerMinute(logging.Filter):
    """Lets a message through once a minute, so that broken requests cannot fill a log."""

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._last: dict[str, float] = {}

    def admit(self, text: str) -> bool:
        """Whether the text has not been let through for a minute."""
        now = time.monotonic()
        self._last = {known: last for known, last in self._last.items() if now - last < self.seconds}
        return self._last.setdefault(text, now) == now

    def filter(self, record: logging.LogRecord) -> bool:
        cause = type(record.exc_info[1]).__name__ if record.exc_info else ""
        return self.admit(f"{str(record.msg).partition(chr(10))[0]} {cause}")


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep uvicorn and the event loop from logging the same message more than once a minute."""
    once = OncePerMinute()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)
