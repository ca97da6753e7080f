"""What the tests of the rating page share: a labeler without JavaScript, a page taken apart, and hostile text."""

import os
import random
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from starlette.applications import Starlette
from starlette.testclient import TestClient

from alignment.ratings import RatingsStore

BASE = "http://127.0.0.1:8000"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """A page taken apart: its elements with the names of their attributes, its form fields, what its texts say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.fields: dict[str, str] = {}
        self.buttons: list[tuple[str, str]] = []
        self.texts: list[str] = []  # of the boxes for prompts, answers, guidelines and comments
        self.headings: list[str] = []
        self.declarations: list[str] = []
        self.rendered: list[str] = []  # start tags in the boxes for rendered texts; none of them is in `elements`
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._text = ""
        self.feed(html)
        self.close()
        assert self._open == [], "elements left open"
        self.words = " ".join(self._text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        boxed = any(box.get("class") == "rendered" for _, box in self._open)
        if boxed:
            self.rendered.append(self.get_starttag_text() or "")
        elif given.get("class") != "rendered":
            self.elements.append((tag, *(name for name, _ in attrs)))
        if tag == "input" and given.get("type") == "hidden":
            self.fields[given["name"]] = given["value"]
        if tag == "button" and given.get("name"):
            self.buttons.append((given["name"], given["value"]))
        if tag == "div" and "text" in (given.get("class") or "").split():
            self.texts.append("")
        if tag == "h2":
            self.headings.append("")
        if tag not in VOID:
            self._open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self._text += data + " "
        tag, given = self._open[-1] if self._open else ("", {})
        if tag == "div" and "text" in (given.get("class") or "").split():
            self.texts[-1] += data
        if tag == "h2":
            self.headings[-1] += data

    def handle_comment(self, data: str) -> None:
        self.declarations.append(data)

    def handle_pi(self, data: str) -> None:
        self.declarations.append(data)

    def unknown_decl(self, data: str) -> None:
        self.declarations.append(data)


class Labeler:
    """A browser without JavaScript: it keeps a cookie and sends forms as it got them."""

    def __init__(self, app: Starlette, token: str, base: str = BASE) -> None:
        self.token, self.base = token, base
        self.client = TestClient(app, base_url=base, follow_redirects=False, raise_server_exceptions=False)
        answer = self.client.post("/start", data={"token": token}, headers=self.origin())
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text

    def origin(self) -> dict[str, str]:
        return {"Origin": self.base}

    def page(self, path: str = "/") -> Page:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return Page(answer.text)

    def post(self, path: str, fields: dict[str, str], **headers: str):
        return self.client.post(path, data=fields, headers=self.origin() | headers)

    def rate(self, page: Page, answer: str, **more: str) -> Page:
        """Send the page's form with an answer; the page that follows."""
        reply = self.post("/rate", page.fields | {"answer": answer} | more)
        assert reply.status_code == 303, reply.text
        return self.page(reply.headers["location"])


class PageServer:
    """The command as an operator starts it, at any free port; `files` limits its open files."""

    def __init__(self, db: Path, *more: str, files: int | None = None, port: str = "0") -> None:
        command = [sys.executable, str(SCRIPTS / "rate.py"), "--db", str(db), "--web", "--port", port, *more]
        environment = os.environ | {"ALIGNMENT_SCRIPT_STARTED": "1"}
        if files is not None:
            command = ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.said = ""
        while "invite NAME" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.base = re.search(r"https?://[^/\s]+", self.said)[0]

    def stop(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(how)
        rest = self.process.communicate(timeout=20)[1]
        return self.process.returncode, rest


def pairs(store: RatingsStore, count: int, start: int = 0, **more) -> None:
    for i in range(start, start + count):
        texts = [{"text": f"alpha {i}", "model": "sft-secret@v1"}, {"text": f"beta {i}", "model": "ppo-secret@v2"}]
        store.add_item([{"role": "user", "content": f"question {i}"}], texts, **more)


PIECES = [
    "\x1b[2J", "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://evil.example\x1b\\", "\x9b31m", "\x9d52;c;x\x9c",
    "\x90q\x9c", "\u202egnp.exe", "\u2066", "\u2069", "\u200e", "\u061c", "\ud800", "\udfff", "\x00",
    "\x08", "\r", "\r\n", "\n", "\t", "\x7f", "\u2028", "\u2029", "\x85", "\ufeff", "\u200b", "\U000e0041",
    "\ufdd0", "\uffff", "\U0010ffff", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>", "</pre>", "</div>", "</textarea>", "</title><script>", "</style>",
    "</body></html>", "<!--", "-->", "--!>", "<![CDATA[", "]]>", "<?php", "<!DOCTYPE x>",
    "javascript:alert(1)", "data:text/html,<script>1</script>", '" onmouseover="alert(1)',
    "' autofocus onfocus='x", "` onload=`", "/>", "<a href=javascript:x>", "<form action=//evil.example>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content=0>",
    "<link rel=stylesheet href=//evil.example>", "<iframe srcdoc='<b>'>", "<style>*{display:none}</style>",
    "&lt;script&gt;", "&#60;b&#62;", "&#x3c;", "&amp;", "&", "&notin", "&#0;", "&#xD800;", "{{ 7 * 7 }}",
    "{% raw %}", "{# no #}", "${7*7}", "[bold]b[/nope]", "[link=http://e.example]l[/link]", ":smile:", "<",
    ">", '"', "'", "=", "/", "\\", "<x", "<\x00script>", "＜script＞", "<ScRiPt\t>", "%3Cscript%3E",
    "+ADw-script+AD4-", "مرحبا", "नमस्ते", "👩\u200d👩\u200d👧", "e\u0301", "日本語", "x" * 300,
]  # fmt: skip


def hostile(rng: random.Random) -> str:
    parts = [
        rng.choice(PIECES) if rng.random() < 0.85 else chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 5))
    ]
    return "".join(parts) + "."  # something to see, or the page says that there is nothing
