"""Who may ask the rating page for something, from where, and with which requests."""

import hashlib
import re

import pytest
from helpers.rating_page import BASE, Labeler, Page, pairs
from starlette.testclient import TestClient

from alignment.errors import UserError
from alignment.labeling import web, web_serving
from alignment.labeling.web_security import BODY_BYTES, FORM_FIELDS, HEADERS, seal, unseal
from alignment.ratings import RatingsStore

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; connect-src 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)


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
        web_serving.serve(db, "127.0.0.1", 0, host, "random")


def test_a_body_has_a_limit_whether_or_not_it_says_its_length(app, store):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    form = ada.page().fields | {"answer": "1"}
    assert ada.post("/rate", form | {"comment": "x" * BODY_BYTES}).status_code == 413
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    chunks = (b"comment=" + b"x" * 10_000 for _ in range(BODY_BYTES // 10_000 + 1))
    assert ada.client.post("/rate", content=chunks, headers=ada.origin() | kind).status_code == 413
    many = "&".join(f"f{n}=1" for n in range(FORM_FIELDS + 8))
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


def test_no_redirect_names_a_scheme(db, store):
    """Behind a proxy it would be http, and a link's token would go over the network in the clear."""
    app = web.make_app(db, allowed_hosts=("rate.example.org",), secure=True)
    client = TestClient(app, base_url="http://rate.example.org", follow_redirects=False)
    token = store.people.invite("ada")
    forwarded = {"X-Forwarded-Proto": "https"}
    answer = client.get(f"/l/{token}/", headers=forwarded)
    assert answer.status_code == 200 and "ada" in answer.text
    for path in (f"/l/{token}//", "/rate/", "/start/", "/static/rate.js/", "/l", "/static", "/practice/1/"):
        answer = client.get(path, headers=forwarded)
        assert answer.status_code in (401, 404) and "location" not in answer.headers, path
    started = client.post("/start", data={"token": token}, headers={"Origin": "https://rate.example.org"} | forwarded)
    assert (started.status_code, started.headers["location"]) == (303, "/")
