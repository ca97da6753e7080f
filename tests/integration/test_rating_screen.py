"""The rating screen, whole, driven by Textual's Pilot: real widgets, real layout, a real ratings file."""

import re
import time
from pathlib import Path

import pytest
from helpers.rating_screen import drive, lines, listening, press, text
from textual.pilot import Pilot

from alignment.errors import UserError
from alignment.labeling import tui
from alignment.ratings import Gold, Rating, RatingsStore

LONG = "The library opens at nine and closes at six, and on Sundays it does not open at all. " * 30


@pytest.fixture
def store(tmp_path: Path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.repeat_share = 0.0
        yield store


def add_pairs(store: RatingsStore, count: int) -> None:
    for i in range(count):
        store.add_item(
            [{"role": "user", "content": f"question {i}."}],
            [{"text": f"alpha {i}", "model": "sft-secret@v1"}, {"text": f"beta {i}", "model": "ppo-secret@v1"}],
        )


def add_rank(store: RatingsStore, count: int, text: str = "") -> None:
    texts = [{"text": f"answer-{'abcdefghi'[i]} {text}", "model": f"secret-{i}@v1"} for i in range(count)]
    store.add_item([{"role": "user", "content": "order these."}], texts, kind="rank")


def last(store: RatingsStore) -> Rating:
    rating = store.last_rating("ada")
    assert rating is not None
    return rating


def test_all_seven_keys_and_both_bad_are_stored_in_item_order(store: RatingsStore) -> None:
    add_pairs(store, 10)
    keys = {
        "1": (0, 3),
        "2": (0, 2),
        "3": (0, 1),
        "4": ("tie", None),
        "5": (1, 1),
        "6": (1, 2),
        "7": (1, 3),
        "b": ("tie", None),
        "left": (0, 2),
        "right": (1, 2),
    }
    sides = set()

    async def script(pilot: Pilot) -> None:
        for done, (key, (side, strength)) in enumerate(keys.items()):
            shown = text(pilot)
            assert f"{done + 1} of 10" in shown and "secret" not in shown
            row = next(line for line in lines(pilot) if "alpha" in line)
            assert "beta" in row  # side by side
            left_is_first = row.index("alpha") < row.index("beta")
            sides.add(left_is_first)
            number = int(re.search(r"question (\d+)\.", shown)[1])
            await press(pilot, key)
            rating = last(store)  # on disk by now
            wanted = side if side == "tie" else ("first", "second")[side == left_is_first]
            assert (rating.item, rating.choice, rating.strength) == (number + 1, wanted, strength), key
            assert rating.flags == (("both_bad",) if key == "b" else ())
            assert len(store.ratings()) == done + 1
            if done == 0:
                assert "Saved: LEFT is much better." in text(pilot)
        assert "That was the last one." in text(pilot)

    drive(store, script)
    assert sides == {True, False}  # else the two orders were not both tried


def test_a_ranking_is_typed_best_first_with_ties(store: RatingsStore) -> None:
    add_rank(store, 4)

    async def script(pilot: Pilot) -> None:
        order = re.findall(r"answer-([abcd])", text(pilot))
        await press(pilot, "enter")
        assert "1, 2, 3, 4 have no place" in text(pilot)
        await press(pilot, "3", "1", "=")
        assert "best first: 3 > 1 =" in text(pilot)
        await press(pilot, "3")
        assert "Answer 3 has its place already" in text(pilot)
        await press(pilot, "9")
        assert "numbers 1 to 4" in text(pilot)
        await press(pilot, "4", "backspace", "backspace", "1", "=", "2", "4")  # 4 joined, taken back, 1 too
        assert "best first: 3 > 1 = 2 > 4" in text(pilot)
        titles = [str(box.border_title).split() for box in pilot.app.query(".answer")][:4]
        assert titles == [["1", "tied", "2nd"], ["2", "tied", "2nd"], ["3", "best"], ["4", "3rd"]]
        assert store.ratings() == []  # not before Enter
        await press(pilot, "enter")
        ranks = dict(zip(order, (2, 2, 1, 3), strict=True))  # by what was shown first, second, ...
        assert last(store).ranks == tuple(ranks[letter] for letter in "abcd")
        assert last(store).choice == "ranked"
        await press(pilot, "u")
        assert "Your answer was: 3 > 1 = 2 > 4." in text(pilot) and store.ratings() == []
        await press(pilot, "=")
        assert "between two answers" in text(pilot)
        await press(pilot, *"1=2=3=4", "enter")
        assert last(store).ranks == (1, 1, 1, 1)

    drive(store, script)


def test_single_answers_get_one_to_seven(store: RatingsStore) -> None:
    store.add_item([{"role": "user", "content": "q"}], [{"text": "only this"}], kind="single")
    store.add_item([{"role": "user", "content": "r"}], [{"text": "only that"}], kind="single")

    async def script(pilot: Pilot) -> None:
        await press(pilot, "8", "b")
        assert store.ratings() == [] and "does nothing here" in text(pilot)
        await press(pilot, "7")
        assert (last(store).choice, last(store).score) == ("scored", 7) and "Saved: 7 of 7." in text(pilot)
        await press(pilot, "1")
        assert last(store).score == 1

    drive(store, script)


def test_undo_takes_back_any_number_of_answers(store: RatingsStore) -> None:
    add_pairs(store, 4)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "u")
        assert "nothing to take back" in text(pilot)
        await press(pilot, "c", *"hm", "enter", "f", "1", "s", "7", "4")
        assert "That was the last one." in text(pilot)
        before = {rating.item: rating for rating in store.ratings(skips=True)}
        for steps, was in enumerate(("a tie", "RIGHT is much better", "skipped", "LEFT is much better"), 1):
            await press(pilot, "u")
            assert f"Your answer was: {was}." in text(pilot)
            assert len(store.ratings(skips=True)) == 4 - steps
        assert "[flagged]" in text(pilot) and "[comment]" in text(pilot)  # of the first one; they are kept
        await press(pilot, "7")
        assert (last(store).comment, last(store).flags) == ("hm", ("flagged",))
        await press(pilot, "2", "2", "2")
        after = {rating.item: rating for rating in store.ratings(skips=True)}
        assert after.keys() == before.keys() and "That was the last one." in text(pilot)

    drive(store, script)


