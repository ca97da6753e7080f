"""Questions beside the choice on the rating page: without JavaScript, and one key each in a real browser."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import chromium
from helpers.rating_page import Labeler, Page, PageServer

from alignment.ratings.questionnaire import Attribute, Questionnaire

ASKED = Questionnaire(
    attributes=(
        Attribute(name="helps", ask="Which <b>answer</b> helps more?", scale="pair"),
        Attribute(name="true", ask="Is it true?"),
    ),
    overall="Which would you rather get?",
    tags={"w": "wrong facts", "l": "too <i>long"},
)


def add_pairs(store, count: int) -> None:
    for i in range(count):
        store.add_item([{"role": "user", "content": f"question {i}"}], [{"text": "alpha"}, {"text": "beta"}])


def shown(store) -> dict:
    """The last answers as they were on the page: answer A first."""
    rating = store.last_rating("ada")
    attributes = dict(rating.answers["attributes"])
    if rating.order_shown == (1, 0):
        attributes = {"helps": -attributes["helps"], "true": attributes["true"][::-1]}
    return attributes | {"tags": rating.answers.get("tags", [])}


def test_the_form_asks_everything_at_once(app, store):
    add_pairs(store, 2)
    store.settings.ask(ASKED)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    for words in ("1 of 4: Which <b>answer</b> helps more?", "2 of 4, A: Is it true?", "3 of 4, B: Is it true?"):
        assert words in page.words
    assert "4 of 4: Which would you rather get?" in page.words and "too <i>long" in page.words
    given = {"question0": "2", "question1": "6", "question2": "1", "tag-l": "yes"}
    for missing in ("question0", "question2"):
        reply = ada.post("/rate", page.fields | {"answer": "3"} | {k: v for k, v in given.items() if k != missing})
        assert reply.status_code == 422 and "every question an answer" in reply.text and store.ratings() == []
    assert ada.post("/rate", page.fields | given | {"answer": "3", "question1": "8"}).status_code == 422
    for forged in ("2", "x", "-1", "9" * 30):
        assert ada.post("/rate", page.fields | given | {"answer": "3", "questions": forged}).status_code == 422
    done = ada.rate(page, "3", **given)
    assert "Saved: A is slightly better." in done.words
    assert shown(store) == {"helps": 2, "true": [6, 1], "tags": ["too <i>long"]}
    again = ada.post("/undo", done.fields)
    checked = r'name="(?:question|tag-)\w" value="\w+" data-key="(\w)"\s*(?:required)? checked'
    assert re.findall(checked, again.text) == ["2", "6", "1", "l"]
    skipped = ada.rate(Page(again.text), "s")
    assert "Skipped." in skipped.words and store.ratings(skips=True)[0].answers is None


def test_a_form_keeps_the_questions_that_it_was_made_with(app, store):
    """The organiser changes questions and guideline while somebody looks at an item."""
    add_pairs(store, 2)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    store.settings.ask(ASKED)
    store.settings.guideline = "Be kind."
    ada.rate(page, "3")
    rating = store.last_rating("ada")
    assert (rating.questions, rating.guideline, rating.answers) == (None, None, None)
    page = ada.page()
    store.settings.ask(Questionnaire())
    ada.rate(page, "3", question0="1", question1="1", question2="1")
    rating = store.last_rating("ada")
    assert (rating.questions, rating.guideline) == (1, 1) and rating.answers["attributes"]["true"] == [1, 1]


def test_a_plain_pair_has_no_new_field_to_fill(app, store):
    add_pairs(store, 1)
    page = Labeler(app, store.people.invite("ada")).page()
    assert {element[0] for element in page.elements} & {"fieldset", "legend"} == set()
    assert (page.fields["questions"], page.fields["guideline"]) == ("", "")


# --- in a browser ----------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium")


@pytest.fixture
def server(db: Path) -> Iterator[PageServer]:
    server = PageServer(db)
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def browser() -> Iterator[chromium.Chromium]:
    with chromium.Chromium() as browser:
        browser.look(1280, 800)
        yield browser


RATING = "(document.querySelector('#answer')?.elements.rating.value || '')"
NEXT = f"document.readyState == 'complete' && {RATING} != '{{}}'"
ASKS = "document.querySelector('fieldset.question:not([hidden]) legend, #choices:not([hidden]) .overall').textContent"


@pytest.mark.browser
@needs_chromium
def test_one_key_each_in_a_real_browser(server, store, browser):
    add_pairs(store, 2)
    store.settings.ask(ASKED)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")

    def press(key: str, asks: str = "") -> None:
        browser.pause(0.6)
        browser.press(key)
        if asks:
            browser.wait(f"{ASKS} == {asks!r}")

    press("Enter")
    browser.wait(NEXT.format(""))
    first = browser.evaluate(RATING)
    assert browser.evaluate("document.querySelectorAll('fieldset.question:not([hidden])').length") == 1
    press("b")  # no answer to an attribute
    press("2", "2 of 4, A: Is it true?")
    press("w")
    press("7", "3 of 4, B: Is it true?")
    press("u", "2 of 4, A: Is it true?")
    browser.pause(0.6)
    twice = (
        "for (const key of ['6', '1']) document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    )
    browser.evaluate(twice)  # the second one is too soon to be meant for what came with the first
    assert browser.wait(ASKS) == "3 of 4, B: Is it true?"
    press("1", "4 of 4: Which would you rather get?")
    press("l")
    press("w")
    assert store.ratings() == []
    press("3")
    browser.wait(NEXT.format(first))
    assert shown(store) == {"helps": 2, "true": [6, 1], "tags": ["too <i>long"]}
    press("u")
    browser.wait(f"{RATING} == '{first}'")
    assert browser.evaluate(ASKS) == "4 of 4: Which would you rather get?"
    press("u", "3 of 4, B: Is it true?")
    press("4", "4 of 4: Which would you rather get?")
    press("5")
    browser.wait(NEXT.format(first))
    assert shown(store) == {"helps": 2, "true": [6, 4], "tags": ["too <i>long"]}
    assert store.ratings()[0].strength == 1 and browser.problems == []
    # By mouse, and on a phone: nothing sticks out.
    browser.look(360, 740, phone=True)
    browser.pause(0.6)
    for asks in ("2 of 4, A: Is it true?", "3 of 4, B: Is it true?", "4 of 4: Which would you rather get?"):
        wide, inner = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner
        browser.evaluate("document.querySelector('fieldset.question:not([hidden]) input').click()")
        browser.wait(f"{ASKS} == {asks!r}")


@pytest.mark.browser
@needs_chromium
def test_the_keyboard_alone_without_javascript(server, store, browser):
    """Tab and arrows of the browser itself; Enter in a check box answers nothing, and keeps what was given."""
    add_pairs(store, 1)
    store.settings.ask(ASKED)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    browser.evaluate("document.querySelector('button').click()")
    browser.wait(NEXT.format(""))
    rating = browser.evaluate(RATING)
    browser.evaluate("document.querySelector('[name=question0]').focus()")
    for times in (1, 5, 7):  # from 1 on, and round
        for _ in range(times):
            browser.press("ArrowRight")
        browser.press("Tab")
    checked = "[...document.querySelectorAll('.question :checked')].map(each => each.value)"
    assert browser.evaluate(checked) == ["2", "6", "1"]
    browser.evaluate("document.querySelector('[name=flag]').click() || document.querySelector('[name=flag]').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('#said').textContent.startsWith('Not saved yet')")
    assert browser.evaluate(RATING) == rating and store.ratings() == []
    assert browser.evaluate(checked) == ["2", "6", "1"] and browser.evaluate(
        "document.querySelector('[name=flag]').checked"
    )
    browser.evaluate("document.querySelector('#choices [value=\"3\"]').focus()")
    browser.press("Enter")
    browser.wait("document.body.innerText.includes('All done')")
    assert shown(store) == {"helps": 2, "true": [6, 1], "tags": []} and store.ratings()[0].flags == ("flagged",)


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scripted", [True, False])
def test_enter_in_the_check_box_of_a_plain_pair_rates_nothing(server, store, browser, scripted):
    """Enter in a check box presses the first button of a form, which was: A is much better."""
    add_pairs(store, 1)
    browser.send("Emulation.setScriptExecutionDisabled", value=not scripted)
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    browser.pause(0.6)
    browser.evaluate("document.querySelector('button').click()")
    browser.wait(NEXT.format(""))
    browser.pause(0.6)
    browser.evaluate("document.querySelector('[name=flag]').focus()")
    browser.press("Enter")
    browser.pause(0.6)
    assert store.ratings() == []
    browser.evaluate("document.querySelector('#choices [value=\"4\"]').click()")
    browser.wait("document.body.innerText.includes('All done')")
    assert [rating.choice for rating in store.ratings()] == ["tie"]
