"""The rating page whole: the command as an operator starts it, and a labeler at a real browser."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import chromium
from helpers.rating_page import PageServer, hostile, pairs
from helpers.rendered import ELEMENTS

from alignment.terminal import clean

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def server(db: Path) -> Iterator[PageServer]:
    server = PageServer(db)
    yield server
    if server.process.poll() is None:
        server.stop(signal.SIGKILL)


def test_the_command_serves_this_machine_alone_and_ends_on_ctrl_c(server, store):
    port = int(server.base.rsplit(":", 1)[1])
    assert server.base == f"http://127.0.0.1:{port}"
    held = socket.create_connection(("127.0.0.1", port))  # a browser keeps its connection: it must not hold up the end
    held.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = held.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 401") and "\r\nserver:" not in answer.lower()
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    start = time.monotonic()
    code, said = server.stop()
    assert (code, said) == (0, "Stopped. Every answer is saved.\n")
    assert time.monotonic() - start < 10


def test_a_port_in_use_is_one_line(server, db):
    port = server.base.rsplit(":", 1)[1]
    command = [sys.executable, str(SCRIPTS / "rate.py"), "--db", str(db), "--web", "--port"]
    environment = os.environ | {"ALIGNMENT_SCRIPT_STARTED": "1"}
    for number in (port, "70000"):
        done = subprocess.run([*command, number], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert re.match(
            rf"rate.py: --port {number}: cannot listen on 127.0.0.1 \(.*\); choose another port", done.stderr
        )


def test_public_says_that_it_needs_tls(db, store):
    server = PageServer(db, "--public", "rate.example.org")
    try:
        said = server.process.stderr.readline()
        assert "https://rate.example.org" in server.said and "TLS" in said and "proxy" in said
        assert "every address of this machine, in plain HTTP" in said and "firewall" in said
    finally:
        server.stop(signal.SIGKILL)


needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium")


@pytest.fixture
def browser() -> Iterator[chromium.Chromium]:
    with chromium.Chromium() as browser:
        browser.look(1280, 800)
        yield browser


RATING = "(document.querySelector('#answer')?.elements.rating.value || '')"
NEXT = f"document.readyState == 'complete' && {RATING} != '{{}}'"


class Keyboard:
    """A labeler at a real browser. They read for a moment before they press a key."""

    def __init__(self, browser: chromium.Chromium) -> None:
        self.browser = browser

    def rating(self) -> str:
        return self.browser.evaluate(RATING)

    def press(self, *keys: str) -> None:
        self.browser.pause(0.6)
        for key in keys:
            self.browser.press(key)

    def answer(self, *keys: str) -> None:
        """Keys, of which the last one answers; waits for the next page."""
        before = self.rating()
        self.press(*keys)
        self.browser.wait(NEXT.format(before))

    def texts(self) -> list[str]:
        return self.browser.evaluate("[...document.querySelectorAll('#answers .text')].map(each => each.textContent)")

    def said(self) -> str:
        return self.browser.wait("document.querySelector('#said').textContent")


@pytest.mark.browser
@needs_chromium
def test_a_labeler_rates_by_keyboard_in_a_real_browser(server, store, browser):
    pairs(store, 2)
    store.add_item([{"role": "user", "content": "rank"}], [{"text": t} for t in ("best", "mid", "end")], kind="rank")
    store.add_item([{"role": "user", "content": "single"}], [{"text": "only"}], kind="single")
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    ada = Keyboard(browser)
    ada.answer("Enter")
    assert browser.evaluate("document.cookie") == "", "the script cannot read the session"
    expected: dict[str, tuple] = {}
    for _ in range(4):
        shown, kind, rating = ada.texts(), browser.evaluate("document.body.className"), ada.rating()
        if kind == "pair":
            ada.press("f", "c")
            browser.type("a <b> note\u202e 2")  # and a digit in a comment is no answer
            browser.press("Escape")
            browser.press("2", repeated=True)  # a key held down from before
            assert ada.rating() == rating
            ada.answer("6")
            assert ada.said() == "Saved: B is clearly better."
            expected[rating] = (shown[1], 2, ("flagged",), "a <b> note\ufffd 2")
        elif kind == "rank":
            place = {text: str(shown.index(text) + 1) for text in shown}
            ada.press("Enter")  # not yet: the page says what is missing
            assert browser.wait("document.querySelector('#todo').textContent == 'Not saved: 3 without a rank'")
            assert ada.rating() == rating
            ada.press(place["end"], "Backspace", place["best"], place["end"], place["end"], "=", place["mid"])
            assert browser.evaluate("document.querySelector('#todo').textContent") == "1 left, best first"
            ada.press(place["end"])
            picked = browser.evaluate("[...document.querySelectorAll('select')].map(each => each.value)")
            assert dict(zip(shown, picked, strict=True)) == {"best": "1", "mid": "1", "end": "2"}
            ada.answer("Enter")
        else:
            ada.answer("5")
    ada.press("u")
    browser.wait(NEXT.format(""))
    undone, kind = ada.rating(), browser.evaluate("document.body.className")
    assert browser.evaluate("location.pathname") == "/" and "Taken back" in ada.said()
    if kind == "pair":
        assert browser.evaluate("document.querySelector('textarea').value") == "a <b> note\u202e 2"
    keys = {"pair": ("2", "2"), "single": ("3", "3"), "rank": ("1", "2", "3", "Enter", "Enter")}[kind]
    ada.answer(*keys)  # pressed twice, counted once
    assert browser.wait("document.body.innerText.includes('All done')")

    ratings = {str(rating.id): rating for rating in store.ratings()}
    assert len(ratings) == 4 and {rating.labeler for rating in ratings.values()} == {"ada"}
    items = {item.id: item for item in store.items()}
    for number, rating in ratings.items():
        assert 0.4 < rating.seconds < 60
        if number == undone:
            continue
        item = items[rating.item]
        if item.kind == "pair":
            better = item.completions[("first", "second").index(rating.choice)].text
            assert (better, rating.strength, rating.flags, rating.comment) == expected[number]
        elif item.kind == "rank":
            assert rating.ranks == (1, 1, 2)
        else:
            assert rating.score == 5
    assert browser.problems == []
    assert all(address.startswith(server.base + "/") for address in browser.requests), browser.requests
    assert server.stop() == (0, "Stopped. Every answer is saved.\n")


@pytest.mark.browser
@needs_chromium
def test_what_is_pressed_before_the_page_was_seen_rates_nothing(server, store, browser):
    """The second half of a double click, or a key typed ahead, comes before or just after the first frame is drawn."""
    pairs(store, 2)
    script = """
    addEventListener('DOMContentLoaded', () => {
      const press = () => {
        document.querySelector('[value="7"]')?.click();
        document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', code: 'Digit1', bubbles: true}));
      };
      press();
      requestAnimationFrame(() => requestAnimationFrame(press));
    });"""
    browser.send("Page.addScriptToEvaluateOnNewDocument", source=script)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    ada = Keyboard(browser)
    ada.answer("Enter")
    for _ in range(2):
        ada.answer("4")
    assert [rating.choice for rating in store.ratings()] == ["tie", "tie"]


@pytest.mark.browser
@needs_chromium
def test_time_out_of_view_is_not_counted(server, store, browser):
    pairs(store, 1)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    ada = Keyboard(browser)
    ada.answer("Enter")
    hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
    hide += "document.dispatchEvent(new Event('visibilitychange'))"
    browser.evaluate(hide.format("true"))
    browser.pause(2)
    browser.evaluate(hide.format("false"))
    ada.answer("4")
    assert 0.5 < store.ratings()[0].seconds < 2


@pytest.mark.browser
@needs_chromium
def test_the_page_works_without_javascript(server, store, browser):
    store.add_item([{"role": "user", "content": "q"}], [{"text": "x"}, {"text": "y"}], kind="rank")
    pairs(store, 1)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    browser.evaluate("document.querySelector('button').click()")
    browser.wait(NEXT.format(""))
    for _ in range(2):
        assert browser.evaluate("[...document.querySelectorAll('.scripted-only')].every(e => e.offsetWidth == 0)")
        before = browser.evaluate(RATING)
        if browser.evaluate("document.body.className") == "rank":
            browser.evaluate("document.querySelectorAll('select').forEach((each, index) => each.value = 2 - index)")
        browser.evaluate("document.querySelector('[name=comment]').value = 'by hand'")
        browser.evaluate("document.querySelector('[value=ranked], [value=\"4\"]').click()")
        browser.wait(NEXT.format(before))
    assert sorted(rating.choice for rating in store.ratings()) == ["ranked", "tie"]
    assert [rating.comment for rating in store.ratings()] == ["by hand"] * 2
    assert browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_layout_and_hostile_text_in_a_real_browser(server, store, browser):
    """Nothing runs, nothing is fetched, nothing sticks out; the prompt and the buttons stay in view."""
    rng = random.Random(1)
    texts = [json.loads(json.dumps(hostile(rng))) for _ in range(400)]
    prompt = [{"role": text, "content": text} for text in texts[:8]]
    store.add_item(prompt, [{"text": "\n".join(texts[:200])}, {"text": "\n".join(texts[200:])}])
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    ada = Keyboard(browser)
    ada.answer("Enter")
    assert sorted(ada.texts()) == sorted([clean("\n".join(texts[:200])), clean("\n".join(texts[200:]))])
    assert browser.evaluate("document.querySelectorAll('#prompt h2 *, .text *').length") == 0
    names = browser.evaluate("[...document.querySelectorAll('.rendered *')].map(each => each.localName)")
    assert names and set(names) <= ELEMENTS
    for look in ((1280, 800, {}), (1280, 800, {"zoom": 2}), (360, 740, {"phone": True}), (1280, 800, {"zoom": 4})):
        browser.look(look[0], look[1], **look[2])
        browser.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        browser.pause(0.2)
        wide, inner, prompt_top, bar_bottom, height = browser.evaluate(
            "[document.documentElement.scrollWidth, innerWidth,"
            " document.querySelector('#prompt').getBoundingClientRect().top,"
            " document.querySelector('#answer').getBoundingClientRect().bottom, innerHeight]"
        )
        assert wide <= inner, look
        assert prompt_top >= 0 and bar_bottom <= height + 1, look
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "checkbox", "textbox", "combobox", "link", "DisclosureTriangle"}
    for node in nodes:
        if not node.get("ignored") and node["role"]["value"] in controls:
            assert node["name"]["value"].strip(), node
    assert browser.problems == []
    assert all(address.startswith(server.base + "/") for address in browser.requests), browser.requests


WIDE = """## Head