def test_what_an_undo_interrupts_comes_back_with_its_comment(store: RatingsStore) -> None:
    add_pairs(store, 2)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "1", "f", "c", *"second", "enter", "u", "1")
        assert "[flagged]" in text(pilot) and "[comment]" in text(pilot)
        await press(pilot, "1")
        assert (last(store).comment, last(store).flags) == ("second", ("flagged",))

    drive(store, script)


def test_skip_flag_and_comment(store: RatingsStore) -> None:
    add_pairs(store, 3)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "s")
        assert last(store).choice == "skip" and "Skipped." in text(pilot)
        await press(pilot, "f", "f")
        assert "The flag is off" in text(pilot) and "[flagged]" not in text(pilot)
        await press(pilot, "c", *"12sq?", "escape")  # keys of decisions are letters here; Esc drops them
        assert len(store.ratings(skips=True)) == 1 and "[comment]" not in text(pilot)
        await press(pilot, "c", *"both 1 and 7", "enter", "f")
        assert "[flagged]" in text(pilot)
        await press(pilot, "c", "end", "!", "enter", "b")  # the line opens with what is there
        assert (last(store).comment, last(store).flags) == ("both 1 and 7!", ("both_bad", "flagged"))
        await press(pilot, "4")
        assert (last(store).comment, last(store).flags) == ("", ())

    drive(store, script)


def test_a_pasted_comment_brings_no_control_characters(store: RatingsStore) -> None:
    from textual import events

    add_pairs(store, 1)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "c")
        pilot.app.post_message(events.Paste("a\x1b]52;c;x\x07b\u202ec"))
        await pilot.pause()
        assert not set(text(pilot)) & set("\x1b\x07\u202e") and "a␛]52;c;x␇b�c" in text(pilot)
        await press(pilot, "enter", "1")
        assert last(store).comment == "a␛]52;c;x␇b�c"

    drive(store, script)


def test_help_shows_guideline_and_keys_and_opens_by_itself_only_at_the_very_start(store: RatingsStore) -> None:
    add_pairs(store, 2)
    store.settings.guideline = "Prefer the [b]kind[/b] one.\n" * 40

    async def first(pilot: Pilot) -> None:
        assert "What to prefer" in text(pilot) and "the [b]kind[/b] one" in text(pilot)
        assert "take your last answer back" not in text(pilot)
        started = time.monotonic()
        await pilot.pause(1.0)
        for _ in range(6):
            await press(pilot, "j")
        assert "take your last answer back" in text(pilot) and "LEFT is much, clearly" in text(pilot)
        await press(pilot, "1")  # closes the help and rates nothing
        assert "What to prefer" not in text(pilot) and store.ratings() == []
        pilot.app.deaf_until = 0.0
        await pilot.press("1")
        await press(pilot, "?")
        assert last(store).seconds < time.monotonic() - started - 1.0  # the guideline took that long
        assert "What to prefer" in text(pilot)
        await press(pilot, "escape", "q")

    async def later(pilot: Pilot) -> None:
        assert "What to prefer" not in text(pilot)

    drive(store, first)
    drive(store, later)


