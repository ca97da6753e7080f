"""The rating page as the browser of a labeler meets it, without JavaScript."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.rating_page import Labeler, Page, pairs

from alignment.ratings import Gold


def answers(page: Page) -> list[str]:
    """The answers of an item whose prompt is one message."""
    return page.texts[-(len(page.texts) - 1) :]


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
    assert [value for name, value in page.buttons if name == "answer" and value] == [*"1234567bs"]


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
    pairs(store, 2, gold=Gold(choice="first", reason="Alpha comes <first>."))
    for i in range(3):
        store.add_item([{"role": "user", "content": f"real {i}"}], [{"text": "x"}, {"text": "y"}])
    ada = Labeler(app, store.people.invite("ada"))
    for right in (True, False):
        page = ada.page()
        left = answers(page)[0].startswith("alpha")
        practice = ada.rate(page, "2" if left == right else "6")
        assert ("✓ Right" in practice.words) == right
        said, expected = "AB"[left != right], "AB"[not left]
        assert (
            f"You said: {said} is clearly better . Expected: {expected} is better . Alpha comes <first>."
            in practice.words
        )
        assert [text for text in practice.texts if text in page.texts] == page.texts
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


FORMATTED = "## Head\n\n**bold** and `code`"


@pytest.mark.parametrize("switched", [False, True])
def test_a_formatted_item_comes_rendered_and_raw_and_what_was_shown_is_stored(app, store, switched):
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "*turn*"},
        {"role": "user", "content": "q"},
    ]
    store.add_item(turns, [{"text": FORMATTED}, {"text": "plain"}])
    ada = Labeler(app, store.people.invite("ada"))
    html = ada.client.get("/").text
    page = Page(html)
    assert sorted(page.texts) == sorted(["q", "*turn*", "q", FORMATTED, "plain"])
    for shown in ('<h3 dir="auto">Head</h3>', "<strong>bold</strong>", "<em>turn</em>"):
        assert html.count(shown) == 1
    assert html.count('class="rendered"') == html.count('class="text source"') == 2  # what is plain stands there once
    assert html.index('name="view" value="rendered"') < html.index('type="checkbox" name="view" value="raw"')
    body = [*(page.fields | {"answer": "4"}).items(), *[("view", "raw")] * switched]  # a browser sends both, in order
    sent = "&".join(f"{name}={value}" for name, value in body)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ada.client.post("/rate", content=sent, headers=ada.origin() | kind).status_code == 303
    assert [rating.view for rating in store.ratings()] == ["raw" if switched else "rendered"]


def test_an_item_without_markdown_has_no_switch(app, store):
    pairs(store, 1)
    ada = Labeler(app, store.people.invite("ada"))
    html = ada.client.get("/").text
    assert not re.search('name="view"|class="rendered"|class="text source"', html)
    ada.rate(Page(html), "4")
    ada.post("/undo", ada.page().fields)
    ada.rate(ada.page(), "4", view="<b>")
    assert [rating.view for rating in store.ratings()] == ["raw"]


def test_what_is_too_much_to_render_is_raw_and_says_so(app, store):
    store.add_item([{"role": "user", "content": "**q**"}], [{"text": "> " * 30 + "deep"}], kind="single")
    ada = Labeler(app, store.people.invite("ada"))
    page = ada.page()
    assert "Raw: too deeply nested to render" in page.words and not page.rendered and page.texts[0] == "**q**"
    ada.rate(page, "4")
    assert store.ratings()[0].view == "raw"


def test_practice_shows_what_was_rated_rendered_too(app, store):
    store.add_item([{"role": "user", "content": "q"}], [{"text": "**a**"}, {"text": "b"}], gold=Gold(choice="first"))
    store.settings.calibration = 1
    ada = Labeler(app, store.people.invite("ada"))
    practice = ada.rate(ada.page(), "4")
    assert "Practice" in practice.words and practice.rendered == ['<p dir="auto">', "<strong>"]
    assert sorted(practice.texts) == ["**a**", "b", "q"]
