"""A real server on 127.0.0.1 that speaks OpenAI's chat completions, says what a test tells it, and can fail."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and a body: text as it is, anything else as JSON."""


def completion(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (100, 10)) -> Answer:
    """A reply as a server gives it."""
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, body


def passage(prompt: str) -> str:
    """The passage that a prompt of the suite holds, its headings left out."""
    found = re.search(r"^--- (\w+) (?:begin|passage)\n.*?\n\n(.*?)\n--- \1", prompt, re.DOTALL | re.MULTILINE)
    assert found, prompt
    return found[2]


class ChatServer:
    """Answers each request with `answer(prompt, how often this prompt was seen before)`; keeps what it was sent."""

    def __init__(self, answer: Callable[[str, int], Answer]) -> None:
        self.prompts: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                with server._lock:
                    seen = server.prompts.count(prompt)
                    server.prompts.append(prompt)
                    server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                status, headers, content = answer(prompt, seen)
                raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
