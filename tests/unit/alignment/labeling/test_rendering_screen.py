"""Markdown of answers in a terminal: what it looks like, and what no text can make of it."""

import io
import random
import unicodedata
from collections import Counter

import pytest
from helpers.rendered import hostile_markdown
from rich.console import Console, RenderableType

from alignment.labeling.rendering import screen
from alignment.labeling.rendering.reading import read

SAMPLE = """## Head

Some **bold** text with `code`, [a link](http://x.example) and $x_1$.

1. one
   - inner text that is long enough to be wrapped in a narrow box
2. two

> quoted
> lines

| a | b |
|---|--:|
| c | 12 |

```python
def f():
    return 1
```
"""


def printed(what: RenderableType, width: int, colours: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colours, markup=False, highlight=False, emoji=False,
                      color_system="truecolor" if colours else None)  # fmt: skip
    console.print(what)
    return out.getvalue()


def lines(text: str, width: int = 60) -> list[str]:
    tokens = read(text)
    assert tokens is not None
    return [line.rstrip() for line in printed(screen.blocks(tokens), width).splitlines()]


def test_what_markdown_looks_like() -> None:
    assert lines(SAMPLE, 40) == [
        "Head",
        "",
        "Some bold text with code, a link",
        "(http://x.example) and $x_1$.",
        "",
        "1. one",
        "   • inner text that is long enough to",
        "     be wrapped in a narrow box",
        "2. two",
        "",
        "▌ quoted",
        "▌ lines",
        "",
        "a    b",
        "──────",
        "c   12",
        "",
        "python",
        " def f():",
        "     return 1",
    ]


def test_styles_and_colours() -> None:
    tokens = read(SAMPLE)
    assert tokens is not None
    shown = printed(screen.blocks(tokens), 60, colours=True)
    for styled in ("\x1b[1mbold\x1b[0m", "\x1b[1;4mHead\x1b[0m"):
        assert styled in shown
    keyword = "\x1b[38;2;199;146;234;48;2;38;43;49mdef\x1b[0m"
    assert keyword in shown


def test_a_table_with_no_room_for_its_columns_is_shown_in_lines() -> None:
    text = "|" + "|".join("abcdefgh") + "|\n" + "|-" * 8 + "|\n|" + "|".join("12345678") + "|"
    assert lines(text, 30) == ["a | b | c | d | e | f | g | h", "1 | 2 | 3 | 4 | 5 | 6 | 7 | 8"]
    assert "a   b   c" in lines(text, 80)[0]


def test_a_tab_in_a_cell_does_not_break_it() -> None:
    assert lines("|a\tb|c|\n|-|-|\n|d|e|", 80)[0] == "a    b   c"


def test_deep_nesting_leaves_room_for_the_text() -> None:
    for mark in ("> ", "- "):
        shown = lines(mark * 9 + "innermost words that are to be read", 30)
        assert (
            " ".join(" ".join(shown).replace("▌", "").replace("•", "").split()) == "innermost words that are to be read"
        )
        assert all(len(line) <= 30 for line in shown)


def test_a_conversation_has_its_roles_and_plain_messages_as_they_are() -> None:
    messages = [{"role": "sys\x1btem", "content": "plain  [bold]text[/]"}, {"role": "user", "content": "**a**"},
                {"role": "user", "content": " "}]  # fmt: skip
    shown = printed(screen.conversation(messages, [read(message["content"]) for message in messages]), 60)
    assert [line.rstrip() for line in shown.splitlines()] == [
        "SYS␛TEM  plain  [bold]text[/]", "", "USER", "a", "", "USER  (empty)",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_hostile_strings_are_text_and_whole_at_any_width(count: int) -> None:
    rng = random.Random(count)
    for _ in range(count):
        text, words = hostile_markdown(rng)
        tokens = read(text)
        if tokens is None:
            continue
        wide, narrow = (printed(screen.blocks(tokens), width) for width in (4000, 28))
        assert not any(
            unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in set(wide + narrow) - {"\n"}
        ), text
        at = 0
        for word in words:
            at = wide.find(word, at) + len(word)
            assert at >= len(word), (word, text)
        letters = [Counter(each for each in shown if each.isalnum()) for shown in (wide, narrow)]
        assert letters[0] == letters[1], text
