"""The rating script in a real pseudo-terminal: keys, kills, hostile text."""

import json
import os
import re
import signal
import sqlite3
import termios
import time
from pathlib import Path

import pytest
from helpers.rate_script import Screen, fill, finished, open_screen

from alignment.ratings import RatingsStore

HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07 \x1b[2J\x1b[31m \x9b31m \x1b]0;title\x07 \x9d52;c;x\x9c \u202egnp.exe\u2066 "
    "[bold]b[/nope] [link=http://e.example]l[/link] :smile: \ud800 \x00\x08\r\x7f\u200b \U000e0041"
)


def test_the_screen_rates_and_says_where_one_is(screens: list[Screen], db: str) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada", columns=120)
    screen.ready("1 of 12")
    for done, key in enumerate(("1", "\x1b[D", "\x1bOC", "7", "4", "b"), 1):  # arrows in both of their spellings
        screen.rate(key, db)
        screen.ready(f"{done + 1} of 12, ~1 s each, under a minute left")
    with RatingsStore(db) as store:
        ratings = store.ratings()
    shown = ["right" if each.order_shown[0] else "left" for each in ratings if each.choice == "first"]
    shown_second = ["left" if each.order_shown[0] else "right" for each in ratings if each.choice == "second"]
    assert sorted(shown + shown_second) == ["left", "left", "right", "right"]
    assert [each.strength for each in ratings] == [3, 2, 2, 3, None, None]
    assert ratings[-1].flags == ("both_bad",)
    screen.press("u", "Taken back")
    assert len(finished(db)) == 5
    screen.press("q", "data.train=")
    assert screen.left() == 0
    assert "5 of 12 done. Everything is saved. Thank you, ada." in screen.plain()
    assert "secret" not in screen.output


def test_last_answer_can_be_taken_back_at_the_end(screens: list[Screen], tmp_path: Path) -> None:
    db = str(tmp_path / "two.db")
    with RatingsStore(db, create=True) as store:
        fill(store, 2, need=1)
    screen = open_screen(screens, "--db", db, "--labeler", "ada", "--json")
    screen.ready("1 of 2")
    screen.rate("1", db)
    screen.rate("1", db)
    screen.wait("That was the last one.")
    screen.press("u", "Taken back")
    assert len(finished(db)) == 1
    screen.settle()
    screen.rate("4", db)
    screen.press("q", "}")
    assert json.loads(screen.plain().splitlines()[-1]) == {"done": 2, "total": 2, "labeler": "ada", "db": db}
    assert screen.left() == 0 and finished(db)[-1][1] == "tie"


def test_kill_in_the_middle_loses_and_doubles_nothing(screens: list[Screen], db: str) -> None:
    acknowledged: list[tuple[int, str]] = []
    for session in range(3):
        screen = open_screen(screens, "--db", db, "--labeler", "ada")
        screen.ready(f"{4 * session + 1} of 12")
        acknowledged += [screen.rate("17b4"[i], db) for i in range(4)]
        screen.process.send_signal(signal.SIGKILL)
        assert screen.left() == -signal.SIGKILL
    assert finished(db) == acknowledged
    assert sorted(item for item, _ in acknowledged) == list(range(1, 13))


def test_kill_while_typing_resumes_at_the_same_item(screens: list[Screen], db: str) -> None:
    items = []
    for session in range(2):
        screen = open_screen(screens, "--db", db, "--labeler", "ada")
        shown = screen.ready("b both bad" if session else "both bad")
        items.append(re.search(r"question (\d+)\.", shown)[1])  # type: ignore[index]
        screen.press("c", "Keep")
        os.write(screen.master, b"half a comm")
        screen.wait("half a comm")
        screen.process.send_signal(signal.SIGKILL)
        screen.left()
    assert items[0] == items[1] and finished(db) == []


@pytest.mark.parametrize("stop", ["\x03", "\x04", "q", signal.SIGTERM, signal.SIGHUP])
def test_leaving_in_any_way_restores_the_terminal(screens: list[Screen], db: str, stop: str | signal.Signals) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada")
    screen.ready("1 of 12")
    screen.rate("1", db)
    assert termios.tcgetattr(screen.slave) != screen.before
    if isinstance(stop, signal.Signals):
        screen.process.send_signal(stop)
    else:
        os.write(screen.master, stop.encode())
    assert screen.left() == {signal.SIGTERM: 143, signal.SIGHUP: 129}.get(stop, 0)  # type: ignore[call-overload]
    assert "Traceback" not in screen.output and len(finished(db)) == 1
    assert screen.output.rindex("\x1b[?1049l") > screen.output.rindex("\x1b[?1049h")  # the other screen is left
    assert screen.output.rindex("\x1b[?25h") > screen.output.rindex("\x1b[?25l")  # and the cursor is back


def test_keys_typed_ahead_rate_nothing_unseen(screens: list[Screen], db: str) -> None:
    screen = open_screen(screens, "--db", db, "--labeler", "ada")
    os.write(screen.master, b"111")  # before there is any screen
    screen.ready("1 of 12")
    assert finished(db) == []
    with sqlite3.connect(db, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # holds the first save back, so that the other keys surely come before it ends
        os.write(screen.master, b"1")
        time.sleep(0.3)
        os.write(screen.master, b"111")
        time.sleep(0.3)
        other.execute("ROLLBACK")
    screen.wait("2 of 12")
    time.sleep(0.5)
    assert len(finished(db)) == 1


# What Textual itself sends: styles, positions, modes, questions to the terminal, and the shape of the mouse pointer.
ALLOWED = re.compile(
    r"\x1b(?:\[[0-9;]*[mH]|\[2J|\[\?(?:1049|1000|1003|1015|1006|25|1004|2004|2026|2048|7)[hl]"
    r"|\[\?(?:2026|2048)\$p|\[[>=<]\d*u|\]22;default\x07)"
)


@pytest.mark.parametrize("columns", [80, 140])
def test_hostile_text_is_shown_not_obeyed(screens: list[Screen], tmp_path: Path, columns: int) -> None:
    with RatingsStore(tmp_path / "h.db", create=True) as store:
        store.settings.guideline = HOSTILE
        store.add_item([{"role": HOSTILE[:9], "content": HOSTILE}], [{"text": HOSTILE}, {"text": ""}])
    db = str(tmp_path / "h.db")
    screen = open_screen(screens, "--db", db, "--labeler", "a[red]", columns=columns)
    screen.ready("What to prefer")
    screen.press("x", "j/k Scroll")
    screen.settle()
    screen.press("c", "Keep")
    os.write(screen.master, b"\x1b[200~\x1b]52;c;pasted\x07\x1b[201~")
    screen.wait("pasted")
    screen.press("\r", "The comment is kept")
    screen.rate("1", db, "a[red]")
    screen.press("q", "Thank you")
    assert screen.left() == 0
    rest = ALLOWED.sub("", screen.output)
    assert "\x1b" not in rest, re.findall(r"\x1b.{0,12}", rest)
    assert not set(rest) & set("\x00\x07\x08\x7f\x9b\x9c\x9d\u202e\u2066\u200b\U000e0041")
    shown = screen.plain()
    for text in ("␛]52;c;ZXZpbA==␇", "�gnp.exe�", "[bold]b[/nope]", "[link=http://e.example]", ":smile:", "(empty)"):
        assert text in re.sub(r"\s+", " ", shown) or text[:9] in shown  # a line may be broken within it
    with RatingsStore(db) as store:
        comment = store.ratings()[0].comment
        assert "]52;c;pasted" in comment and comment.isprintable()
