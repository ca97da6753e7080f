"""Questions beside the choice on the rating page: without JavaScript, and one key each in a real browser."""

import re
import signal
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from helpers import chromium
from helpers.rating_page import Labeler, Page, PageServer

from alignment.ratings import Gold
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


def test_answers_are_rewritten_and_commented_without_javascript(app, store):
    """An answer that comes back as it was shown was not rewritten, whatever a form does to its ends of lines."""
    texts = ["\nfirst\r\n\tline", "a\x1b]52;c;x\x07 </textarea><b>"]
    store.add_item([{"role": "user", "content": "q"}], [{"text": text} for text in texts])
    store.settings.ask(Questionnaire(rewrite=True, comments=True))
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    html = ada.client.get("/").text
    assert "<b>" not in html and "\x1b" not in html
    areas = re.findall(r'<textarea name="(\w+)"[^>]*>\n([^<]*)</textarea>', html)
    assert [name for name, _ in areas] == ["rewrites0", "comments0", "rewrites1", "comments1"]
    sent = {name: unescape(text).replace("\n", "\r\n") for name, text in areas}
    order = [0, 1] if "first" in sent["rewrites0"] else [1, 0]
    done = ada.rate(page, "1", **sent)
    assert store.ratings()[0].answers is None
    back = ada.post("/undo", done.fields).text
    new = sent | {f"rewrites{order.index(0)}": "\tbetter\r\n<i>\r\n", f"comments{order.index(1)}": "why?"}
    ada.rate(Page(back), "1", **new)
    assert store.ratings()[0].answers == {"rewrites": ["\tbetter\n<i>\n", None], "comments": [None, "why?"]}
    again = ada.post("/undo", done.fields).text
    assert "\n\tbetter\n&lt;i&gt;\n</textarea>" in again and "\nwhy?</textarea>" in again
    assert again.count('<details class="writing" open>') == 2


def test_passages_are_marked_by_their_words_without_javascript(app, store):
    store.add_item([{"role": "user", "content": "q"}], [{"text": "It was\r\n<1969>, not 1970."}], kind="single")
    store.settings.ask(Questionnaire(spans=("wrong <fact>", "off topic"), rewrite=True))
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    assert "1 wrong <fact> 2 off topic" in page.words
    wrong = ada.post("/rate", page.fields | {"answer": "3", "spans0": "1 was <1969>,\r\n2 1971\r\n3 It\r\n\r\n"})
    assert wrong.status_code == 422 and store.ratings() == []
    assert "no such kind: 2 1971; 3 It." in Page(wrong.text).words
    assert "\n1 was &lt;1969&gt;,\n2 1971\n3 It</textarea>" in wrong.text  # all that was typed is still there
    ada.rate(Page(wrong.text), "3", spans0="2 not\r\n 1 was  <1969>,")
    assert store.ratings()[0].answers == {"spans": [[[3, 15, "wrong <fact>"], [16, 19, "off topic"]]]}
    back = ada.post("/undo", page.fields)
    assert "\n1 was &lt;1969&gt;,\n2 not</textarea>" in back.text


def test_the_calibration_result_compares_each_question(app, store):
    gold = Gold("first", None, None, "Why.", {"helps": -2, "true": [7, 2]}, ("LEFT out",))
    store.add_item([{"role": "user", "content": "q"}], [{"text": "alpha"}, {"text": "beta"}], gold=gold)
    store.settings.ask(ASKED.model_copy(update={"tags": {"w": "LEFT out", "l": "too long"}}))
    store.settings.calibration = 1
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    alpha_first = page.texts[-2] == "alpha"
    better, worse = "AB" if alpha_first else "BA"
    given = {"question0": "7" if alpha_first else "1", "question1": "6", "question2": "6", "tag-w": "yes"}
    words = ada.rate(page, "1" if alpha_first else "7", **given).words
    assert "Not what was expected" in words and "Why." in words
    assert f"You said: {better} is much better . Expected: {better} is better ." in words
    assert f"helps {worse} is much better {worse} is better ✓ yes" in words
    expected = "A 7, B 2" if alpha_first else "A 2, B 7"
    assert f"true A 6, B 6 of 7 {expected} of 7 ✗ no" in words
    assert "the reasons LEFT out LEFT out ✓ yes" in words  # the organiser's words stay


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
    controls = {"button", "checkbox", "radio", "textbox", "DisclosureTriangle"}
    for node in browser.send("Accessibility.getFullAXTree")["nodes"]:
        if not node.get("ignored") and node["role"]["value"] in controls:
            assert node["name"]["value"].strip(), node
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
        browser.evaluate("document.querySelector('fieldset.question:not([hidden]) input').click()")
        browser.wait(f"{ASKS} == {asks!r}")
        wide, inner, steps = browser.evaluate(
            "[document.documentElement.scrollWidth, innerWidth,"
            " [...document.querySelectorAll('#answer .step')].filter(each => each.offsetWidth > 20).length]"
        )
        assert wide <= inner and steps == 7  # those of the question that is asked


