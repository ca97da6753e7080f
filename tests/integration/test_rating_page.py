"""The rating page as a labeler's browser meets it, and as one meets it that means no good."""

import hashlib
import json
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.rating_page import BASE, Labeler, Page, hostile, pairs
from starlette.applications import Starlette
from starlette.testclient import TestClient

from alignment.errors import UserError
from alignment.labeling import web
from alignment.labeling.web_security import BODY_BYTES, HEADERS, seal, unseal
from alignment.ratings import Gold, RatingsStore
from alignment.terminal import clean

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; connect-src 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True) as store:
        store.settings.repeat_share = 0.0
    return path


@pytest.fixture
def store(db: Path) -> Iterator[RatingsStore]:
    with RatingsStore(db) as store:
        yield store


@pytest.fixture
def app(db: Path) -> Starlette:
    return web.make_app(db)


def answers(page: Page) -> list[str]:
    """The answers of an item whose prompt is one message."""
    return page.texts[-(len(page.texts) - 1) :]


# --- rating, without JavaScript --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "better", "strength", "flags"),
    [
        *[(str(key), 0, 4 - key, ()) for key in (1, 2, 3)],
        *[(str(key), 1, key - 4, ()) for key in (5, 6, 7)],
        ("4", None, None, ()),
        ("b", None, None, ("both_bad",)),
    ],
)
def test_a_pair_is_stored_as_it_was_seen(app, store, key, better, strength, flags):
    pairs(store, 3)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    for _ in range(3):
        shown = answers(page)
        page = ada.rate(page, key)
        rating = store.ratings()[-1]
        item = next(item for item in store.items() if item.id == rating.item)
        expected = "tie" if better is None else ("first", "second")[item.completions[1].text == shown[better]]
        assert (rating.choice, rating.strength, rating.flags, rating.labeler) == (expected, strength, flags, "ada")
    assert page.words.startswith("Rating Saved: ") and "All done" in page.words


def test_a_ranking_with_ties_is_stored_by_text(app, store):
    texts = ["best", "good", "as good", "worst"]
    store.add_item([{"role": "user", "content": "q"}], [{"text": text} for text in texts], kind="rank")
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    given = {"best": "1", "good": "2", "as good": "2", "worst": "4"}
    incomplete = ada.post("/rate", page.fields | {"answer": "ranked", "rank1": "1"})
    assert incomplete.status_code == 422 and "still open" in incomplete.text and store.ratings() == []
    assert ada.post("/rate", page.fields | {"answer": "5"}).status_code == 422
    done = ada.rate(page, "ranked", **{f"rank{n + 1}": given[text] for n, text in enumerate(answers(page))})
    assert store.ratings()[0].ranks == (1, 2, 2, 3)
    assert re.search(r"Saved: \d( [>=] \d){3}\.", done.words)


def test_single_scores_skip_flag_and_comment(app, store):
    for i in range(2):
        store.add_item([{"role": "user", "content": f"q{i}"}], [{"text": "a"}], kind="single")
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.rate(ada.page(), "6", flag="yes", comment="  says\r\ntwo lines ")
    assert "Saved: 6 of 7." in page.words
    page = ada.rate(page, "s", comment="what?")
    assert "Skipped." in page.words and "1 of them skipped" in page.words
    first, second = store.ratings(skips=True)
    assert (first.score, first.flags, first.comment) == (6, ("flagged",), "says\ntwo lines")
    assert (second.choice, second.comment) == ("skip", "what?")


def test_progress_guideline_and_keys_are_on_the_page(app, store):
    pairs(store, 3)
    store.settings.guideline = "Prefer what is true."
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.rate(ada.page(), "2")
    assert re.search(r"2 of 3, ~\d+ s each, under a minute left", page.words)
    assert "Prefer what is true." in page.texts
    assert [value for name, value in page.buttons if name == "answer"] == [*"1234567bs"]


