"""Hostile text in items, names, guidelines and comments stays text."""

import json
import random
import re

import pytest
from helpers.rating_page import BASE, Labeler, Page, hostile, pairs
from helpers.rendered import check_tag
from starlette.testclient import TestClient

from alignment.labeling import web
from alignment.terminal import clean


@pytest.mark.parametrize("rounds", [12, pytest.param(102, marks=pytest.mark.slow)])  # the slow one: 10^5 strings
def test_hostile_strings_stay_text(app, store, rounds):
    """The page of a hostile item has the elements and attributes of a harmless one, one by one, and says the same.

    Beside them are the boxes of rendered texts, with elements of their own list alone.
    """
    rng = random.Random(0)
    messages, completions = 495, 9

    def add(text) -> list[tuple[list[str], list[str]]]:
        # Two surrogates side by side are one character to JSON, and so to the store.
        roles, contents, said = (
            json.loads(json.dumps([text() for _ in range(size)])) for size in (messages, messages, completions)
        )
        prompt = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        store.add_item(prompt, [{"text": each} for each in said], kind="rank")
        return roles, contents, said

    added = [add(lambda: "**harmless**"), *(add(lambda: hostile(rng)) for _ in range(rounds - 1))]
    ada = Labeler(app, store.people.invite("ada"))
    store.settings.guideline = "x"
    by_first = {clean(contents[0]) + clean(contents[1]): (roles, contents, said) for roles, contents, said in added}
    shapes = set()
    for _ in range(rounds):
        html = ada.client.get("/").text
        assert clean(html) == html, "a control character as such"
        page = Page(html)
        shapes.add((*page.elements, *page.declarations))
        assert page.rendered
        for tag in page.rendered:
            check_tag(tag)
        store.settings.guideline = hostile(rng)
        guideline, texts = page.texts[0], page.texts[1:]
        assert guideline
        roles, contents, said = by_first.pop(texts[0] + texts[1])
        assert texts[:messages] == list(map(clean, contents))
        assert sorted(texts[messages:]) == sorted(map(clean, said))
        assert page.headings[2 : 2 + messages] == list(map(clean, roles))
        answer = ada.post("/rate", page.fields | {"answer": "s", "comment": "x"})
        assert answer.status_code == 303
    assert not by_first
    assert len(shapes) == 1, "some text became markup"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '" onclick="x', "</title><b>", "{{ 7 * 7 }}", "&lt;"])
def test_names_guidelines_and_echoed_comments_stay_text(app, store, name):
    rng = random.Random(name)
    pairs(store, 1)
    store.settings.calibration = 0
    token = store.people.invite(name)
    plain = store.people.invite("ada")
    shapes = set()
    for link in (plain, token):
        store.settings.guideline = hostile(rng)
        html = TestClient(app, base_url=BASE).get(f"/l/{link}").text
        page = Page(html)
        shapes.add(tuple(page.elements))
        assert page.texts == [clean(store.settings.guideline)] and clean(html) == html
    assert len(shapes) == 1 and f"Hello {name}" in page.words
    labeler = Labeler(app, token)
    fields = labeler.page().fields | {"rating": "999"}
    for _ in range(50):
        words = hostile(rng).strip()
        answer = labeler.post("/rate", fields | {"answer": "1", "comment": words.encode("utf-8", "replace").decode()})
        assert answer.status_code == 409 and clean(answer.text) == answer.text
        shapes.add(("echo", *Page(answer.text).elements))
    assert len(shapes) == 2


def test_templates_and_script_name_no_other_server():
    for file in (*(web.HERE / "templates").iterdir(), *(web.HERE / "static").iterdir()):
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w|@import|url\(|innerHTML|eval\(|\|\s*safe|Markup| style=| on\w+=", text), (
            file
        )


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_contrast(scheme):
    """By the formula of WCAG 2: 4.5 for text, 3 for the edges of what can be pressed."""
    css = (web.HERE / "static" / "rate.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", block))

    def light(name: str) -> float:
        digits = colours[name][1:]
        digits = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        bright, dark = sorted((light(one), light(other)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for text, ground in [("ink", "paper"), ("ink", "soft"), ("dim", "paper"), ("dim", "soft"), ("on-accent", "accent"),
                         ("right", "paper"), ("wrong", "paper"), ("keyword", "soft"), ("string", "soft"),
                         ("number", "soft"), ("defined", "soft")]:  # fmt: skip
        assert contrast(text, ground) >= 4.5, (text, ground)
    for edge in ("edge", "accent", "other"):
        assert contrast(edge, "paper") >= 3 and contrast(edge, "soft") >= 3, edge