def test_feedback_after_calibration_waits_for_a_key(store: RatingsStore) -> None:
    for i in range(2):
        store.add_item(
            [{"role": "user", "content": f"gold {i}"}], [{"text": "good"}, {"text": "bad"}], gold=Gold(choice="first")
        )
    add_pairs(store, 1)
    store.settings.calibration = 2

    async def script(pilot: Pilot) -> None:
        def good_side() -> str:
            row = next(line for line in lines(pilot) if "good" in line)
            return "LEFT" if row.index("good") < row.index("bad") else "RIGHT"

        side = good_side()
        await press(pilot, "1" if side == "LEFT" else "7")
        assert f"Correct. You said: {side} is much better. Expected: {side} is better." in text(
            pilot
        ) and "gold" in text(pilot)
        await press(pilot, "j", "down")  # looking around does not go on
        assert "Correct." in text(pilot) and "any key goes on" in text(pilot)
        await pilot.pause(0.2)
        assert not set(lines(pilot)[-1].split()) & {"Undo", "Skip", "Flag", "Comment"}
        await press(pilot, "1")
        assert len(store.ratings()) == 1 and "2 of 3" in text(pilot)  # that key went on and rated nothing
        side = good_side()
        await press(pilot, "4")
        assert f"You said: a tie. Expected: {side} is better." in text(pilot)
        await press(pilot, "u")  # goes on as any key: who has seen the right answer cannot take theirs back
        assert "question 0." in text(pilot)
        await press(pilot, "u")
        assert "nothing to take back" in text(pilot) and len(store.ratings()) == 2

    drive(store, script)


@pytest.mark.parametrize(
    ("answers", "across"), [(2, {40: 1, 80: 2, 120: 2, 200: 2}), (9, {40: 1, 80: 2, 120: 3, 200: 5})]
)
def test_answers_stand_side_by_side_where_they_fit(store: RatingsStore, answers: int, across: dict) -> None:
    add_pairs(store, 1) if answers == 2 else add_rank(store, answers)

    async def script(pilot: Pilot) -> None:
        for width, expected in across.items():
            await pilot.resize_terminal(width, 30)
            await pilot.pause(0.2)
            boxes = [box.region for box in pilot.app.query(".answer") if box.display]
            assert len(boxes) == answers and sum(box.y == boxes[0].y for box in boxes) == expected
            assert all(box.width >= 30 and box.right <= width for box in boxes)
            assert max(len(line) for line in lines(pilot)) == width
            for key in ("q Quit", "of 1"):
                assert key in text(pilot) or width == 40

    drive(store, script, size=(100, 30))


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_prompt_stays_and_answers_scroll_together(store: RatingsStore, size: tuple[int, int]) -> None:
    prompt = "\n".join(f"line {i} of the prompt" for i in range(100))
    answers = [{"text": "\n".join(f"{name} line {i}" for i in range(200))} for name in ("alpha", "beta")]
    store.add_item([{"role": "system", "content": prompt}, {"role": "user", "content": "the question"}], answers)

    async def script(pilot: Pilot) -> None:
        def tops() -> tuple[int, int]:
            return tuple(int(re.search(rf"{name} line (\d+)", text(pilot))[1]) for name in ("alpha", "beta"))

        assert tops() == (0, 0) and "the question" in text(pilot) and "K scrolls up" in text(pilot)
        assert "J/K Prompt" in text(pilot)
        await press(pilot, "j")
        first = tops()
        assert first[0] == first[1] > 0
        await press(pilot, "down", "space", "pagedown")
        assert tops()[0] == tops()[1] > first[0] + 10
        assert "the question" in text(pilot)  # the prompt did not move
        assert pilot.app.query_one("#prompt").size.height <= size[1] // 3
        await press(pilot, "end")
        assert "alpha line 199" in text(pilot) and "beta line 199" in text(pilot)
        await press(pilot, "K", "K")
        assert "the question" not in text(pilot)
        await press(pilot, *["K"] * 60)
        assert "line 0 of the prompt" in text(pilot)
        await press(pilot, "home")
        assert tops() == (0, 0)
        await press(pilot, "k", "1")
        assert len(store.ratings()) == 1

    drive(store, script, size)