def test_nothing_names_a_model_or_a_control(app, store):
    pairs(store, 4)
    pairs(store, 4, start=4, gold=Gold(choice="first"))
    store.settings.gold_share = store.settings.repeat_share = 0.5
    ada = Labeler(app, store.people.invite("ada"))
    html = ""
    for _ in range(4):
        html += ada.client.get("/").text
        html += "".join(ada.client.get(f"/static/{name}").text for name in ("rate.js", "rate.css"))
        ada.rate(ada.page(), "1")
    assert not re.search("secret|gold|calibration|repeat@", html)


def test_undo_any_number_of_steps_brings_back_what_was_said(app, store):
    pairs(store, 3)
    ada = Labeler(app, store.people.invite("ada"))
    seen = []
    for key in "123":
        page = ada.page()
        seen.append(page.texts)
        ada.rate(page, key, comment=f"note {key}", flag="yes")
    mark = ada.page().fields
    for key, words in (("3", "slightly"), ("2", "clearly"), ("1", "much")):
        answer = ada.post("/undo", mark)
        page = Page(answer.text)
        assert answer.status_code == 200 and page.texts == seen[int(key) - 1]
        assert f"Your answer was: A is {words} better." in page.words
        assert f">note {key}</textarea>" in answer.text and re.search('name="flag"[^>]* checked', answer.text)
    assert store.ratings() == []
    assert "There is nothing to take back." in Page(ada.post("/undo", mark).text).words
    ada.rate(ada.page(), "7")  # and the first one, now open again, takes another answer
    assert len(store.ratings()) == 1 and store.ratings()[0].strength == 3


def test_practice_tells_the_right_answer_and_is_final(app, store):
    store.settings.calibration = 2
    store.settings.gold_share = 0.0
    pairs(store, 2, gold=Gold(choice="first"))
    for i in range(3):
        store.add_item([{"role": "user", "content": f"real {i}"}], [{"text": "x"}, {"text": "y"}])
    ada = Labeler(app, store.people.invite("ada"))
    for right in (True, False):
        page = ada.page()
        left = answers(page)[0].startswith("alpha")
        practice = ada.rate(page, "2" if left == right else "6")
        assert ("✓ Right" in practice.words) == right
        assert f"Expected: {'A' if left else 'B'} is better" in practice.words
        assert answers(practice) == answers(page)
        rating = store.ratings()[-1].id
    page = ada.page()
    assert "real" in page.texts[0]
    assert "nothing to take back" in Page(ada.post("/undo", page.fields).text).words, "the right answer was told"
    bob = Labeler(app, store.people.invite("bob"))
    assert bob.client.get(f"/practice/{rating}").headers["location"] == "/", "another labeler's practice"
    for odd in ("0", "99999999999999999999999", "x", page.fields["rating"]):
        assert ada.client.get(f"/practice/{odd}").status_code == 303


def test_two_quick_presses_are_one_answer(app, store):
    pairs(store, 2)
    ada = Labeler(app, store.people.invite("ada"))
    first = ada.page()
    ada.rate(first, "1")
    again = ada.post("/rate", first.fields | {"answer": "7", "comment": "typed at length"})
    assert again.status_code == 409 and "typed at length" in again.text and "answered already" in again.text
    assert [(r.strength, r.comment) for r in store.ratings()] == [(3, "")]

    second = ada.page()  # and when both are on their way at once
    others = [Labeler(app, ada.token) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        codes = list(threads.map(lambda one: one.post("/rate", second.fields | {"answer": "4"}).status_code, others))
    assert sorted(codes) == [303] + [409] * 5
    assert len(store.ratings()) == 2


def test_an_answer_after_its_lease_counts(app, store, db):
    pairs(store, 1)
    ada, bob = (Labeler(app, store.people.invite(name)) for name in ("ada", "bob"))
    page = ada.page()
    store.claim("ada", now=time.time() - 100_000)  # the lease was over long ago
    bob.rate(bob.page(), "2")
    ada.rate(page, "2")
    assert [rating.labeler for rating in store.ratings()] == ["ada", "bob"]


@pytest.mark.parametrize(
    ("told", "low", "high"),
    [("0.05", 0.05, 0.05), ("1e9", 0.2, 5), ("nan", 0.2, 5), ("inf", 0.2, 5), ("-7", 0.2, 5), ("", 0.2, 5)],
)
def test_seconds_are_the_browsers_but_never_more_than_passed_here(app, store, told, low, high):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    time.sleep(0.2)
    ada.rate(page, "1", seconds=told)
    assert low <= store.ratings()[0].seconds <= high


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        (b"a%00b", "a\u2400b"),
        (b"%ED%A0%80", "\ufffd\ufffd\ufffd"),  # a lone surrogate as UTF-8 would spell it: no text
        (b"%FF%FE", "\ufffd\ufffd"),
        (b"%1B]52;c;ZXZpbA==%07", "\u241b]52;c;ZXZpbA==\u2407"),
        ("\u202egnp.exe".encode(), "???gnp.exe"),  # bytes that no form has: not read as text
        (b"%E2%80%AEgnp.exe", "\ufffdgnp.exe"),
        (b"%F0%9F%99%82+ok", "\U0001f642 ok"),
        (b"x" * 5000, "x" * 4000),
    ],
)
def test_a_comment_may_hold_anything(app, store, raw, stored):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    fields = ada.page().fields
    body = f"csrf={fields['csrf']}&rating={fields['rating']}&answer=2&comment=".encode() + raw
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ada.client.post("/rate", content=body, headers=ada.origin() | form).status_code == 303
    assert store.ratings()[0].comment == stored.replace("???", "\ufffd" * 3)


