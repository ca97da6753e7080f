"""Questions beside the choice on the screen and by lines: one key each, and taken back."""

import io
from pathlib import Path

import pytest
from helpers.rating_screen import drive, lines, press, text
from rich.console import Console
from textual.pilot import Pilot

from alignment.labeling import line_mode
from alignment.ratings import Gold, RatingsStore
from alignment.ratings.questionnaire import Attribute, Questionnaire

ASKED = Questionnaire(
    attributes=(
        Attribute(name="helps", ask="Which answer helps more?", scale="pair"),
        Attribute(name="true", ask="Is it true?"),
    ),
    overall="Which would you rather get?",
    tags={"w": "wrong facts", "l": "too long"},
)


@pytest.fixture
def store(tmp_path: Path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.repeat_share = 0.0
        store.settings.ask(ASKED)
        yield store


def add_pairs(store: RatingsStore, count: int, **more) -> None:
    for i in range(count):
        store.add_item([{"role": "user", "content": f"question {i}."}], [{"text": "alpha"}, {"text": "beta"}], **more)


def shown(store: RatingsStore) -> dict:
    """The last answers, as they were on the screen: the answer on the left first."""
    rating = store.last_rating("ada")
    assert rating is not None and rating.answers is not None
    attributes = dict(rating.answers["attributes"])
    if rating.order_shown == (1, 0):
        attributes = {"helps": -attributes["helps"], "true": attributes["true"][::-1]}
    return attributes | {"tags": rating.answers.get("tags", [])}


def test_one_key_each_on_the_screen(store: RatingsStore) -> None:
    add_pairs(store, 2)

    async def script(pilot: Pilot) -> None:
        assert "1 of 4: Which answer helps more?" in text(pilot) and "why: w wrong facts   l too long" in text(pilot)
        assert "both bad" not in text(pilot)
        await press(pilot, "b")
        assert "does nothing here" in text(pilot)
        await press(pilot, "2", "w")
        assert "2 of 4, LEFT: Is it true?" in text(pilot) and "Reasons: wrong facts." in text(pilot)
        await press(pilot, "6", "l", "w")
        assert "3 of 4, RIGHT: Is it true?" in text(pilot) and "Reasons: too long." in text(pilot)
        await press(pilot, "1")
        assert "4 of 4: Which would you rather get?" in text(pilot) and "both bad" in text(pilot)
        assert store.ratings() == []  # nothing is saved before the last key
        await press(pilot, "u", "u")
        assert "2 of 4, LEFT" in text(pilot) and "Taken back: true, LEFT: 6 of 7." in text(pilot)
        await press(pilot, "7", "3", "3")
        assert "Saved: LEFT is slightly better." in text(pilot) and "1 of 4" in text(pilot)
        assert shown(store) == {"helps": 2, "true": [7, 3], "tags": ["too long"]}
        await press(pilot, "u")  # the saved one, with all that was said
        assert "4 of 4" in text(pilot) and store.ratings() == []
        await press(pilot, "u", "5", "w", "4")
        assert shown(store) == {"helps": 2, "true": [7, 5], "tags": ["too long", "wrong facts"]}
        await press(pilot, "?")
        assert "a reason, set and cleared: wrong facts" in text(pilot)
        await press(pilot, "escape", "s")
        assert len(store.ratings(skips=True)) == 2 and store.ratings(skips=True)[1].answers is None

    drive(store, script)
    assert store.ratings()[0].choice == "tie" and store.ratings()[0].questions == 1


@pytest.mark.parametrize("size", [(120, 40), (60, 40)])
def test_a_plain_pair_has_no_line_more_than_before(tmp_path: Path, size: tuple[int, int]) -> None:
    """The rows of the screen with questions that were taken away again, and of one that never had any, are the same."""
    screens = []
    for name, asked in (("never", []), ("no more", [ASKED, Questionnaire()])):
        with RatingsStore(tmp_path / f"{name}.db", create=True) as store:
            for each in asked:
                store.settings.ask(each)
            add_pairs(store, 1)

            async def script(pilot: Pilot) -> None:
                screens.append(lines(pilot))

            drive(store, script, size)
    assert screens[0] == screens[1]
    assert not any("why:" in line or "1 of 1:" in line for line in screens[0])


def test_a_key_held_down_answers_one_question(store: RatingsStore) -> None:
    add_pairs(store, 1)

    async def script(pilot: Pilot) -> None:
        await press(pilot)
        await pilot.press("2", "2", "2", "2")
        await pilot.pause()
        assert "2 of 4" in text(pilot)

    drive(store, script)


def test_every_answer_of_a_ranking_and_a_single_one_is_asked_about(store: RatingsStore) -> None:
    store.add_item([{"role": "user", "content": "r"}], [{"text": t} for t in ("one", "two", "three")], kind="rank")
    store.add_item([{"role": "user", "content": "s"}], [{"text": "only"}], kind="single")

    async def script(pilot: Pilot) -> None:
        for _ in range(2):
            if "only" in text(pilot):
                assert "1 of 2: Is it true?" in text(pilot)
                await press(pilot, "6", "5")
            else:
                order = sorted(("one", "two", "three"), key=lambda word: text(pilot).index(word))
                assert "1 of 4, ANSWER 1: Is it true?" in text(pilot)
                await press(pilot, *("357"[["one", "two", "three"].index(word)] for word in order))
                assert "4 of 4" in text(pilot)
                await press(pilot, "1", "2", "3", "enter")

    drive(store, script)
    answers = {rating.kind: rating.answers for rating in store.ratings()}
    assert answers == {"rank": {"attributes": {"true": [3, 5, 7]}}, "single": {"attributes": {"true": [6]}}}


def test_lines_take_the_questions_one_by_one(store: RatingsStore) -> None:
    add_pairs(store, 2)
    written = io.StringIO()
    given = iter(["l", "9", "7", "+lw", "u", "6", "1", "+w", "+x", "b", "u", "u", "2", "?", "3", "q"])
    line_mode.run(store, "ada", "random", lambda: next(given, None), Console(file=written, width=1000))
    said = written.getvalue()
    assert "Not understood. Expected: 1 (worst) to 7 (best); +w wrong facts, +l too long, s skip" in said
    assert "Taken back: true, LEFT: 7 of 7." in said and "+w         a reason, set and cleared: wrong facts" in said
    assert "There is no reason +x. The reasons are +w +l." in said
    assert said.count("4 of 4: Which would you rather get?") == 3  # before `b`, after its undo, and after 2
    assert shown(store) == {"helps": 2, "true": [6, 2], "tags": ["too long"]}
    assert store.ratings()[0].strength == 1


def test_the_calibration_round_says_both_answers_and_why(store: RatingsStore) -> None:
    add_pairs(store, 1, gold=Gold(choice="first", reason="Alpha\ncomes first."))
    store.settings.calibration = 1

    async def script(pilot: Pilot) -> None:
        row = next(line for line in lines(pilot) if "alpha" in line)
        side = "LEFT" if row.index("alpha") < row.index("beta") else "RIGHT"
        await press(pilot, "4", "4", "4", "1" if side == "LEFT" else "7")
        expected = f"Correct. You said: {side} is much better. Expected: {side} is better. Alpha comes first."
        assert expected in text(pilot)

    drive(store, script, (160, 40))


def test_the_calibration_round_says_each_question_with_both_answers(store: RatingsStore) -> None:
    gold = Gold("first", None, None, "Alpha is true.", {"helps": 2, "true": [7, 2]}, ("wrong facts",))
    add_pairs(store, 1, gold=gold)
    store.settings.calibration = 1

    async def script(pilot: Pilot) -> None:
        row = next(line for line in lines(pilot) if "alpha" in line)
        left = row.index("alpha") < row.index("beta")
        side, other = ("LEFT", "RIGHT") if left else ("RIGHT", "LEFT")
        await press(pilot, "3" if left else "5", "l", *("63" if left else "36"), "1" if left else "7")
        told = text(pilot)
        assert "NOT AS EXPECTED" in told and "Correct" not in told
        assert f"You said: {side} is much better. Expected: {side} is better. Alpha is true." in told
        assert f"helps, right. You said: {side} is slightly better. Expected: {side} is better." in told
        said, expected = ("LEFT 6, RIGHT 3", "LEFT 7, RIGHT 2") if left else ("LEFT 3, RIGHT 6", "LEFT 2, RIGHT 7")
        assert f"true, right. You said: {said} of 7. Expected: {expected} of 7." in told
        assert "the reasons, not right. You said: too long. Expected: wrong facts." in told
        assert other not in told.partition("true, right")[0].rpartition("AS EXPECTED")[2]

    drive(store, script, (160, 40))


WRITTEN = Questionnaire(rewrite=True, comments=True)


def by_text(store: RatingsStore, kind: str) -> dict[str, str | None]:
    """What was written about each answer, by the answer's text."""
    rating = store.last_rating("ada")
    assert rating is not None
    item = next(item for item in store.items() if item.id == rating.item)
    return dict(zip([each.text for each in item.completions], (rating.answers or {}).get(kind, []), strict=False))


def test_answers_are_rewritten_and_commented_on_the_screen(store: RatingsStore) -> None:
    store.settings.ask(WRITTEN)
    add_pairs(store, 2)

    async def script(pilot: Pilot) -> None:
        left = "alpha" if text(pilot).index("alpha") < text(pilot).index("beta") else "beta"
        right = "beta" if left == "alpha" else "alpha"
        await press(pilot, "e", "tab")
        assert "RIGHT" in text(pilot) and "Rewrite an answer as it should have been" in text(pilot)
        await press(pilot, "end", "enter", "1", "u")  # keys of the screen below are letters here
        pilot.app.screen.query_one("#text").insert("\x1b]52;c;x\x07!")  # as a paste does
        await press(pilot, "escape")
        assert "Rewritten, and saved with your answer: RIGHT." in text(pilot) and "[rewritten]" in text(pilot)
        await press(pilot, "m", "n", "o", "escape", "2")
        assert by_text(store, "rewrites") == {left: None, right: f"{right}\n1u␛]52;c;x␇!"}
        assert by_text(store, "comments") == {left: "no", right: None}
        await press(pilot, "u")
        assert "[rewritten]  [answers commented]" in text(pilot) and store.ratings() == []
        await press(pilot, "e", "tab", "ctrl+r", "escape")
        assert "[rewritten]" not in text(pilot)
        await press(pilot, "2")
        assert store.ratings()[0].answers == {"comments": ["no", None] if left == "alpha" else [None, "no"]}

    drive(store, script)


def test_keys_of_what_is_not_asked_do_nothing(store: RatingsStore) -> None:
    add_pairs(store, 1)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "e", "m")
        assert len(pilot.app.screen_stack) == 1

    drive(store, script)


