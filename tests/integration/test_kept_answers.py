"""Every kind of question in a real terminal, and what was given to an open item after a kill -9."""

import os
import signal
from pathlib import Path

import pytest
from helpers.rate_script import Screen, open_screen
from helpers.rating_screen import drive, press, text
from textual.pilot import Pilot

from alignment.errors import UserError
from alignment.labeling.session import Sitting
from alignment.ratings import RatingsStore
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


@pytest.fixture
def store(tmp_path: Path):
    with RatingsStore(tmp_path / "ratings.db", create=True) as store:
        store.settings.repeat_share = 0.0
        store.settings.ask(ALL)
        yield store


@pytest.fixture
def screens():
    opened: list[Screen] = []
    yield opened
    for screen in opened:
        screen.close()


def add_pair(store: RatingsStore, number: int = 0) -> None:
    answers = [{"text": "**alpha** one"}, {"text": "**alpha** two"}]
    store.add_item([{"role": "user", "content": f"question {number}."}], answers)


def say(screen: Screen, *keys: tuple[str, str]) -> None:
    for key, then in keys:
        screen.press(key, then)
        screen.settle()


ESCAPE = "\x1b"


def test_every_kind_of_question_in_a_terminal_with_a_kill_after_each(screens: list[Screen], store) -> None:
    """Keys alone; the process is killed four times while the item is open, and nothing has to be said twice."""
    add_pair(store)
    add_pair(store, 1)

    def start(asks: str) -> Screen:
        if screens:
            screens[-1].process.send_signal(signal.SIGKILL)
            assert screens[-1].left() == -signal.SIGKILL and store.ratings() == []
        screen = open_screen(screens, "--db", str(store.path), "--labeler", "ada", columns=120)
        screen.ready(asks)
        return screen

    screen = start("1 of 6: Which answer helps more?")
    say(screen, ("r", "[raw]"), ("2", "2 of 6, LEFT: Is it true?"), ("w", "Reasons: wrong facts."))
    say(screen, ("6", "3 of 6, RIGHT: Is it true?"), ("1", "4 of 6, LEFT: Is it kind?"))
    screen = start("4 of 6, LEFT: Is it kind?")  # four of six questions were answered
    screen.press("u", "3 of 6, RIGHT: Is it true?")
    screen.settle()
    say(screen, ("3", "4 of 6, LEFT: Is it kind?"), ("x", "nothing is marked"))
    os.write(screen.master, b"\x1b[1;2F")  # Shift and End
    screen.settle()
    say(screen, ("2", "2 **alpha**"), (ESCAPE, "1 passage marked"))
    screen = start("4 of 6, LEFT: Is it kind?")
    say(screen, ("e", "Rewrite an answer"), ("new ", "new "), (ESCAPE, "Rewritten, and saved with your answer: LEFT."))
    say(screen, ("m", "Comment on single"), ("\t", "RIGHT"), ("so so", "so so"), (ESCAPE, "With a comment"))
    say(screen, ("5", "5 of 6, RIGHT: Is it kind?"), ("f", "Flagged"))
    screen = start("5 of 6, RIGHT: Is it kind?")
    assert "[flagged]" in screen.plain() and "[rewritten]" in screen.plain() and "[marked]" in screen.plain()
    screen.press("4", "6 of 6: Which would you rather get?")
    screen.settle()
    screen = start("6 of 6: Which would you rather get?")
    screen.rate("3", str(store.path))
    rating = store.ratings()[0]
    assert rating.answers is not None
    first_left = rating.order_shown == (0, 1)

    def sides(left, right):
        return [left, right] if first_left else [right, left]

    assert rating.answers == {
        "attributes": {"helps": 2 if first_left else -2, "true": sides(6, 3), "kind": sides(5, 4)},
        "tags": ["wrong facts"],
        "spans": sides([[0, 13, "off topic"]], []),
        "rewrites": sides("new **alpha** " + ("one" if first_left else "two"), None),
        "comments": sides(None, "so so"),
    }
    assert rating.choice == ("first" if first_left else "second") and rating.strength == 1
    assert rating.flags == ("flagged",) and rating.comment == ""
    screen.press("u", "Taken back")
    screen.settle()
    screen = start("6 of 6: Which would you rather get?")  # what was taken back is kept too
    screen.rate("7", str(store.path))
    assert store.ratings()[0].answers == rating.answers and store.ratings()[0].strength == 3