# --- who asks, and from where ----------------------------------------------------------------------------------------


def test_the_link_sets_no_cookie_and_start_sets_a_strict_one(app, store, db):
    token = store.people.invite("ada")
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    answer = client.get(f"/l/{token}")
    page = Page(answer.text)
    assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert "Hello ada" in page.words and page.fields == {"token": token}
    cookie = client.post("/start", data=page.fields, headers={"Origin": BASE}).headers["set-cookie"]
    assert re.fullmatch(rf"rating={token}; HttpOnly; Max-Age=\d+; Path=/; SameSite=strict", cookie)

    safe = web.make_app(db, allowed_hosts=["rate.example.org"], secure=True)
    client = TestClient(safe, base_url="https://rate.example.org", follow_redirects=False)
    cookie = client.post("/start", data=page.fields, headers={"Origin": "https://rate.example.org"})
    assert re.fullmatch(
        rf"__Host-rating={token}; HttpOnly; Max-Age=\d+; Path=/; SameSite=strict; Secure", cookie.headers["set-cookie"]
    )
    refused = client.post("/start", data=page.fields, headers={"Origin": "http://rate.example.org"})
    assert refused.status_code == 403, "a page that came without TLS may be anybody's"


def test_the_token_is_nowhere_but_in_the_link(app, store, db):
    pairs(store, 2)
    token = store.people.invite("ada")
    ada = Labeler(app, token)
    assert token not in ada.client.get("/").text
    for file in db.parent.iterdir():
        assert token.encode() not in file.read_bytes()
    assert hashlib.sha256(token.encode()).hexdigest().encode() in b"".join(p.read_bytes() for p in db.parent.iterdir())


def test_a_dead_link_and_no_session(app, store):
    token = store.people.invite("ada")
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    assert client.get("/l/nonsense").status_code == 404
    assert client.post("/start", data={"token": token[:-1]}, headers={"Origin": BASE}).status_code == 404
    assert client.post("/start", data={"x": "y"}, headers={"Origin": BASE}).status_code == 404
    for cookie in (None, "nonsense", "\udcff" * 3, token.swapcase()):
        headers = {} if cookie is None else {"Cookie": f"rating={cookie}".encode("utf-8", "surrogateescape")}
        assert client.get("/", headers=headers).status_code == 401
        assert client.post("/rate", headers=headers | {"Origin": BASE}, data={"answer": "1"}).status_code == 401


