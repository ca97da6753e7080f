"""The report in a real browser with the network off: nothing runs but its own script, nothing is asked for."""

from __future__ import annotations

import json
import math

import pytest
from chromium import PROGRAM, Chromium
from journals import make_run

from alignment.tracking.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install chromium")]
NAMES = ("rollout/score", "rollout/kl", "rollout/length", "policy/entropy", "policy/loss", "value/loss")
RAN = "document.title='ran'"
HOSTILE = [
    f"</script><script>{RAN}</script>", f'<img src=x onerror="{RAN}">', f"<svg onload={RAN}>", f"'\"><b onclick={RAN}>",
    f"<!--<script>{RAN}//--></script>", "<a href=javascript:1>x</a>", "\x1b]8;;http://evil.example\x07x",
    "\u202egnp.exe",
    "<iframe src=http://evil.example></iframe>", "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "{{ 7 * 7 }}", "</style><style>body{display:none}</style>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tab():
    with Chromium() as page:
        page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0,
                  uploadThroughput=0)  # fmt: skip
        yield page


def hostile_run(path):
    samples = [
        {"id": number, "prompt": [{"role": "user", "content": text}], "response": text + text, "score": float(number)}
        for number, text in enumerate(HOSTILE)
    ]
    finding = {"step": 1, "name": HOSTILE[0], "level": "error", "text": HOSTILE[1]}
    rows = {n: {"rollout/score": n / 10, "rollout/kl": float(n), "eval/score": n / 10, "eval/kl": float(n)}
            for n in range(12)}  # fmt: skip
    make_run(path, rows=rows, samples=samples, events=[("finding", finding)], data={"train": HOSTILE[3]})
    return write_report([path])[0]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_hostile_text_is_inert_and_nothing_is_asked_for(tab, tmp_path, width, dark):
    page = hostile_run(tmp_path / "run")
    tab.problems.clear()
    tab.requests.clear()
    tab.look(width, 900, phone=width < 500, dark=dark)
    tab.open(page.as_uri())
    tab.pause(0.5)
    assert tab.problems == []
    assert [address for address in tab.requests if address != page.as_uri()] == []
    assert tab.evaluate("document.title") != "ran"
    assert tab.evaluate("document.querySelectorAll('img, iframe, a[href^=javascript]').length") == 0
    assert tab.evaluate("document.body.scrollWidth <= innerWidth")
    assert tab.evaluate("document.querySelectorAll('svg').length") > 0
    text = tab.evaluate("document.documentElement.textContent")
    assert "{{ 7 * 7 }}" in text  # said, and not run
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.slow
def test_a_hundred_thousand_steps_open(tab, tmp_path):
    """In under 3 s on a machine of its own; the time is printed, and only ten times that fails."""
    path = tmp_path / "long"
    make_run(path, rows={1: {"rollout/score": 0.0}})
    with (path / "metrics.jsonl").open("a") as file:
        for step in range(2, 100_001):
            row = {name: math.sin(step / 500 + n) for n, name in enumerate(NAMES)}
            file.write(json.dumps({"step": step, "time": float(step), **row}) + "\n")
    page, _ = write_report([path])
    tab.look(1280, 900)
    tab.open(page.as_uri())
    timing = "performance.getEntriesByType('navigation')[0]"
    seconds = tab.wait(f"{timing}.loadEventEnd && {timing}.loadEventEnd / 1000")
    print(f"{page.stat().st_size / 2**20:.2f} MiB, open after {seconds:.2f} s")
    assert seconds < 30
    assert page.stat().st_size < 5 * 2**20