def test_keys_that_come_before_the_item_rate_nothing(store: RatingsStore) -> None:
    add_pairs(store, 40)

    async def script(pilot: Pilot) -> None:
        from textual import events

        await listening(pilot)
        for key in "111":  # all three are in the queue before the first one acts
            pilot.app.post_message(events.Key(key, key))
        await pilot.pause()
        assert len(store.ratings()) == 1
        await listening(pilot)
        start = time.monotonic()
        for i in range(40):  # a key held down, 30 ms between repeats
            key = events.Key("2", "2")
            key.time = start + 0.03 * i
            pilot.app.post_message(key)
            await pilot.pause()
        assert len(store.ratings()) == 2
        await listening(pilot)
        await press(pilot, "2")
        assert len(store.ratings()) == 3

    drive(store, script)


def test_markdown_is_rendered_and_r_shows_it_raw(store: RatingsStore) -> None:
    """What was shown is stored with the answer; each item begins rendered, if there is anything to render."""
    for i in range(3):
        prompt = [{"role": "user", "content": f"item {i}"}, {"role": "assistant", "content": "*turn*"}]
        answers = ["**bold**\n\n- point", "plain"] if i < 2 else ["plain one", "plain two"]
        store.add_item(prompt if i < 2 else prompt[:1], [{"text": text} for text in answers])
    given = {}

    async def script(pilot: Pilot) -> None:
        while pilot.app.sitting.assignment is not None:
            number = int(re.search(r"item (\d)", text(pilot))[1])
            await pilot.pause(0.2)
            if number == 2:
                assert "Raw" not in lines(pilot)[-1]
                await press(pilot, "r")
                assert "[raw]" not in text(pilot) and "plain one" in text(pilot)
            else:
                assert "• point" in text(pilot) and "**" not in text(pilot) and "*turn*" not in text(pilot)
                assert "r Raw" in lines(pilot)[-1] and "[raw]" not in text(pilot)
                await press(pilot, "r")
                assert "- point" in text(pilot) and "**bold**" in text(pilot) and "*turn*" in text(pilot)
                assert "r Rendered" in lines(pilot)[-1] and "[raw]" in text(pilot)
                if number == 1:
                    await press(pilot, "f", "r")
                    assert "• point" in text(pilot) and "[flagged]" in text(pilot)
            await press(pilot, "4")
            given[number] = last(store).view
        await press(pilot, "u")
        await pilot.pause(0.2)
        assert ("[raw]" in text(pilot), "**" in text(pilot)) == (False, False)
        await press(pilot, "4")

    drive(store, script, size=(80, 24))
    assert given == {0: "raw", 1: "rendered", 2: "raw"}


def test_a_view_stays_when_nothing_is_saved_and_while_feedback_is_read(store: RatingsStore) -> None:
    gold = Gold(choice="first")
    store.add_item([{"role": "user", "content": "gold"}], [{"text": "**good**"}, {"text": "bad"}], gold=gold)
    store.settings.calibration = 1
    failing = Failing(store)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "r")
        failing.broken = ("submit",)
        await press(pilot, "4")
        assert "disk is full" in text(pilot) and "**good**" in text(pilot) and "[raw]" in text(pilot)
        failing.broken = ()
        await press(pilot, "4")
        assert "any key goes on" in text(pilot) and "**good**" in text(pilot)
        await press(pilot, "r")
        assert "any key goes on" in text(pilot) and "**good**" not in text(pilot) and "good" in text(pilot)
        assert last(store).view == "raw"

    drive(failing, script)


def test_what_is_too_much_to_render_is_raw_and_says_so(store: RatingsStore) -> None:
    store.add_item([{"role": "user", "content": "**q**"}], [{"text": "> " * 30 + "deep"}], kind="single")

    async def script(pilot: Pilot) -> None:
        assert "[raw: too deeply nested to render]" in text(pilot) and "> > >" in text(pilot) and "**q**" in text(pilot)
        await press(pilot, "r", "4")
        assert last(store).view == "raw"

    drive(store, script)