def test_lines_rewrite_and_comment(store: RatingsStore) -> None:
    store.settings.ask(WRITTEN)
    add_pairs(store, 2)
    written = io.StringIO()
    given = iter(
        [
            "e 1",
            "one",
            "",
            "  two\tthree",
            ".",
            "e 2",
            "gone",
            ".",
            "e 2",
            ".",
            "m 2",
            "so so",
            ".",
            "e",
            "e 3",
            "1",
            "q",
        ]
    )
    line_mode.run(store, "ada", "random", lambda: next(given, None), Console(file=written, width=1000))
    said = written.getvalue()
    left = "alpha" if said.index("alpha") < said.index("beta") else "beta"
    right = "beta" if left == "alpha" else "alpha"
    assert by_text(store, "rewrites") == {left: "one\n\n  two\tthree", right: None}
    assert by_text(store, "comments") == {left: None, right: "so so"}
    assert said.count("Which answer? e and a number from 1 to 2.") == 2
    assert "e N rewrite answer, m N comment on answer, s skip" in said


TEXT = "It was\r\n1969, not 1970. It was\x1b good."
SPANS = Questionnaire(spans=("wrong fact", "off topic"))


def spans(store: RatingsStore) -> list[tuple[str, str]]:
    """The marked passages of the last answer, as they are in the text, with their kinds."""
    rating = store.last_rating("ada")
    assert rating is not None and rating.answers is not None
    item = next(item for item in store.items() if item.id == rating.item)
    return [
        (completion.text[start:end], kind)
        for completion, marks in zip(item.completions, rating.answers["spans"], strict=True)
        for start, end, kind in marks
    ]


