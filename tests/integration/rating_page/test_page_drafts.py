"""What was given to an open item of the page is kept: without JavaScript, and by keys alone after kills."""

import re
import signal
from collections.abc import Iterator

import pytest
from helpers import chromium
from helpers.rating_page import Labeler, Page, PageServer

from alignment.labeling.session import Sitting
from alignment.ratings.questionnaire import Attribute, Questionnaire

ALL = Questionnaire(
    attributes=(
        Attribute(name="helps", ask="Which answer helps more?", scale="pair"),
        Attribute(name="true", ask="Is it true?"),
        Attribute(name="kind", ask="Is it kind?"),
    ),
    overall="Which would you rather get?",
    tags={"w": "wrong facts", "l": "too long"},
    rewrite=True,
    comments=True,
    spans=("wrong fact", "off topic"),
)
CHECKED = r'name="([\w-]+)" value="\w+" data-key="\w"\s*(?:required)? checked'


def add_pairs(store, count: int) -> None:
    for i in range(count):
        store.add_item([{"role": "user", "content": f"q {i}"}], [{"text": "**alpha** 1"}, {"text": "**alpha** 2"}])


def test_a_form_that_came_back_incomplete_is_kept(app, store):
    add_pairs(store, 1)
    store.settings.ask(ALL)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    given = {"question0": "2", "question1": "6", "tag-l": "yes", "flag": "yes", "comment": "hm \x1b]52;c;x\x07"}
    given |= {"spans0": "1 alpha\n2 nowhere", "comments1": "so so"}
    assert ada.post("/rate", page.fields | given | {"answer": "3"}).status_code == 422
    again = ada.client.get("/").text  # as after a crash of the browser
    assert re.findall(CHECKED, again) == ["question0", "question1", "tag-l", "flag"]
    assert ">hm ␛]52;c;x␇</textarea>" in again and "\nso so</textarea>" in again
    assert "\n1 alpha\n2 nowhere</textarea>" in again  # a line that names no passage yet, too
    assert "still here" in again and store.ratings() == []
    assert Sitting(store, "ada").draft.comment == "hm ␛]52;c;x␇"  # nor does it bring controls to the terminal


def test_a_draft_is_nobody_elses_and_of_no_other_item(app, store):
    add_pairs(store, 2)
    store.settings.ask(ALL)
    ada, bob = (Labeler(app, store.people.invite(name)) for name in ("ada", "bob"))
    page = ada.page()
    given = page.fields | {"question0": "2"}
    assert ada.post("/draft", given).status_code == 204
    assert ada.client.post("/draft", data=given, headers={"Origin": "http://evil.example"}).status_code == 403
    assert ada.post("/draft", given | {"csrf": "0-0"}).status_code == 403
    assert ada.client.get("/draft").status_code == 405
    theirs = bob.page()
    assert bob.post("/draft", given | {"csrf": theirs.fields["csrf"], "question1": "7"}).status_code == 204
    for rating in ("0", "x", "9" * 30, "99"):
        assert ada.post("/draft", given | {"rating": rating}).status_code == 204
    assert re.findall(CHECKED, ada.client.get("/").text) == ["question0"]
    assert re.findall(CHECKED, bob.client.get("/").text) == []
    skipped = ada.rate(page, "s")
    assert ada.post("/draft", given).status_code == 204  # one that was on its way when the item was saved
    back = ada.post("/undo", skipped.fields)
    assert re.findall(CHECKED, back.text) == [] and Page(back.text).fields["rating"] == page.fields["rating"]


def test_ranks_are_kept_as_they_were_chosen(app, store):
    store.add_item([{"role": "user", "content": "r"}], [{"text": t} for t in "abc"], kind="rank")
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    reply = ada.post("/rate", page.fields | {"answer": "ranked", "rank1": "3", "rank2": "", "rank3": "1"})
    assert reply.status_code == 422
    for html in (reply.text, ada.client.get("/").text):
        assert re.findall(r"<option selected>(\d)</option>|<option value=\"\">", html) == ["", "3", "", "", "1"]


# --- in a browser ----------------------------------------------------------------------------------------------------

RATING = "(document.querySelector('#answer')?.elements.rating.value || '')"
ASKS = "document.querySelector('fieldset.question:not([hidden]) legend, #choices:not([hidden]) .overall')?.textContent"


@pytest.fixture
def browsers() -> Iterator[list[chromium.Chromium]]:
    opened: list[chromium.Chromium] = []
    yield opened
    for browser in opened:
        browser.__exit__()