A [link](http://127.0.0.1:9/link), ![a picture](http://127.0.0.1:9/picture.png) and <img src="http://127.0.0.1:9/raw.png">.

| a | b | c | d | e | f |
|---|---|---|---|---|---|
| a long cell | another long cell | a third long cell | and one more | unbreakable_{0} | x |

```python
def f():  # {0}
    return "a"
```
""".replace("{0}", "word_" * 60)
SHOWN = "[...document.querySelectorAll('{}')].map(each => each.checkVisibility())"


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scripted", [True, False])
def test_rendered_and_raw_take_turns_in_a_real_browser(server, store, browser, scripted):
    """By key, or by a click where there is no JavaScript; comment, place and time of the item are kept."""
    for number in range(2):
        store.add_item([{"role": "user", "content": f"**{number}**"}], [{"text": WIDE}, {"text": "plain"}])
    browser.send("Emulation.setScriptExecutionDisabled", value=not scripted)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    browser.evaluate("document.querySelector('button').click()") if not scripted else Keyboard(browser).answer("Enter")
    browser.wait(NEXT.format(""))
    ada = Keyboard(browser)
    for number in range(2):
        before = ada.rating()
        rendered, raw, plain = (SHOWN.format(name) for name in (".rendered", ".source", ".text:not(.source)"))
        assert [browser.evaluate(each) for each in (rendered, raw, plain)] == [[True] * 2, [False] * 2, [True]]
        browser.evaluate("document.querySelector('textarea').value = 'kept'")
        for _ in range(number + 1):
            ada.press("r") if scripted else browser.evaluate("document.querySelector('#raw').click()")
        switched = number == 0
        assert [browser.evaluate(each) for each in (rendered, raw)] == [[not switched] * 2, [switched] * 2]
        assert browser.evaluate("document.querySelector('textarea').value") == "kept"
        browser.evaluate("document.querySelector('[value=\"4\"]').click()")
        browser.wait(f"document.readyState == 'complete' && {RATING} != '{before}'")
    assert [(rating.view, rating.comment) for rating in store.ratings()] == [("raw", "kept"), ("rendered", "kept")]
    assert browser.problems == []
    assert all(address.startswith(server.base + "/") for address in browser.requests), browser.requests


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_wide_tables_and_code_scroll_in_their_own_boxes_on_a_phone(server, store, browser, dark):
    store.add_item([{"role": "user", "content": WIDE}], [{"text": WIDE}, {"text": "اشرح **هذا**\n\n- أولا"}])
    browser.look(360, 740, phone=True, dark=dark)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    Keyboard(browser).answer("Enter")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = browser.evaluate(
        "[...document.querySelectorAll('#answers .scroll')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert len(boxes) == 2 and all(inner > outer for inner, outer in boxes)
    right = "getComputedStyle(document.querySelector('article li').parentElement).direction"
    assert browser.evaluate(right) == "rtl"
    row = browser.evaluate("[...document.querySelectorAll('#more > *')].map(each => each.getBoundingClientRect().top)")
    assert max(row) - min(row) < 10, "the row of small buttons has become two"
    assert browser.problems == []