def test_a_revoked_or_replaced_link_ends_the_session_at_once(app, store):
    pairs(store, 3)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    fresh = store.people.invite("ada")
    assert ada.client.get("/").status_code == 401
    assert ada.post("/rate", page.fields | {"answer": "1"}).status_code == 401
    assert ada.client.get(f"/l/{ada.token}").status_code == 404
    assert ada.post("/start", {"token": ada.token}).status_code == 404
    again = Labeler(app, fresh)
    assert again.page().texts == page.texts, "the item that was open is still theirs"
    assert again.post("/rate", page.fields | {"answer": "1"}).status_code == 403, "a form of the old session"
    store.people.revoke("ada")
    assert again.client.get("/").status_code == 401
    assert store.ratings() == []


def test_the_name_comes_from_the_token_alone(app, store):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    ada.rate(ada.page(), "1", labeler="bob", name="bob", user="bob")
    assert [rating.labeler for rating in store.ratings()] == ["ada"]


def test_another_labelers_item_is_not_touched(app, store):
    pairs(store, 4)
    ada, bob = (Labeler(app, store.people.invite(name)) for name in ("ada", "bob"))
    hers, his = ada.page(), bob.page()
    refused = bob.post("/rate", his.fields | {"rating": hers.fields["rating"], "answer": "1", "comment": "mine"})
    assert refused.status_code == 409 and "mine" in refused.text and store.ratings() == []
    stolen = ada.client.cookies.get("rating")
    assert bob.post("/rate", hers.fields | {"answer": "1"}).status_code == 403, "her form with his session"
    assert stolen and ada.post("/rate", his.fields | {"answer": "1"}).status_code == 403, "his form with her session"
    for odd in ("", "0", "-1", "x", "1e3", "9" * 30, "١"):
        assert ada.post("/rate", hers.fields | {"rating": odd, "answer": "1"}).status_code == 409
    assert store.ratings() == []
    ada.rate(hers, "1")
    bob.rate(his, "1")
    assert sorted(rating.labeler for rating in store.ratings()) == ["ada", "bob"]


def test_a_form_without_its_mark_is_refused(app, store):
    pairs(store, 2)
    ada, bob = (Labeler(app, store.people.invite(name)) for name in ("ada", "bob"))
    form = ada.page().fields | {"answer": "1"}
    made, code = form["csrf"].split("-")
    later = f"{int(made) + 1}-{code}"
    for mark in (None, "", "-", made, code, later, form["csrf"][:-1], bob.page().fields["csrf"], f"{made}-é", "9" * 99):
        fields = {name: value for name, value in form.items() if name != "csrf"} | (
            {} if mark is None else {"csrf": mark}
        )
        for path in ("/rate", "/undo"):
            assert ada.post(path, fields).status_code == 403, mark
    assert store.ratings() == []
    ada.rate(ada.page(), "1")