@pytest.mark.browser
@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium")
def test_every_kind_of_question_by_keys_alone_after_kills_of_server_and_browser(db, store, browsers):
    add_pairs(store, 2)
    store.settings.ask(ALL)
    servers = [PageServer(db)]
    link = f"{servers[0].base}/l/{store.people.invite('ada')}"

    def start() -> chromium.Chromium:
        """A browser that knows nothing of the one before."""
        if browsers:
            browsers.pop().__exit__()  # by SIGKILL
        browsers.append(chromium.Chromium())
        browsers[-1].look(1280, 800)
        browsers[-1].open(link)
        browsers[-1].pause(0.6)
        browsers[-1].press("Enter")
        browsers[-1].wait(f"document.readyState == 'complete' && {RATING}")
        return browsers[-1]

    def press(key: str, then: str) -> None:
        browser.pause(0.6)
        browser.press(key)
        browser.wait(then)

    def asks(words: str) -> str:
        return f"{ASKS} == {words!r}"

    def kept(found) -> None:
        """Wait until that is on the server's disk."""
        for _ in range(200):
            claimed = store.claim("ada")
            assert claimed is not None
            if found(store.drafts.of(claimed)):
                return
            browser.pause(0.05)
        raise AssertionError(store.drafts.of(claimed))

    try:
        browser = start()
        press("r", "document.querySelector('#raw').checked")
        press("2", asks("2 of 6, A: Is it true?"))
        press("w", "document.querySelector('[name=tag-w]').checked")
        press("6", asks("3 of 6, B: Is it true?"))
        press("1", asks("4 of 6, A: Is it kind?"))
        kept(lambda draft: draft["answers"]["attributes"] == {"helps": 2, "true": [6, 1]})
        servers[-1].stop(signal.SIGKILL)
        servers.append(PageServer(db, port=servers[0].base.rsplit(":", 1)[1]))
        browser.send("Page.reload")
        browser.wait(asks("4 of 6, A: Is it kind?"))
        browser.wait("document.querySelector('#said').textContent.endsWith('is still here.')")
        press("u", asks("3 of 6, B: Is it true?"))
        press("3", asks("4 of 6, A: Is it kind?"))
        press("x", "document.activeElement.name == 'spans0'")
        browser.type("2 **alpha**")
        browser.press("Escape")
        press("e", "document.activeElement.name == 'rewrites0'")
        browser.evaluate("document.activeElement.select()")
        browser.type("new\nalpha")
        browser.press("Escape")
        press("m", "document.activeElement.name == 'comments0'")
        browser.press("Escape")
        press("m", "document.activeElement.name == 'comments1'")
        browser.type("so so")
        kept(lambda draft: draft["answers"].get("comments") == [None, "so so"])
        browser = start()
        browser.wait(asks("4 of 6, A: Is it kind?"))
        texts = (
            "['spans0', 'rewrites0', 'comments1'].map(name => document.querySelector(`[name=${name}]`).value.trim())"
        )
        assert browser.evaluate(texts) == ["2 **alpha**", "new\nalpha", "so so"]
        press("5", asks("5 of 6, B: Is it kind?"))
        press("f", "document.querySelector('[name=flag]').checked")
        press("4", asks("6 of 6: Which would you rather get?"))
        first = browser.evaluate(RATING)
        press("3", f"{RATING} && {RATING} != '{first}'")
        rating = store.ratings()[0]
        in_order = rating.order_shown == (0, 1)

        def sides(left, right):
            return [left, right] if in_order else [right, left]

        assert rating.answers == {
            "attributes": {"helps": 2 if in_order else -2, "true": sides(6, 3), "kind": sides(5, 4)},
            "tags": ["wrong facts"],
            "spans": sides([[0, 9, "off topic"]], []),
            "rewrites": sides("new\nalpha", None),
            "comments": sides(None, "so so"),
        }
        assert rating.flags == ("flagged",) and rating.strength == 1
        press("u", f"{RATING} == '{first}'")  # taken back; then all of it goes down at once
        servers[-1].stop(signal.SIGKILL)
        servers.append(PageServer(db, port=servers[0].base.rsplit(":", 1)[1]))
        browser = start()
        browser.wait(asks("6 of 6: Which would you rather get?"))
        press("7", f"{RATING} && {RATING} != '{first}'")
        assert store.ratings()[0].answers == rating.answers and store.ratings()[0].strength == 3
        assert browser.problems == []
    finally:
        servers[-1].stop(signal.SIGKILL)


@pytest.mark.browser
@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium")
def test_a_ranking_that_is_half_picked_is_kept(db, store, browsers):
    store.add_item([{"role": "user", "content": "r"}], [{"text": t} for t in "abc"], kind="rank")
    server = PageServer(db)
    try:
        browsers.append(chromium.Chromium())
        (browser,) = browsers
        browser.open(f"{server.base}/l/{store.people.invite('ada')}")
        ranks = "[...document.querySelectorAll('select')].map(each => each.value).join()"
        for key, then in (
            ("Enter", RATING),
            ("2", f"{ranks} == ',1,'"),
            ("=", "document.querySelector('#tie').checked"),
        ):
            browser.pause(0.6)
            browser.press(key)
            browser.wait(then)
        browser.press("3")
        browser.wait(f"{ranks} == ',1,1'")
        claimed = store.claim("ada")
        for _ in range(200):
            if store.drafts.of(claimed).get("ranks") == [None, 1, 1]:
                break
            browser.pause(0.05)
        browser.send("Page.reload")
        browser.wait(f"{ranks} == ',1,1' && document.querySelector('#todo')?.textContent == '1 left, best first'")
        browser.pause(0.6)
        browser.press("1")
        browser.press("Enter")
        browser.wait("document.body.innerText.includes('All done')")
        assert [store.ratings()[0].ranks[place] for place in store.ratings()[0].order_shown] == [2, 1, 1]
    finally:
        server.stop(signal.SIGKILL)
