"""A comparison's page in a real browser with the network off: nothing runs, nothing is asked for, the filters work."""

import pytest
from helpers.chromium import PROGRAM, Chromium
from helpers.compared import made_comparison
from helpers.full_runs import HOSTILE

from alignment.evaluation.page import write_page

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="no Chromium; install chromium")]
SHOWN = "[...document.querySelectorAll('.bout')].filter(each => each.offsetHeight).length"


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        chromium.send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One page whose every text means harm, and a plain one with its judgments."""
    harm, plain = tmp_path_factory.mktemp("harm"), tmp_path_factory.mktemp("plain")
    texts = " ".join(HOSTILE)
    result, found, _ = made_comparison(
        harm, ("a" + HOSTILE[2], "b" + HOSTILE[4], "c"), 12, text=lambda own: own + texts
    )
    made = made_comparison(plain)
    return {"harm": write_page(harm, result, found), "plain": write_page(plain, *made[:2]), "said": made[2]}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_no_request_no_error_nobodys_text_runs_and_nothing_is_too_wide(browser, pages, width, dark):
    browser.look(width, 900, phone=width < 500, dark=dark)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(pages["harm"].as_uri())
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.evaluate("document.querySelectorAll('*').forEach(each => each.dispatchEvent(new Event('mouseover')))")
    browser.pause(0.2)
    assert browser.problems == []
    assert browser.requests == [pages["harm"].as_uri()]
    assert browser.evaluate("document.title").startswith("Who won: a")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, link, base').length") == 0


def test_a_reader_filters_the_answers_without_any_script(browser, pages):
    """The inputs are clicked through the mouse, while the page may run no script."""
    browser.look(1280, 900)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["plain"].as_uri())
        assert browser.evaluate(SHOWN) == 40
        reward = [each for each in pages["said"] if each.judge == "reward=rm@v1"]
        click(browser, "judge-1")
        assert browser.evaluate(SHOWN) == len(reward)
        click(browser, "outcome-b")
        lost = {each.prompt for each in reward if each.outcome == 0.0}
        assert browser.evaluate(SHOWN) == len(lost) > 0
        click(browser, "judge-0")
        votes = {}
        for each in pages["said"]:
            if each.labeler:
                votes.setdefault(each.prompt, []).append(each.outcome)
        assert browser.evaluate(SHOWN) == sum(sum(given) < len(given) / 2 for given in votes.values())
        click(browser, "slice-0-0")
        topics = browser.evaluate(
            "[...document.querySelectorAll('.bout')].filter(each => each.offsetHeight)"
            ".map(each => each.querySelector('.words > div:last-child dd').textContent)"
        )
        assert set(topics) == {"a"}
        click(browser, None)
        assert browser.evaluate(SHOWN) == 40
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def click(browser, name):
    """Click a choice, or the button that takes all choices back."""
    target = f"document.getElementById('{name}')" if name else "document.querySelector('.filters button')"
    browser.evaluate(f"{target}.scrollIntoView({{block: 'center'}})")
    x, y = browser.evaluate(f"(b => [b.left + b.width / 2, b.top + b.height / 2])({target}.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