def test_a_text_that_is_being_written_survives_a_kill(screens: list[Screen], store) -> None:
    add_pair(store)
    for number, asked in enumerate(("rewrites", "comments")):
        screen = open_screen(screens, "--db", str(store.path), "--labeler", "ada", columns=120)
        screen.ready("1 of 6")
        say(screen, ("em"[number], "Done"), ("half a li", "half a li"))
        kept = {}
        for _ in range(50):
            screen.read()
            assignment = store.claim("ada")
            assert assignment is not None
            kept = store.drafts.of(assignment).get("answers", {})
            if asked in kept:
                break
        assert kept[asked][0].startswith("half a li")
        screen.process.send_signal(signal.SIGKILL)
        screen.left()


def test_a_ranking_that_is_half_typed_is_kept(store: RatingsStore) -> None:
    store.settings.ask(Questionnaire())
    store.add_item([{"role": "user", "content": "r"}], [{"text": t} for t in ("one", "two", "three")], kind="rank")

    async def half(pilot: Pilot) -> None:
        await press(pilot, "2", "=", "3", "c", *"hm", "enter")

    async def rest(pilot: Pilot) -> None:
        assert "2 = 3" in text(pilot) and "[comment]" in text(pilot) and "still here" in text(pilot)
        await press(pilot, "1", "enter")

    drive(store, half)
    drive(store, rest)
    rating = store.ratings()[0]
    assert [rating.ranks[place] for place in rating.order_shown] == [2, 1, 1] and rating.comment == "hm"  # type: ignore[index]


def test_answers_to_questions_that_changed_meanwhile_are_dropped(store: RatingsStore) -> None:
    add_pair(store)
    sitting = Sitting(store, "ada")
    for key in ("2", "6", "1", "5"):
        sitting.press(key)
    sitting.tag("l")
    changed = {
        "attributes": (ALL.attributes[0], Attribute(name="true", ask="Which is true?", scale="pair")),
        "tags": {"l": "too short"},
    }
    store.settings.ask(ALL.model_copy(update=changed))
    again = Sitting(store, "ada")
    assert again.draft.given == [2] and again.draft.tags == [] and "2 of 3: Which is true?" in again.question


def test_a_draft_that_cannot_be_written_is_told_and_loses_nothing(store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pair(store)
    sitting = Sitting(store, "ada")

    def full(*_: object) -> None:
        raise UserError("ratings.db: database or disk is full")

    with monkeypatch.context() as context:
        context.setattr(store.drafts, "keep", full)
        sitting.press("2")
    assert sitting.said.endswith("It is not on disk yet: ratings.db: database or disk is full") and sitting.failed
    assert sitting.question.startswith("2 of 6")
    sitting.press("6")
    assert Sitting(store, "ada").question.startswith("3 of 6")


def test_a_draft_goes_with_its_item(store: RatingsStore) -> None:
    """Saved, skipped or forgotten: nothing of it stays, and a late one is none."""
    add_pair(store)
    add_pair(store, 1)
    for leave in (lambda sitting: sitting.press("3"), lambda sitting: sitting.skip()):
        sitting = Sitting(store, "ada")
        late = sitting.assignment
        for key in "26151":
            sitting.press(key)
        sitting.comment("a word that nobody else says")
        leave(sitting)
        assert late is not None and store.drafts.of(late) == {}
        store.drafts.keep(late, {"comment": "late"})
        assert store.drafts.of(late) == {}
    add_pair(store, 2)
    Sitting(store, "ada").comment("a word that nobody else says")
    store.people.forget("ada")
    assert b"a word that nobody" not in store.path.read_bytes()
