"""Every page of the rating in axe-core, in light and dark colours, on a screen and on a phone: no violation."""

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import chromium
from helpers.rating_page import PageServer

from alignment.ratings import Gold
from alignment.ratings.questionnaire import Attribute, Questionnaire

FOUND = importlib.util.find_spec("axe_core_python")  # a package that holds axe-core
AXE = Path(FOUND.origin).with_name("axe.min.js") if FOUND and FOUND.origin else None
RUN = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(
  each => `${each.id}: ${each.help}: ${each.nodes.map(node => `${node.target} ${node.failureSummary}`).join('; ')}`))"""
LOOKS = {"screen": (1280, 800, {}), "phone": (360, 740, {"phone": True, "dark": True})}
ALL = Questionnaire(
    attributes=(
        Attribute(name="helps", ask="Which answer helps more?", scale="pair"),
        Attribute(name="true", ask="Is it true?"),
    ),
    overall="Which would you rather get?",
    tags={"w": "wrong facts", "l": "too long"},
    rewrite=True,
    comments=True,
    spans=("wrong fact", "off topic"),
)
TEXT = "## A head\n\nSome *text*, `code`, a [link](https://example.org) and\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
RATING = "document.readyState == 'complete' && !!document.querySelector('#answer')"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium"),
    pytest.mark.skipif(AXE is None, reason="needs axe-core (the package axe-core-python, of the extra dev)"),
]


class Inspector:
    """A browser that has axe look at the page that it shows."""

    def __init__(self, browser: chromium.Chromium, base: str) -> None:
        self.browser, self.base = browser, base
        self.problems: dict[str, list[str]] = {}

    def look(self, name: str) -> None:
        """Note the violations of this page in each look, and whether something sticks out."""
        self.browser.pause(0.3)
        for look, (width, height, more) in LOOKS.items():
            self.browser.look(width, height, **more)
            self.browser.pause(0.2)
            assert AXE is not None
            self.browser.evaluate(AXE.read_text(encoding="utf-8") + ";0")
            found = self.browser.evaluate(RUN)
            wide, inner = self.browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            found += [f"{wide} pixels wide in {inner}"] * (wide > inner)
            if found:
                self.problems[f"{name}, {look}"] = found

    def open(self, path: str, then: str = "document.readyState == 'complete'") -> None:
        self.browser.open(f"{self.base}{path}")
        self.browser.wait(then)

    def enter(self, link: str) -> None:
        self.open(link)
        self.browser.pause(0.6)
        self.browser.evaluate("document.querySelector('button').click()")
        self.browser.wait(RATING)

    def rate(self, answer: str, then: str) -> None:
        """Fill in the first button of each question, and press that of the answer."""
        self.browser.pause(0.6)
        self.browser.evaluate(
            "document.querySelectorAll('fieldset.question').forEach(e => e.querySelector('input').click())"
        )
        self.browser.pause(0.6)
        self.browser.evaluate(f"document.querySelector('#answer [name=answer][value=\"{answer}\"]').click()")
        self.browser.wait(f"document.readyState == 'complete' && {then}")


@pytest.fixture
def inspector(db: Path) -> Iterator[Inspector]:
    server = PageServer(db)
    try:
        with chromium.Chromium() as browser:
            yield Inspector(browser, server.base)
    finally:
        server.stop(signal.SIGKILL)


def test_axe_sees_what_is_wrong(inspector) -> None:
    """Else no violation would mean nothing."""
    inspector.open("/")
    inspector.browser.evaluate("document.body.innerHTML = '<main><p>pale</p><button></button></main>'")
    inspector.browser.evaluate("document.querySelector('p').style.cssText = 'color: #777; background: #888'")
    inspector.look("spoilt")
    told = str(inspector.problems)
    assert "color-contrast" in told and "button-name" in told
    assert set(inspector.problems) == {"spoilt, screen", "spoilt, phone"}


def test_items_of_every_kind_with_all_questions_and_the_help(inspector, store) -> None:
    store.settings.guideline = "Prefer what is true.\n\nThen what is short."
    store.settings.ask(ALL)
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "q"},
    ]
    for kind, count in (("pair", 2), ("rank", 3), ("single", 1)):
        answers = [{"text": f"{TEXT}\n{number}"} for number in range(count)]
        store.add_item(turns, answers, kind=kind)
    link = f"/l/{store.people.invite('ada')}"
    inspector.open("/")
    inspector.look("without a session")
    inspector.open(link)
    inspector.look("greeting")
    inspector.enter(link)
    for _ in range(3):
        kind = inspector.browser.evaluate("document.body.className")
        inspector.look(kind)
        inspector.browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        inspector.look(f"{kind}, all open")
        inspector.browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
        inspector.browser.evaluate("document.querySelectorAll('[data-pick]').forEach(each => each.click())")
        steps = inspector.browser.evaluate("document.querySelectorAll('fieldset.question').length")
        if steps:
            inspector.browser.evaluate(
                "document.querySelectorAll('fieldset.question').forEach(e => e.querySelector('input').click())"
            )
            inspector.look(f"{kind}, the choice")
        inspector.rate({"pair": "3", "rank": "ranked", "single": "3"}[kind], "document.body.className != 'x'")
        inspector.browser.pause(0.5)
    inspector.look("the end")
    inspector.open("/nowhere")
    inspector.look("not found")
    assert inspector.problems == {}


def test_the_calibration_result_the_referees_and_the_organisers_page(inspector, store) -> None:
    store.settings.guideline = "Prefer what is true."
    for number, votes in enumerate((["first", "second"], ["first"], ["second"])):
        gold = Gold("first", None, None, "It is **true**.", {"helps": 2, "true": [7, 2]}, ()) if number else None
        item = store.add_item(
            [{"role": "user", "content": f"q {number}"}], [{"text": TEXT}, {"text": "b"}], 2, gold=gold
        )
        for place, vote in enumerate(votes if gold is None else ()):
            store.import_rating(item, f"labeler {place}", vote, comment="A remark.")
    store.settings.ask(ALL)
    store.settings.calibration = 2
    inspector.open(f"/progress/{store.desk.new_link()}")
    inspector.look("organiser")
    inspector.enter(f"/l/{store.people.invite('ada')}")
    for _ in range(2):
        inspector.rate("1", "!!document.querySelector('#verdict')")
        inspector.look(f"calibration, {inspector.browser.evaluate('document.querySelector(`#verdict`).className')}")
        inspector.browser.pause(0.6)
        inspector.browser.evaluate("document.querySelector('#verdict a').click()")
        inspector.browser.wait("document.readyState == 'complete' && !document.querySelector('#verdict')")
    inspector.enter(f"/l/{store.people.invite('rita', referee=True)}")
    inspector.rate("1", "!!document.querySelector('ul')")
    inspector.look("votes")
    assert inspector.problems == {}