@pytest.mark.browser
@needs_chromium
def test_keys_open_the_texts_one_after_another(server, store, browser):
    """A rewrite that was begun survives a reload; Escape leaves it, and the same key goes to the next answer's."""
    add_pairs(store, 1)
    store.settings.ask(Questionnaire(rewrite=True, comments=True))
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    for key in ("Enter", "e"):
        browser.pause(0.6)
        browser.press(key)
        browser.wait(NEXT.format(""))
    browser.wait("document.activeElement.name == 'rewrites0'")
    browser.evaluate("document.activeElement.select()")
    browser.type("newer 1 u")
    browser.send("Page.reload")
    browser.wait(
        "document.querySelector('[name=rewrites0]')?.value == 'newer 1 u' && document.readyState == 'complete'"
    )
    assert browser.evaluate("document.querySelector('[name=rewrites0]').closest('details').open")
    browser.pause(0.6)
    for name in ("rewrites0", "rewrites1", "rewrites0"):
        browser.press("e")
        browser.wait(f"document.activeElement.name == '{name}'")
        browser.press("Escape")
    browser.press("m")
    browser.wait("document.activeElement.name == 'comments0'")
    browser.type("hm")
    browser.press("Escape")
    browser.press("1")
    browser.wait("document.body.innerText.includes('All done')")
    answers = store.ratings()[0].answers
    assert sorted(map(str, answers["rewrites"])) == ["None", "newer 1 u"]
    assert answers["rewrites"].index("newer 1 u") == answers["comments"].index("hm") and browser.problems == []


@pytest.mark.browser
@needs_chromium
def test_what_is_selected_by_mouse_becomes_a_mark(server, store, browser):
    store.add_item([{"role": "user", "content": "q"}], [{"text": "It was\n1969, not 1970."}], kind="single")
    store.settings.ask(Questionnaire(spans=("wrong fact", "off topic")))
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    for key in ("Enter", "x"):
        browser.pause(0.6)
        browser.press(key)
        browser.wait(NEXT.format(""))
    browser.wait("document.activeElement.name == 'spans0'")
    browser.evaluate(
        "getSelection().setBaseAndExtent(document.querySelector('article .text').firstChild, 3,"
        " document.querySelector('article .text').firstChild, 11)"
    )
    browser.evaluate("document.querySelector('[data-mark=\"2\"]').click()")
    assert browser.evaluate("document.querySelector('[name=spans0]').value") == "2 was 1969\n"
    browser.press("Escape")
    browser.press("3")
    browser.wait("document.body.innerText.includes('All done')")
    assert store.ratings()[0].answers == {"spans": [[[3, 11, "off topic"]]]} and browser.problems == []


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


def test_a_form_that_comes_back_shows_the_view_that_it_was_sent_from(app, store):
    store.add_item([{"role": "user", "content": "q"}], [{"text": "**a** 1969"}, {"text": "b"}])
    store.settings.ask(Questionnaire(spans=("wrong fact",)))
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    for view in ("rendered", "raw"):
        wrong = ada.post("/rate", page.fields | {"answer": "3", "spans0": "1 nowhere", "view": view})
        assert wrong.status_code == 422
        assert ('id="raw" data-key="r" checked' in wrong.text) == (view == "raw")


@pytest.mark.browser
@needs_chromium
def test_passages_are_marked_in_the_raw_text(server, store, browser):
    """Of `in **1969**` a reader sees no stars, and the words would not be found."""
    store.add_item([{"role": "user", "content": "q"}], [{"text": "in **1969**"}, {"text": "in **1969**"}])
    store.settings.ask(Questionnaire(spans=("wrong fact",)))
    browser.open(f"{server.base}/l/{store.people.invite('ada')}")
    browser.pause(0.6)
    browser.press("Enter")
    browser.wait("document.querySelector('#raw') !== null")
    assert browser.evaluate("document.querySelector('.source').checkVisibility()") is False
    browser.pause(0.6)
    browser.press("x")
    browser.wait("document.querySelector('.source').checkVisibility()")
    browser.pause(0.2)
    browser.type("1 in **1969**")
    browser.evaluate("document.querySelector('[value=\"3\"]').click()")
    browser.wait("document.body.innerText.includes('All done')")
    assert store.ratings()[0].view == "raw"
    marked = store.ratings()[0].answers["spans"]
    assert [spans for spans in marked if spans] == [[[0, 11, "wrong fact"]]]
    assert browser.problems == []
