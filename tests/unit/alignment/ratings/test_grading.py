"""Gold answers to questions beside the choice: what is right, what guessing reaches, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import UserError
from alignment.labeling.feedback import gold_in_words
from alignment.labeling.import_export import export_file, import_into
from alignment.ratings import Gold, RatingsStore
from alignment.ratings.quality import report
from alignment.ratings.questionnaire import Attribute, Questionnaire
from alignment.ratings.setup_warnings import setup_warnings

ASKED = Questionnaire(
    attributes=(Attribute(name="helps", ask="Helps?", scale="pair"), Attribute(name="true", ask="True?")),
    tags={"w": "wrong facts", "l": "too long", "p": "preachy"},
)
GOLD = Gold("first", None, None, "", {"helps": -2, "true": [7, 2]}, ("wrong facts", "too long"))
PROMPT = [{"role": "user", "content": "q"}]
PAIR = [{"text": "a"}, {"text": "b"}]


@pytest.fixture
def store(tmp_path: Path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.ask(ASKED)
        store.settings.calibration = 9
        yield store


def answered(store: RatingsStore, labeler: str, answers: dict[str, Any] | None, choice: str = "left"):
    """Answer the labeler's item, of which all is given in item order; the feedback."""
    assignment = store.claim(labeler)
    assert assignment is not None and assignment.why == "calibration"
    if assignment.order_shown == (1, 0) and answers:
        helps, true = answers["attributes"]["helps"], answers["attributes"]["true"]
        answers = answers | {"attributes": {"helps": -helps, "true": true[::-1]}}
        choice = {"left": "right", "right": "left"}.get(choice, choice)
    store.submit(assignment, choice, 1.0, answers=answers)  # type: ignore[arg-type]
    found = store.feedback(assignment)
    assert found is not None
    return found, assignment


BOTH = ["too long", "wrong facts"]


@pytest.mark.parametrize(
    ("helps", "true", "tags", "right"),
    [
        (-2, [7, 2], BOTH, {"helps": True, "true": True, "the reasons": True}),
        (-1, [6, 3], BOTH, {"helps": True, "true": True, "the reasons": True}),  # any strength, one point off
        (1, [7, 2], BOTH, {"helps": False, "true": True, "the reasons": True}),
        (0, [7, 2], BOTH, {"helps": False, "true": True, "the reasons": True}),
        (-3, [5, 2], BOTH, {"helps": True, "true": False, "the reasons": True}),
        (-3, [7, 4], BOTH, {"helps": True, "true": False, "the reasons": True}),
        (-3, [7, 1], BOTH[:1], {"helps": True, "true": True, "the reasons": False}),
        (-3, [7, 1], [*BOTH, "preachy"], {"helps": True, "true": True, "the reasons": False}),
        (-3, [7, 1], [], {"helps": True, "true": True, "the reasons": False}),
    ],
)
def test_what_is_right_whatever_side_it_was_shown_on(store, helps, true, tags, right) -> None:
    store.add_item(PROMPT, PAIR, gold=GOLD)
    orders = set()
    for number in range(8):
        given = {"attributes": {"helps": helps, "true": true}, "tags": tags}
        found, assignment = answered(store, f"ada {number}", given)
        orders.add(assignment.order_shown)
        assert {each.name: each.right for each in found.questions} == right
        assert found.right == all(right.values())
        flip = assignment.order_shown == (1, 0)
        shown = {each.name: (each.said, each.expected) for each in found.questions}
        assert shown["true"] == ((true[::-1], [2, 7]) if flip else (true, [7, 2]))
        assert shown["helps"] == ((-helps, 2) if flip else (helps, -2))
        assert found.expected_shown.attributes == ({"helps": 2, "true": [2, 7]} if flip else GOLD.attributes)
    assert orders == {(0, 1), (1, 0)}


def test_a_wrong_choice_or_a_skip_is_not_right_and_tags_may_have_to_be_none(store) -> None:
    store.add_item(PROMPT, PAIR, gold=Gold("first", tags=()))
    given = {"attributes": {"helps": 1, "true": [4, 4]}}
    for labeler, choice, right in (("ada", "left", True), ("bo", "right", False)):
        found, _ = answered(store, labeler, given, choice)
        assert found.right is right and [each.right for each in found.questions] == [True]
    assert not answered(store, "cy", given | {"tags": ["preachy"]})[0].right
    skipped, _ = answered(store, "di", None, "skip")
    assert not skipped.right and skipped.questions == ()


