"""Hostile strings on their way to a labeler: nothing of them may act on the terminal, and none may vanish.

What is looked at is what a terminal would get: the bytes of whole screens as Textual writes them, and of whole sittings
by lines.
"""

import asyncio
import io
import random
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from alignment.labeling import line_mode
from alignment.labeling.session import Sitting
from alignment.labeling.tui import RatingApp
from alignment.ratings import RatingsStore

MANY = 100_000
A_SCREEN = 500  # strings in an item
FRAGMENTS = (
    "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://e.example\x1b\\link\x1b]8;;\x1b\\", "\x1b]0;title\x07", "\x1b[2J",
    "\x1b[31m", "\x1bP1$r\x1b\\", "\x1b_apc\x1b\\", "\x1b^pm\x1b\\", "\x1bc", "\x1b[?1049l", "\x1b[6n", "\x1b",
    "\x9b2J", "\x9d52;c;x\x9c", "\x90dcs\x9c", "\x85", "\x8d", "\x00", "\x07", "\x08\x08\x08", "\x0b", "\x0c",
    "\x0e", "\r", "\x7f", "\u202egpj.exe\u202c", "\u2066\u2069", "\u200e\u200f", "\u061c", "\u200b", "\ufeff",
    "\u2028", "\u2029", "\U000e0041\U000e007f", "\ud800", "\udfff", "[bold red]x[/]", "[/nope]",
    "[link=http://e.example]y[/link]", "[@click=app.quit]z[/]", ":smile:", "<b>&amp;</b>",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "`rm`", "$left", "%s{}{0}", "猫", "é", "🏳️", "\t",
)  # fmt: skip
STYLE_OR_POSITION = re.compile(r"\x1b\[[0-9;]*[mH]")
KEPT = "\u200c\u200d"


def hostile(count: int, seed: int = 0) -> Iterator[str]:
    """Strings of fragments and of any characters there are, each with a number at its start."""
    rng = random.Random(seed)
    for number in range(count):
        parts = rng.choices(FRAGMENTS, k=3) + [chr(rng.randrange(sys.maxunicode + 1)) for _ in range(2)]
        rng.shuffle(parts)
        yield f"<{number}>" + "".join(parts).replace("\n", " ")


def fill(store: RatingsStore, strings: Sequence[str]) -> None:
    with store.transaction():
        for start in range(0, len(strings), A_SCREEN):
            part = strings[start : start + A_SCREEN]
            store.add_item([{"role": part[0], "content": part[-1]}], [{"text": "\n".join(part)}], kind="single")


def check(written: str, escapes: re.Pattern[str] | None) -> set[int]:
    """The numbers of the strings in what was written; fails on any character that a terminal obeys."""
    rest = escapes.sub("", written) if escapes else written
    bad = {
        character
        for character in set(rest)
        if character not in "\r\n" and character not in KEPT
        and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp", "Cf")
        and not ("\u0600" <= character <= "\u0605" or character in "\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
    }  # fmt: skip
    assert not bad, sorted(map(hex, map(ord, bad)))
    return {int(number) for number in re.findall(r"<(\d+)>", rest)}


@pytest.mark.parametrize("view", ["raw", "rendered"])
@pytest.mark.parametrize("count", [2_000, pytest.param(MANY, marks=pytest.mark.slow)])
def test_whole_screens_hold_hostile_strings_as_text(tmp_path: Path, count: int, view: str) -> None:
    strings = list(hostile(count))
    with RatingsStore(tmp_path / "h.db", create=True) as store:
        store.settings.repeat_share = 0.0
        fill(store, strings)
        store.settings.guideline = "\n".join(strings[:A_SCREEN])
        seen: set[int] = set()

        async def run() -> None:
            app = RatingApp(Sitting(store, "ada"))
            async with app.run_test(size=(118, A_SCREEN + 80)) as pilot:

                def written() -> str:
                    return app.screen._compositor.render_full_update().render_segments(app.console)

                await pilot.pause()
                assert len(check(written(), STYLE_OR_POSITION)) >= A_SCREEN  # the guideline
                app.pop_screen()
                while app.sitting.assignment is not None:
                    assert app.sitting.view == "rendered"
                    app.action_show(view)
                    await pilot.pause()
                    seen.update(check(written(), STYLE_OR_POSITION))
                    app.sitting.skip()
                    app.draw()

        asyncio.run(run())
    assert seen == set(range(count))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("count", [2_000, pytest.param(MANY, marks=pytest.mark.slow)])
def test_plain_lines_hold_hostile_strings_as_text(tmp_path: Path, count: int, terminal: bool) -> None:
    strings = list(hostile(count))
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, markup=False, highlight=False, emoji=False)
    with RatingsStore(tmp_path / "h.db", create=True) as store:
        store.settings.repeat_share = 0.0
        fill(store, strings)
        store.settings.guideline = strings[0]
        lines = iter(["?", *["s"] * (count // A_SCREEN)])
        line_mode.run(store, "ada", "random", lambda: next(lines, None), console)
    assert check(out.getvalue(), STYLE_OR_POSITION if terminal else None) == set(range(count))


def test_the_check_itself_finds_what_gets_through() -> None:
    for bad in ("\x1b]52;c;x\x07", "\x9b2J", "\x08", "\u202e", "\u2028", "\x1b[2J"):
        with pytest.raises(AssertionError):
            check(f"<1>{bad}", STYLE_OR_POSITION)
    assert check("<1>\x1b[1;31mred\x1b[3;4H", STYLE_OR_POSITION) == {1}
