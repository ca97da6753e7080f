"""Markdown of answers as HTML: what it looks like, and what no text can make of it."""

import contextlib
import random

import pytest
from helpers.rendered import Rendered, hostile_markdown

from alignment.labeling.rendering import highlighting, reading
from alignment.labeling.rendering.page import html
from alignment.labeling.rendering.reading import BeyondLimits, read, read_item
from alignment.terminal import clean


def rendered(text: str) -> str:
    tokens = read(text)
    assert tokens is not None, text
    return html(tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**a** *b* ~~c~~", '<p dir="auto"><strong>a</strong> <em>b</em> <s>c</s></p>'),
        ("a\n*b*", '<p dir="auto">a\n<em>b</em></p>'),  # a line of the text stays a line
        ("# a\n\n## b", '<h3 dir="auto">a</h3><h4 dir="auto">b</h4>'),
        ("#### a\n\n###### b\n\n# c", '<h3 dir="auto">a</h3><h4 dir="auto">b</h4><h3 dir="auto">c</h3>'),
        ("- a\n- b\n  1. c", '<ul dir="auto"><li>a</li><li>b<ol><li>c</li></ol></li></ul>'),
        ("3. a", '<ol dir="auto" start="3"><li>a</li></ol>'),
        ("> a", '<blockquote dir="auto"><p>a</p></blockquote>'),
        ("***", "<hr>"),
        ("`a<b`", '<p dir="auto"><code dir="ltr">a&lt;b</code></p>'),
        (r"\*a\*", '<p dir="auto">*a*</p>'),
        ("&lt;b&gt; &amp;", '<p dir="auto">&lt;b&gt; &amp;</p>'),
        ("*a* <b>c</b>", '<p dir="auto"><em>a</em> &lt;b&gt;c&lt;/b&gt;</p>'),
        ("*&#8238;*", '<p dir="auto"><em>\ufffd</em></p>'),  # turns the text that follows round
        (
            "[a](http://x.example)",
            '<p dir="auto"><span class="link">a</span> <span class="address" dir="ltr">(http://x.example)</span></p>',
        ),
        (
            '![a](http://x.example/b.png "t")',
            '<p dir="auto"><span class="link">a</span>'
            ' <span class="address" dir="ltr">(http://x.example/b.png &#34;t&#34;)</span></p>',
        ),
        ("<http://x.example>", '<p dir="auto"><span class="link">http://x.example</span></p>'),
        (
            "|a|b|\n|-|-:|\n|c|d|",
            '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table dir="auto"><thead><tr><th>a</th>'
            '<th class="right">b</th></tr></thead><tbody><tr><td>c</td><td class="right">d</td></tr></tbody></table>'
            "</div>",
        ),
        (
            "```\n<a>\n```",
            '<pre class="scroll" tabindex="0" role="group" aria-label="Code" dir="ltr"><code>&lt;a&gt;\n</code></pre>',
        ),
    ],
)
def test_what_markdown_looks_like(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "a\nb\n\n\nc", "2 * 3 * 4 = 24", "snake_case_name", "a < b && c > d", "<b>bold</b>", "costs $5",
     "#1", "[1]: http://x.example", "<|im_start|>user", "-5 degrees", "\u202e\x1b"],
)  # fmt: skip
def test_a_text_without_markdown_has_nothing_to_render(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize(
    "text", ["$a_b$", "$$\na_b\n\n", "$$\na_b\n- c\n$$.", "a $x*y$ *z*", r"\(a_1 * b_1\) *z*", "$$\na\n- b\n+ c\n$$",
             "text:\n$$\na_b * c_d\n$$\n*z*", "\\[\n\\begin{aligned}\na &= b_1 \\\\\n- c_1\n\\end{aligned}\n\\]",
             "\\begin{align*}\nx_1\n- y_1\n\\end{align*}", "> $$\n> a_b\n> $$", "- $$\n  a_b\n  $$",
             "$a\\$b_c$ and `$d`"]
)  # fmt: skip
def test_tex_keeps_its_source(text: str) -> None:
    """But for marks of quotes, lists, emphasis and code around it."""
    shown = Rendered(rendered(text + "\n\n**b**")).text
    for character in "_\\$&+[](){}":
        assert shown.count(character) == text.count(character), character


@pytest.mark.parametrize(
    ("text", "formulas"),
    [("$x$ and $y$.", ["$x$", "$y$"]), ("*a* $5 and $6 or $7", []), ("*a* $20/month vs. $30/month", []),
     ("*a* $ x $", []), ("*a* US$5, C$6", []), ("*a* $HOME and $PATH", []),
     ("`$x$`", []), ("*a* $$x$$", ["$$x$$"]), (r"*a* \$x$", [])],
)  # fmt: skip
def test_prices_are_no_formulas(text: str, formulas: list[str]) -> None:
    parts = rendered(text).split('<code class="tex" dir="ltr">')[1:]
    assert [part.partition("</code>")[0] for part in parts] == formulas


def test_code_is_coloured_by_the_language_that_it_names() -> None:
    code = "```Python title=x\ndef f():\n    return 'a'  # b\n```"
    shown = rendered(code)
    assert shown.startswith('<p class="info">Python title=x</p>')
    for kind, piece in (("keyword", "def"), ("defined", "f"), ("string", "&#39;a&#39;"), ("remark", "# b")):
        assert f'<span class="{kind}">{piece}</span>' in shown
    for plain in (code.replace("Python", "klingon"), code.replace("Python title=x", "")):
        assert "<span" not in rendered(plain)


@pytest.mark.parametrize("language", sorted(set(highlighting.LANGUAGES.values())))
def test_colours_change_no_character(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(language)
    pieces = [*"\n \t'\"\\#<{$a`日\ufffd", "\n\n", "def f(", "/*", "//", "1.e"]
    codes = ["".join(rng.choices(pieces, k=rng.randrange(30))) for _ in range(100)]
    for code in [*codes, "\n\nx", "x\n\n", ""]:
        assert "".join(text for _, text in highlighting.colored(code, language)) == code
    monkeypatch.setattr(highlighting, "MOST_SECONDS", -1.0)
    assert list(highlighting.colored("a = 1", language)) == [("", "a = 1")]  # no time: no colours, and no less text
    monkeypatch.setattr(highlighting, "MOST_CHARACTERS", 4)
    assert list(highlighting.colored("a = 1", language)) == [("", "a = 1")]


def test_a_lexer_that_drops_characters_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping:
        def get_tokens(self, code: str):
            yield from [(None, code[:2]), (None, code[3:])]

    monkeypatch.setattr(highlighting, "get_lexer_by_name", lambda *_, **__: Dropping())
    assert "".join(text for _, text in highlighting.colored("abcdef", "python")) == "abcdef"


def test_each_block_has_its_own_direction_and_code_runs_to_the_right() -> None:
    shown = rendered("## عنوان\n\nمرحبا `a = 1`\n\nEnglish *text*\n\n- أولا\n- b\n\n```\nx\n```\n\n|أ|\n|-|")
    starts = ['<h3 dir="auto">', '<p dir="auto">', '<ul dir="auto"><li>', '<table dir="auto">']
    assert all(start in shown for start in starts)
    assert shown.count('<p dir="auto">') == 2 and shown.count("<code") == shown.count('dir="ltr"') == 2


def test_cells_beyond_the_columns_are_not_dropped() -> None:
    """As readers of GitHub's Markdown would have them: an answer could hide a text there from who judges it."""
    for head in ("", "> ", "- "):
        inner = head.replace("-", " ")
        text = f"{head}|a|b|\n{inner}|-|-|\n{inner}|c|d|*e*|f\\|g|\n{inner}|h|\n{inner}|i|j|"
        shown = Rendered(rendered(text))
        assert shown.text == "abcd | e | f|ghij", head
        assert shown.tags.count("td") == 6


@pytest.mark.parametrize("mark", ["> ", "- ", "1. ", "> - "])
def test_nesting_is_whole_or_refused(mark: str) -> None:
    depths = []
    for depth in range(1, 60):
        text = "".join(mark if mark != "1. " else f"{n}. " for n in range(depth)) + "innermost"
        with contextlib.suppress(BeyondLimits):
            assert Rendered(rendered(text)).text == "innermost"
            depths.append(depth)
    assert depths == list(range(1, len(depths) + 1)) and 5 < len(depths) < 25


def test_marks_within_marks_are_limited() -> None:
    assert read("*a _b " * 9 + "c" + "b_ a*" * 9) is not None
    with pytest.raises(BeyondLimits, match=reading.TOO_DEEP):
        read("*a _b " * 500 + "c" + " b_ a*" * 500)


def test_an_item_is_rendered_as_a_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [{"role": "user", "content": "plain"}, {"role": "user", "content": "*a*"}]
    item = read_item(prompt, ["**b**", "c"])
    assert item.formatted and not item.note
    assert [tokens is None for tokens in (*item.prompt, *item.completions)] == [True, False, False, True]
    for texts, note in ((["*b*", "> " * 30 + "c"], reading.TOO_DEEP), (["*b*", "x" * 300_000], reading.TOO_LONG)):
        item = read_item(prompt, texts)
        assert (item.formatted, item.note, item.completions, item.prompt) == (False, note, [None] * 2, [None] * 2)

    def stumbles(*_):
        raise IndexError

    monkeypatch.setattr(reading, "read", stumbles)
    assert read_item(prompt, ["*b*"]).note == reading.TOO_HARD


def of_length(piece: str, length: int = 100_000) -> str:
    return piece * (length // len(piece))


BOMBS = {
    "cells": "a|" * 9000 + "\n" + "-|" * 9000 + "\n" + "a\n" * 20_000,
    "many cells": "a|" * 60 + "\n" + "-|" * 60 + "\n" + "a\n" * 40_000,
    "emphasis": "".join("*a _b " for _ in range(8000)) + "".join("b_ a* " for _ in range(8000)),
    "backticks": "".join("`" * n + "a" for n in range(1, 440)),
    "lists": "".join(" " * (2 * n) + "- a\n" for n in range(300)),
    "quotes": "".join(">" * n + " a\n" for n in range(1, 440)),
    "references": "[a]: <" + "x" * 50_000 + ">\n\n" + "[a]" * 15_000,
    "code": "```c\n" + "/" * 90_000 + "\n```",
} | {
    piece: of_length(piece)
    for piece in ("![", "[", "[a](", "[a](<b", "![a](", "*a* ", "a*", "***a", "a_b_", "*_", "**x *y", "_*a*_", "- a\n",
                  "- - a\n", "> a\n", "> ", "# a\n", "a\n", "$", "$$a\n", "\\[a\n", "\\(", "\\begin{a}\n", "<a:", "&a",
                  "~~a ", "```\n", "|", "a|b\n", "1. ", "\t- ", "- ", "*")
}  # fmt: skip
QUICK = ("cells", "quotes", "references")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BOMBS]
)
def test_a_bomb_is_refused_or_gives_no_more_than_a_few_times_its_size(name: str) -> None:
    """Steps and blocks are counted, so time is bounded too."""
    budget = reading.Budget()
    try:
        tokens = read(BOMBS[name], budget)
    except BeyondLimits:
        assert len(BOMBS[name]) <= reading.MOST_CHARACTERS
        return
    assert budget.steps >= 0
    if tokens is not None:
        shown = html(tokens)
        Rendered(shown)
        assert len(shown) < 12 * len(BOMBS[name])


def test_a_hundred_kilobytes_are_rendered_whole() -> None:
    part = "Word **{0}** and `code {0}`, [link {0}](http://x.example/{0}).\n\n- item {0}\n\n```python\nx = {0}\n```\n\n"
    text = "".join(part.format(number) for number in range(1100))
    assert len(text) > 100_000
    shown = Rendered(rendered(text))
    assert shown.tags.count("strong") == shown.tags.count("li") == shown.tags.count("pre") == 1100
    item = read_item([{"role": "user", "content": text}], [text, "short"])
    assert item.formatted and not item.note


@pytest.mark.parametrize("count", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_hostile_strings_give_no_element_beyond_the_list_and_hide_nothing(count: int) -> None:
    rng = random.Random(count)
    formatted = 0
    for _ in range(count):
        text, words = hostile_markdown(rng)
        tokens = read(text)
        if tokens is None:
            continue
        formatted += 1
        shown = html(tokens)
        assert clean(shown) == shown, text
        said, at = Rendered(shown).text, 0
        for word in words:
            at = said.find(word, at) + len(word)
            assert at >= len(word), (word, text)
    assert formatted > 0.8 * count


def test_the_oracle_finds_what_gets_through() -> None:
    attributes = ['onclick="x"', "class=tex", 'class="x"', 'style="x"', 'dir="auto" data-x', 'dir="auto" href="x"']
    bad = [f"<p {attribute}>y</p>" for attribute in attributes]
    bad += ["<img>", '<a href="x">y</a>', "<b>y</b>", "<p>y", "<p/>", "<!-- x -->", "<?x>", "<!DOCTYPE x>"]
    for text in bad:
        with pytest.raises((AssertionError, KeyError)):
            Rendered(text)
