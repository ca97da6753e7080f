"""The page of organisers and referees: their links, what they see, and what others do not."""

import re
from pathlib import Path

import pytest
from helpers import chromium
from helpers.rating_page import BASE, Labeler, Page, PageServer, hostile, pairs
from starlette.applications import Starlette
from starlette.testclient import TestClient

from alignment.labeling.settings import organiser_link
from alignment.labeling.web_security import HEADERS
from alignment.ratings import RatingsStore


def dispute(store: RatingsStore, count: int = 2) -> None:
    pairs(store, count, need=2)
    for item in store.items():
        store.import_rating(item.id, "ada", "first", strength=3, comment="COPYRIGHT")
        store.import_rating(item.id, "bob", "second", strength=3)


def anybody(app: Starlette) -> TestClient:
    return TestClient(app, base_url=BASE, follow_redirects=False, raise_server_exceptions=False)


def test_the_organisers_link_shows_progress_to_nobody_else(app: Starlette, store: RatingsStore, db: Path) -> None:
    dispute(store)
    labeler, link = store.people.invite("eve <b>"), organiser_link(str(db), BASE)
    token = link.removeprefix(f"{BASE}/progress/")
    answer = anybody(app).get(f"/progress/{token}")
    assert answer.status_code == 200 and answer.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()
    page = Page(answer.text)
    for words in ("2; 2 have all their votes", "eve <b> 0 0 - - - never; invited just now", "2; 2 wait for a referee"):
        assert words in page.words
    assert "no guideline says what to prefer" in page.words and "secret" not in answer.text
    for wrong in (labeler, "x", token[:-1], token + "x", "%00"):
        assert anybody(app).get(f"/progress/{wrong}").status_code == 404
    assert anybody(app).get(f"/l/{token}").status_code == 404
    assert anybody(app).get("/", cookies={"rating": token}).status_code == 401
    assert anybody(app).post("/start", data={"token": token}, headers={"Origin": BASE}).status_code == 404
    organiser_link(str(db), BASE)
    assert anybody(app).get(f"/progress/{token}").status_code == 404  # the earlier link has ended


def test_a_file_without_such_a_link_opens_to_none(app: Starlette, store: RatingsStore) -> None:
    assert anybody(app).get("/progress/").status_code == 404
    assert anybody(app).get("/progress/%20").status_code == 404


def test_a_referee_decides_blind_and_then_sees_the_votes(app: Starlette, store: RatingsStore) -> None:
    dispute(store)
    rita = Labeler(app, store.people.invite("rita", referee=True))
    page = rita.page()
    assert not any(words in page.words for words in ("ada", "bob", "COPYRIGHT", "What the labelers said"))
    assert rita.client.get(f"/votes/{page.fields['rating']}").headers["location"] == "/"  # not before the decision
    reply = rita.post("/rate", page.fields | {"answer": "1"})
    assert reply.headers["location"] == f"/votes/{page.fields['rating']}"
    seen = rita.page(reply.headers["location"])
    assert "Your verdict: A is much better" in seen.words
    assert "1 labeler: A is much better" in seen.words and "1 labeler: B is much better" in seen.words
    assert '"COPYRIGHT"' in seen.words and "ada" not in seen.words
    (verdict,) = [rating for rating in store.ratings() if rating.why == "verdict"]
    assert verdict.labeler == "rita"
    undone = rita.post("/undo", seen.fields)
    assert undone.status_code == 200 and "Your answer was: A is much better" in undone.text
    assert [rating for rating in store.ratings() if rating.why == "verdict"] == []


def test_a_referee_who_skips_sees_no_votes(app: Starlette, store: RatingsStore) -> None:
    dispute(store, 1)
    rita = Labeler(app, store.people.invite("rita", referee=True))
    page = rita.page()
    assert rita.post("/rate", page.fields | {"answer": "s"}).headers["location"] == "/?saved=skip"
    assert rita.client.get(f"/votes/{page.fields['rating']}").headers["location"] == "/"


def test_a_labeler_sees_no_votes_and_gets_no_disputes(app: Starlette, store: RatingsStore) -> None:
    dispute(store)
    rita = Labeler(app, store.people.invite("rita", referee=True))
    page = rita.page()
    rita.post("/rate", page.fields | {"answer": "1"})
    eve = Labeler(app, store.people.invite("eve"))
    assert "Nothing to rate yet" in eve.page().words
    assert eve.client.get(f"/votes/{page.fields['rating']}").headers["location"] == "/"
    store.people.invite("rita")  # now an ordinary labeler
    assert rita.client.get("/").status_code == 401


def test_a_revoked_link_is_dead_at_once(app: Starlette, store: RatingsStore) -> None:
    pairs(store, 2)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    ada.rate(page, "1")
    assert store.people.revoke("ada")
    assert ada.client.get("/").status_code == 401
    assert len(store.ratings()) == 1


def test_hostile_names_and_comments_bring_no_markup(app: Starlette, store: RatingsStore, db: Path) -> None:
    import random

    rng = random.Random(4)
    pairs(store, 1, need=2)
    store.import_rating(1, "<script>alert(1)</script>", "first", comment=hostile(rng))
    store.import_rating(1, "x' onclick='", "second", comment='"><img src=x onerror=alert(1)>' + hostile(rng))
    page = Page(anybody(app).get(organiser_link(str(db), BASE).removeprefix(BASE)).text)
    tags = {element[0] for element in page.elements}
    assert not tags & {"img", "a", "form", "style", "iframe"} and [e[0] for e in page.elements].count("script") == 1
    assert {name for element in page.elements for name in element[1:]} <= {
        "lang", "charset", "name", "content", "rel", "href", "src", "defer", "class", "id", "aria-labelledby", "role",
        "aria-label", "tabindex", "scope", "dir",
    }  # fmt: skip
    rita = Labeler(app, store.people.invite("rita", referee=True))
    shown = rita.page()
    votes = rita.page(rita.post("/rate", shown.fields | {"answer": "4"}).headers["location"])
    assert "img" not in {element[0] for element in votes.elements}


@pytest.mark.browser
@pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed")
def test_the_progress_page_fits_a_phone_and_asks_for_nothing_else(store: RatingsStore, db: Path) -> None:
    dispute(store)
    for number in range(8):
        store.people.invite(f"labeler {number} " + "long" * 10)
    server = PageServer(db)
    try:
        link = organiser_link(str(db), server.base)
        with chromium.Chromium() as browser:
            for width, height, more in ((1280, 800, {}), (360, 740, {"phone": True}), (1280, 800, {"zoom": 4})):
                browser.look(width, height, **more)
                browser.open(link)
                assert browser.evaluate("document.querySelector('h1').textContent") == "Progress of the rating"
                assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (width, more)
            assert browser.problems == []
            assert {re.sub(r"\?.*", "", each.removeprefix(server.base)) for each in browser.requests} <= {
                link.removeprefix(server.base), "/static/rate.css", "/static/rate.js", "/static/icon.svg",
            }  # fmt: skip
    finally:
        server.stop()