def test_passages_are_selected_and_marked_on_the_screen(store: RatingsStore) -> None:
    store.settings.ask(SPANS)
    store.add_item([{"role": "user", "content": "q"}], [{"text": TEXT}], kind="single")
    store.add_item([{"role": "user", "content": "q"}], [{"text": "other"}], kind="single")

    async def script(pilot: Pilot) -> None:
        if "other" in text(pilot):
            await press(pilot, "1")
        await press(pilot, "x")
        assert "1 wrong fact   2 off topic" in text(pilot) and "nothing is marked" in text(pilot)
        await press(pilot, "1", "3")  # nothing is selected, and there is no third kind
        assert "nothing is marked" in text(pilot)
        await press(pilot, "down", *["shift+right"] * 4, "1", "2")  # 1969, which is both
        await press(pilot, "up", "home", *["shift+down"] * 2, "2", "backspace")
        await press(pilot, "home", *["shift+right"] * 2, "shift+end", "z")  # and nothing can be typed
        assert "1 1969" in text(pilot) and "2 1969" in text(pilot)
        await press(pilot, "escape")
        assert "2 passages marked, saved with your answer." in text(pilot) and "[marked]" in text(pilot)
        await press(pilot, "3")
        assert spans(store) == [("1969", "off topic"), ("1969", "wrong fact")]
        await press(pilot, "u", "x", "backspace", "escape", "2")
        assert spans(store) == [("1969", "off topic")]

    drive(store, script)


def test_lines_mark_passages_by_their_words(store: RatingsStore) -> None:
    store.settings.ask(SPANS)
    store.add_item([{"role": "user", "content": "q"}], [{"text": TEXT}, {"text": TEXT[::-1]}])
    first = store.claim("ada")
    assert first is not None
    here = first.completions.index(TEXT) + 1
    written = io.StringIO()
    marks = ["2 nothing", "", "1 It was", "2 was 1969, not", "1 It was", "1 It was", "3 good"]
    given = iter([*(f"x {here} {mark}" for mark in marks), "x 3 1 a", "4", "q"])
    line_mode.run(store, "ada", "random", lambda: next(given, None), Console(file=written, width=1000))
    said = written.getvalue()
    # The same words again are their next place, until there is none left.
    assert spans(store) == [("It was", "wrong fact"), ("was\r\n1969, not", "off topic"), ("It was", "wrong fact")]
    assert said.count("has no such words left, or there is no such kind: 1 wrong fact, 2 off topic.") == 3
    assert said.count("Which answer? x, a number from 1 to 2") == 1