def test_marks_belong_to_a_token_and_keep_their_time():
    assert unseal("token", seal("token", 12345.678)) == 12345.678
    assert unseal("other", seal("token", 12345.678)) is None
    assert seal("token", 1.0) != seal("other", 1.0)


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"Origin": BASE}, True),
        ({"Origin": BASE, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, True),  # what Chromium sends under no-referrer
        ({}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Origin": "http://127.0.0.1:8001"}, False),  # another program on this machine
        ({"Origin": "http://127.0.0.1"}, False),
        ({"Origin": "http://localhost:8000"}, False),
        ({"Origin": BASE, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": BASE, "Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": f"{BASE}.evil.example"}, False),
        ({"Origin": "file://"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_forms_are_taken_from_our_own_pages_alone(app, store, headers, accepted):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    form = ada.page().fields | {"answer": "1"}
    for path, fields in (("/start", {"token": ada.token}), ("/rate", form), ("/undo", form)):
        code = ada.client.post(path, data=fields, headers=headers).status_code
        assert code in ((303, 200) if accepted else (403,)), (path, code)
    assert store.ratings() == [], "refused, or taken back by /undo"


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("www.localhost", False),
        ("0.0.0.0:8000", False),
        ("", False),
        ("127.0.0.1@evil.example", False),
    ],
)
def test_only_our_own_name_is_answered(app, store, host, accepted):
    token = store.people.invite("ada")
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    for path in (f"/l/{token}", "/static/rate.js"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == (200 if accepted else 400), host
        assert accepted or "ada" not in answer.text


def test_public_is_the_only_name_then(db, store):
    client = TestClient(web.make_app(db, allowed_hosts=("rate.example.org",), secure=True))
    token = store.people.invite("ada")
    assert client.get(f"/l/{token}", headers={"Host": "rate.example.org"}).status_code == 200
    for other in ("other.example.org", "127.0.0.1", "a.rate.example.org"):
        assert client.get(f"/l/{token}", headers={"Host": other}).status_code == 400


@pytest.mark.parametrize("host", ["*", "https://rate.example.org", "a b", "rate.example.org:80", "", ".x"])
def test_public_takes_a_name_alone(db, host):
    with pytest.raises(UserError, match="--public"):
        web.serve(db, "127.0.0.1", 0, host, "random")


# --- what else may come ----------------------------------------------------------------------------------------------


def test_a_body_has_a_limit_whether_or_not_it_says_its_length(app, store):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    form = ada.page().fields | {"answer": "1"}
    assert ada.post("/rate", form | {"comment": "x" * BODY_BYTES}).status_code == 413
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    chunks = (b"comment=" + b"x" * 10_000 for _ in range(10))
    assert ada.client.post("/rate", content=chunks, headers=ada.origin() | kind).status_code == 413
    many = "&".join(f"f{n}=1" for n in range(40))
    assert ada.client.post("/rate", content=many, headers=ada.origin() | kind).status_code == 400
    files = {"comment": ("a.txt", b"x" * 100)}
    assert ada.client.post("/rate", files=files, data=form, headers=ada.origin()).status_code == 415
    assert ada.client.post("/rate", json=form, headers=ada.origin()).status_code == 415
    longest = form | {"comment": "\U0001f642" * 2000 + "é" * 2000}
    assert ada.post("/rate", longest).status_code == 303, "what the page's own field allows"
    assert store.ratings()[0].comment == longest["comment"]


def test_addresses_and_methods(app, store):
    ada = Labeler(app, store.people.invite("ada"))
    expected = {
        ("GET", "/rate"): 405,
        ("GET", "/start"): 405,
        ("POST", "/"): 405,
        ("DELETE", "/"): 405,
        ("OPTIONS", "/rate"): 405,
        ("PUT", "/l/x"): 405,
        ("GET", "/static/"): 404,
        ("GET", "/static"): 404,
        ("GET", "/static/web.py"): 404,
        ("GET", "/static/../web.py"): 404,
        ("GET", "/static/%2e%2e%2fweb.py"): 404,
        ("GET", "/static/..%5cweb.py"): 404,
        ("GET", "/docs"): 404,
        ("GET", "/l/"): 404,
        ("GET", "/static/rate.css"): 200,
        ("GET", "/static/rate.js"): 200,
        ("GET", "/static/icon.svg"): 200,
    }
    for (method, path), code in expected.items():
        answer = ada.client.request(method, path, headers=ada.origin())
        assert answer.status_code == code, (method, path)
        assert code == 200 or "Traceback" not in answer.text


def test_every_response_has_the_headers(app, store, monkeypatch):
    pairs(store, 3)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    crashing = RatingsStore.claim
    got = {
        "link": ada.client.get(f"/l/{ada.token}"),
        "start": ada.post("/start", {"token": ada.token}),
        "item": ada.client.get("/"),
        "undo": ada.post("/undo", page.fields),
        "saved": ada.post("/rate", page.fields | {"answer": "1"}),
        "stale": ada.post("/rate", page.fields | {"answer": "1"}),
        "foreign": ada.client.post("/rate", headers={"Origin": "http://evil.example"}),
        "host": ada.client.get("/", headers={"Host": "evil.example"}),
        "dead": ada.client.get("/l/dead"),
        "missing": ada.client.get("/nothing"),
        "method": ada.client.put("/rate"),
        "head": ada.client.head("/"),
        "long": ada.post("/rate", {"comment": "x" * BODY_BYTES}),
        "script": ada.client.get("/static/rate.js"),
    }
    ada.client.cookies.clear()
    got["none"] = ada.client.get("/")
    ada = Labeler(app, ada.token)

    def claim(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(RatingsStore, "claim", claim)
    got["crash"] = ada.client.get("/")
    assert got["crash"].status_code == 500

    def full(*_, **__):
        raise UserError("/srv/secret/ratings.db: disk full")

    monkeypatch.setattr(RatingsStore, "claim", full)
    got["full"] = ada.client.get("/")
    assert got["full"].status_code == 503
    monkeypatch.setattr(RatingsStore, "claim", crashing)
    for name, answer in got.items():
        assert answer.headers["content-security-policy"] == POLICY, name
        assert answer.headers["referrer-policy"] == "no-referrer", name
        assert answer.headers["x-content-type-options"] == "nosniff", name
        assert answer.headers["cache-control"] == "no-store", name
        assert set(map(str.lower, HEADERS)) <= set(answer.headers), name
        assert not re.search('secret|Traceback|File "|/srv', answer.text), name
        assert "server" not in answer.headers and "x-powered-by" not in answer.headers
    versioned = re.search('/static/rate.js[^"]*', got["item"].text)[0]
    assert ada.client.get(versioned).headers["cache-control"] == "max-age=31536000, immutable"


def test_a_full_disk_is_said_to_the_operator_and_loses_nothing(app, store, monkeypatch, capsys):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()

    def submit(*_, **__):
        raise UserError("ratings.db: database or disk is full \x1b[2J")

    monkeypatch.setattr(RatingsStore, "submit", submit)
    answer = ada.post("/rate", page.fields | {"answer": "1"})
    assert answer.status_code == 503 and "nothing was saved" in answer.text
    assert "disk is full \u241b[2J" in capsys.readouterr().err
    monkeypatch.undo()
    ada.rate(page, "1")
    assert len(store.ratings()) == 1


def test_words_in_an_address_do_not_reach_the_page(app, store):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    for word in ("<script>x</script>", "pair-<b>", "pair-9", "rank-", "rank-<i>", "Your account is locked", "single-x"):
        page = ada.client.get("/", params={"saved": word})
        assert "Saved" not in Page(page.text).words.replace("Saved together", "")
        assert word not in page.text


# --- hostile text ----------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_hostile_strings_stay_text(app, store):
    """The page of a hostile item has the elements and attributes of a harmless one, one by one, and says the same."""
    rng = random.Random(0)
    messages, completions, rounds = 495, 9, 102

    def add(text) -> list[tuple[list[str], list[str]]]:
        # Two surrogates side by side are one character to JSON, and so to the store.
        roles, contents, said = (
            json.loads(json.dumps([text() for _ in range(size)])) for size in (messages, messages, completions)
        )
        prompt = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        store.add_item(prompt, [{"text": each} for each in said], kind="rank")
        return roles, contents, said

    added = [add(lambda: "harmless"), *(add(lambda: hostile(rng)) for _ in range(rounds - 1))]
    count = (rounds - 1) * (2 * messages + completions)
    ada = Labeler(app, store.people.invite("ada"))
    store.settings.guideline = "x"
    by_first = {clean(contents[0]) + clean(contents[1]): (roles, contents, said) for roles, contents, said in added}
    shapes = set()
    for _ in range(rounds):
        html = ada.client.get("/").text
        assert clean(html) == html, "a control character as such"
        page = Page(html)
        shapes.add((*page.elements, *page.declarations))
        store.settings.guideline = hostile(rng)
        guideline, texts = page.texts[0], page.texts[1:]
        assert guideline
        roles, contents, said = by_first.pop(texts[0] + texts[1])
        assert texts[:messages] == list(map(clean, contents))
        assert sorted(texts[messages:]) == sorted(map(clean, said))
        assert page.headings[2 : 2 + messages] == list(map(clean, roles))
        answer = ada.post("/rate", page.fields | {"answer": "s", "comment": "x"})
        assert answer.status_code == 303
    assert not by_first and count >= 100_000
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
                         ("right", "paper"), ("wrong", "paper")]:  # fmt: skip
        assert contrast(text, ground) >= 4.5, (text, ground)
    for edge in ("edge", "accent", "other"):
        assert contrast(edge, "paper") >= 3 and contrast(edge, "soft") >= 3, edge