def test_only_what_the_labeler_was_asked_is_compared(store) -> None:
    store.add_item(PROMPT, PAIR, gold=GOLD)
    assert setup_warnings(store)[-1].startswith("the calibration round") or "not asked" not in str(
        setup_warnings(store)
    )
    other = Attribute(name="true", ask="Which is true?", scale="pair")
    store.settings.ask(Questionnaire(attributes=(other,), tags={"w": "wrong facts"}))
    warned = [each for each in setup_warnings(store) if "not asked" in each]
    assert len(warned) == 1 and "(helps, the reason 'too long')" in warned[0]
    assignment = store.claim("ada")
    store.submit(
        assignment, "left" if assignment.order_shown == (0, 1) else "right", 1.0, answers={"attributes": {"true": 1}}
    )
    found = store.feedback(assignment)
    assert found.right and found.questions == ()  # another scale, and a reason that is not among the letters
    assert report(store)["labelers"]["ada"]["gold"]["n"] == 1


def test_the_report_counts_each_question_against_what_guessing_reaches(store) -> None:
    store.add_item(PROMPT, PAIR, gold=GOLD)
    store.add_item([{"role": "user", "content": "r"}], PAIR, gold=Gold(attributes={"helps": 1}))  # without a choice
    right = {"attributes": {"helps": -1, "true": [6, 2]}, "tags": BOTH}
    for labeler, helps in (("ada", -1), ("bo", 1)):
        for _ in range(2):
            answered(store, labeler, right | {"attributes": {"helps": helps, "true": [6, 2]}}, "left")
    found = report(store)
    assert {name: (each["value"], each["n"]) for name, each in found["gold"].items()} == {
        "the choice": (1.0, 2), "helps": (0.5, 4), "true": (1.0, 2), "the reasons": (1.0, 2),
    }  # fmt: skip
    for labeler in ("ada", "bo"):  # of five: the item without a choice asks one thing
        gold = found["labelers"][labeler]["gold"]
        assert (gold["value"], gold["n"], gold["items"]) == (0.8, 5, 2)
        # A side, a side twice, a number near 7 and one near 2, and one of eight sets of reasons.
        assert gold["guessing"] == pytest.approx((1 / 2 + 2 / 2 + (2 / 7) * (3 / 7) + 1 / 8) / 5)


@pytest.mark.parametrize(
    ("kind", "count", "gold", "expected"),
    [
        ("pair", 2, Gold(attributes={"helps": 4}), "gold of a pair item: helps is 4: expected a number from -3 to 3"),
        ("pair", 2, Gold("first", attributes={"true": [1, 2, 3]}), "a list of 2 numbers from 1 to 7"),
        ("rank", 3, Gold(attributes={"helps": 1}), "gold of a rank item: helps is 1: expected a list of 3"),
        ("pair", 2, Gold("first", tags=("x", "x")), "tags of answers must be a list of texts, each once"),
        ("pair", 2, Gold(score=3, attributes={"helps": 1}), "found score, expected choice"),
        ("pair", 2, Gold(reason="no answer"), "found nothing, expected choice"),
    ],
)
def test_bad_gold_answers_are_refused(store, kind: Any, count: int, gold: Gold, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        store.add_item(PROMPT, [{"text": str(i)} for i in range(count)], kind=kind, gold=gold)
    assert store.items() == []


def test_gold_answers_come_with_files_and_are_shown_to_the_organiser(store, tmp_path: Path) -> None:
    row = {"kind": "pair", "prompt": PROMPT, "completions": PAIR}
    gold = {"attributes": {"helps": -2, "true": [7, 2]}, "tags": ["wrong facts", "LEFT"], "reason": "Why."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row | {"gold": gold}) + "\n")
    import_into(store.path, "jsonl", tmp_path / "in.jsonl")
    (item,) = store.items()
    assert item.gold == Gold(None, None, None, "Why.", {"helps": -2, "true": [7, 2]}, ("wrong facts", "LEFT"))
    assert gold_in_words(item.gold, "pair") == (
        "helps: SECOND is better; true: FIRST 7, SECOND 2 of 7; the reasons: wrong facts, LEFT"
    )
    export_file(store, "jsonl", tmp_path / "out.jsonl")
    import_into(tmp_path / "again.db", "jsonl", tmp_path / "out.jsonl")
    with RatingsStore(tmp_path / "again.db") as again:
        assert again.items()[0].gold == item.gold
    for wrong, why in (({"attributes": [1]}, "attributes of 'gold'"), ({"tags": "x"}, "tags of 'gold'")):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row | {"gold": gold | wrong}) + "\n")
        with pytest.raises(UserError, match=why):
            import_into(tmp_path / "bad.db", "jsonl", tmp_path / "bad.jsonl")
