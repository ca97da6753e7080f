"""Real stages with a real W&B under which something breaks, each in a fork of a process that has all imported.

Reads a JSON object a line: `stage`, `arguments`, `folder`, `fault` (a key of FAULTS or SERVERS, or None) and
`at` (the line of the journal's metrics before which one of FAULTS strikes); answers with the exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECONDS = 3.0
"""In place of what a run would wait for W&B, which takes that long in some of these."""


def core() -> Any:
    """W&B's own process."""
    return sys.modules["wandb"].sdk.wandb_setup.singleton()._connection._proc._process


def full_disk() -> None:
    """What W&B's process writes fails from here on, as on a disk that is full."""
    resource.prlimit(core().pid, resource.RLIMIT_FSIZE, (0, 0))


def killed(after: float) -> None:
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[], None]] = {
    "core killed": lambda: core().kill(),
    "core stopped": lambda: core().send_signal(signal.SIGSTOP),
    "file too large": full_disk,
    "killed": lambda: killed(0),
    "killed later": lambda: killed(4),  # W&B writes what it has every 2 s
}


class _Refuses(BaseHTTPRequestHandler):
    code = 500

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def serve(code: int | None) -> str:
    """The address of a server that answers with a code, or (None) never; 0: there is none."""
    if code == 0:
        return "http://127.0.0.1:9"
    if code is None:
        import socket

        silent = socket.create_server(("127.0.0.1", 0), backlog=16)
        globals()["_held"] = silent  # open as long as this process lives
        return f"http://127.0.0.1:{silent.getsockname()[1]}"
    handler = type("Handler", (_Refuses,), {"code": code})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


SERVERS: dict[str, int | None] = {"server answers 500": 500, "bad key": 401, "server is silent": None, "dead server": 0}


def break_it(fault: str | None, at: int) -> None:
    """Have the fault strike when the journal comes to its line number `at`."""
    from alignment.runs.journal import Journal
    from alignment.tracking import wandb_sink

    wandb_sink.START_SECONDS = SECONDS if fault in SERVERS else 60.0
    wandb_sink.FINISH_SECONDS = SECONDS if fault == "core stopped" else 60.0
    if fault in SERVERS:
        os.environ["WANDB_BASE_URL"] = serve(SERVERS[fault])
    if fault not in FAULTS:
        return
    log, lines = Journal.log, 0

    def counting(journal: Journal, step: int, metrics: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == at:
            assert journal._sink is not None and journal._sink.is_open
            FAULTS[fault]()
        log(journal, step, metrics)

    Journal.log = counting  # type: ignore[method-assign]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in ("sft.train", "reward.train", "ppo.train", "trl"):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            os.chdir(request["folder"])
            log = os.open(f"{request['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # Made when W&B was imported, and removed by the first fork that ended.
            os.makedirs(sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.name, exist_ok=True)
            break_it(request["fault"], request["at"])
            sys.argv = [request["stage"], *request["arguments"]]
            with contextlib.suppress(SystemExit):
                code = importlib.import_module(f"{request['stage']}.__main__").main()
                sys.exit(code)  # with W&B's own hooks: they are a part of what may hang
            import atexit

            atexit._run_exitfuncs()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()