class Failing:
    """A store whose chosen call fails as a full disk makes it fail."""

    def __init__(self, store: RatingsStore) -> None:
        self._store, self.broken = store, ()

    def __getattr__(self, name: str):
        if name in self.broken:

            def fail(*_, **__):
                raise UserError("ratings.db: database or disk is full; nothing of this step was saved")

            return fail
        return getattr(self._store, name)


@pytest.mark.parametrize("broken", [("submit",), ("submit", "claim"), ("claim",), ("submit", "claim", "undo")])
def test_an_error_of_the_store_loses_nothing(store: RatingsStore, broken: tuple[str, ...]) -> None:
    add_rank(store, 3)
    add_pairs(store, 3)
    failing = Failing(store)

    async def script(pilot: Pilot) -> None:
        while "order these." not in text(pilot):
            await press(pilot, "1")
        given = len(store.ratings())
        await press(pilot, "c", *"note", "enter", *"2=13")
        failing.broken = broken
        await press(pilot, "enter")
        assert "disk is full" in text(pilot)
        if "submit" in broken:
            assert "best first: 2 = 1 > 3" in text(pilot) and len(store.ratings()) == given
            await press(pilot, "u") if "undo" in broken else None
        failing.broken = ()
        await press(pilot, "enter")
        if "submit" in broken:
            assert last(store).comment == "note"
        assert [rating.kind for rating in store.ratings()].count("rank") == 1
        while "That was the last one." not in text(pilot):
            await press(pilot, "1")
        assert len(store.ratings()) == 4

    drive(failing, script)


def test_an_answer_given_in_another_window_stands(store: RatingsStore) -> None:
    add_pairs(store, 2)

    async def script(pilot: Pilot) -> None:
        assignment = pilot.app.sitting.assignment
        with RatingsStore(store.path) as other:
            other.submit(assignment, "tie", 1.0)
        await press(pilot, "1")
        assert "Not saved" in text(pilot) and "2 of 2" in text(pilot)
        await press(pilot, "1")
        assert [rating.choice == "tie" for rating in store.ratings()] == [True, False]

    drive(store, script)


def test_nothing_to_rate_says_so(store: RatingsStore) -> None:
    async def script(pilot: Pilot) -> None:
        assert "There is nothing to rate here for you yet." in text(pilot)
        await press(pilot, "1", "s", "c", "f", "u", "enter", "q")

    assert drive(store, script).return_value == 0


def test_a_limit_ends_the_sitting_and_undo_still_works(store: RatingsStore) -> None:
    add_pairs(store, 5)

    async def script(pilot: Pilot) -> None:
        await press(pilot, "1", "s", "1")
        assert "That was the last one." in text(pilot)
        await press(pilot, "u", "7")
        assert len(store.ratings()) == 2 and "That was the last one." in text(pilot)

    drive(store, script, limit=2)


def test_the_footer_is_made_from_the_bindings_that_work_now(store: RatingsStore) -> None:
    add_pairs(store, 1)

    async def script(pilot: Pilot) -> None:
        await pilot.pause(0.1)
        assert "Prompt" not in lines(pilot)[-1]  # it does not scroll
        wanted = ("j/k Scroll", "s Skip", "f Flag", "c Comment", "u Undo", "? Help", "q Quit")
        assert all(key in lines(pilot)[-1] for key in wanted)
        await press(pilot, "c")
        await pilot.pause(0.1)
        assert lines(pilot)[-1].split() == ["Enter", "Keep", "Esc", "Drop"]
        await press(pilot, "escape", "1")
        await pilot.pause(0.1)
        assert "s Skip" not in lines(pilot)[-1] and "u Undo" in lines(pilot)[-1]

    drive(store, script, size=(80, 24))


def test_long_sessions_neither_grow_nor_slow_down(store: RatingsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tui, "DEAF_SECONDS", 0.0)
    with store.transaction():
        add_pairs(store, 60)
        add_rank(store, 9, LONG)
    counts, seconds = [], []

    async def script(pilot: Pilot) -> None:
        for _ in range(60):
            started = time.perf_counter()
            await press(pilot, "s")
            seconds.append(time.perf_counter() - started)
            counts.append(len(list(pilot.app.screen.walk_children())))

    drive(store, script)
    assert len(set(counts[5:-2])) <= 2  # the footer is made anew now and then
    assert sorted(seconds[40:])[10] < 2 * sorted(seconds[5:25])[10] + 0.05
