"""Documents and their passages: nothing lost, nothing doubled, code whole, headings kept."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import UserError
from alignment.qa.documents import SourceDocument, cut, parse_blocks, plain, read_documents

GUIDE = """\
---
title: The guide
---
Before any heading.

# Guide

## Install `now` ##

Get it:

1. Download *it*
   and wait.
2. Run it.

```sh
# not a heading
run --fast
```

Fees and
dues
----
A fee is due.
<!-- # not
a heading -->

### C#
Last words.
"""
LINES = (
    *("# One", "## Two ##", "###Three", "Text.", "  more text", "Under", "===", "---", "--", "- item", "  - deeper"),
    *("7. seven", "", "", "```", "~~~~", "  ```py", "> quote", "| a | b |", "|---|", "<!-- note", "end -->", "\t"),
    *("é 猫\u2028 x", "* * *"),
)
TEXTS = st.one_of(st.lists(st.sampled_from(LINES), max_size=30).map("\n".join), st.text(max_size=300))


@given(TEXTS, st.integers(1, 60))
def test_the_passages_joined_are_the_document(text: str, size: int) -> None:
    assert "".join(block.text for block in parse_blocks(text)) == text
    chunks = cut(SourceDocument("a.md", text), size)
    assert "".join(chunk.text for chunk in chunks) == text
    for chunk in chunks:
        assert len(chunk.body) <= size or any(block.kind == "code" for block in chunk.blocks)


WORDS = st.lists(st.sampled_from(["one", "two,", "three.", "Four?"]), min_size=1, max_size=40).map(" ".join)
FENCED = st.lists(st.sampled_from(["# x", "", "y = 1", "- z", "---"]), max_size=8).map(
    lambda lines: "\n".join(["```", *lines, "```"])
)


@given(st.lists(st.tuples(st.booleans(), WORDS, FENCED), max_size=8), st.integers(10, 200))
def test_fenced_code_is_never_parted_nor_read_as_headings(parts: list[tuple[bool, str, str]], size: int) -> None:
    pieces = [piece for number, (_, words, code) in enumerate(parts) for piece in (f"# H{number}", words, code)]
    chunks = cut(SourceDocument("a.md", "\n".join(pieces)), size)
    assert [b.title for chunk in chunks for b in chunk.blocks if b.level] == [f"H{n}" for n in range(len(parts))]
    found = [block.text.rstrip("\n") for chunk in chunks for block in chunk.blocks if block.kind == "code"]
    assert found == [code for _, _, code in parts]


def test_a_document_is_cut_at_its_headings_and_keeps_their_path() -> None:
    chunks = cut(SourceDocument("docs/guide.md", GUIDE))
    assert [(chunk.headings, chunk.body.split("\n")[0]) for chunk in chunks] == [
        ((), "Before any heading."),
        (("Guide",), ""),
        (("Guide", "Install now"), "Get it:"),
        (("Guide", "Fees and dues"), "A fee is due."),
        (("Guide", "Fees and dues", "C#"), "Last words."),
    ]
    assert {chunk.title for chunk in chunks} == {"Guide"} and chunks[0].file == "docs/guide.md"
    assert chunks[4].context == "Guide > Fees and dues > C#\n\nLast words."
    assert [(b.kind, b.plain) for b in chunks[2].blocks if b.kind in ("paragraph", "item")] == [
        ("paragraph", "Get it:"),
        ("item", "Download it and wait."),
        ("item", "Run it."),
    ]


def test_long_code_stays_with_its_heading_and_by_itself() -> None:
    chunks = cut(SourceDocument("a.md", "# A\n\n```\nlong code\n```\n\nText."), 9)
    assert [chunk.text for chunk in chunks] == ["# A\n\n```\nlong code\n```\n\n", "Text."]


def test_a_long_section_is_parted_between_paragraphs_and_a_long_paragraph_between_sentences() -> None:
    paragraphs = [
        "A first short paragraph.",
        "One sentence here. Another sentence there. A third one, at the end.",
        "Last.",
    ]
    chunks = cut(SourceDocument("a.md", "# Title\n\n" + "\n\n".join(paragraphs)), 45)
    assert [chunk.body for chunk in chunks] == [
        "A first short paragraph.",
        "One sentence here. Another sentence there.",
        "A third one, at the end.\n\nLast.",
    ]
    assert all(chunk.headings == ("Title",) for chunk in chunks)


def test_a_passage_is_known_by_its_headings_and_body_wherever_it_stands() -> None:
    first, second = (
        cut(SourceDocument(name, f"# A\n\n{text}\n"))[0] for name, text in (("x.md", "Same."), ("y.md", "Same.\n"))
    )
    other = cut(SourceDocument("x.md", "# B\n\nSame.\n"))[0]
    assert first.sha256 == second.sha256 != other.sha256


@pytest.mark.parametrize(
    ("marked", "said"),
    [
        ("**Bold** and *slanted* and __strong__ and _soft_", "Bold and slanted and strong and soft"),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name"),
        ("`a_b*c*` stays, [a link](http://x.org/a_b_c 't') too", "a_b*c* stays, [a link](http://x.org/a_b_c 't') too"),
        ('[a link](http://x.org/a_b_c "t") and ![alt](i.png) and [ref][1]', "a link and alt and ref"),
        ("over\nlines   and \\*escaped\\*", "over lines and *escaped*"),
        ("> quoted\n> text", "quoted text"),
        ("from 9 - 5", "from 9 - 5"),
    ],
)
def test_plain_text_has_no_marks(marked: str, said: str) -> None:
    assert plain(marked) == said


def test_marks_that_never_close_take_no_quadratic_time() -> None:
    for text in ("**a " * 20_000, "[" * 50_000, "# " + " " * 50_000 + "x", "`" * 20_000 + "x", "_a" * 50_000):
        assert parse_blocks(text) and isinstance(plain(text), str)  # minutes, if it did


def test_a_folder_is_read_with_what_cannot_be_used_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "note.md").write_text("hidden")
    (folder / "b.md").write_text("\ufeffText b")
    (folder / "deep" / "a.txt").write_text("Text a")
    (folder / "empty.md").write_text(" \n")
    (folder / "other.md").write_bytes(b"caf\xff")
    (folder / "picture.png").write_bytes(b"\x89")
    rows: list[object] = [{"text": "Row one"}, {"no": 1}, {"text": "\ud800"}, [1]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    documents, bad = read_documents([folder])
    assert [(d.file, d.text) for d in documents] == [
        ("docs/b.md", "Text b"),
        ("docs/deep/a.txt", "Text a"),
        ("docs/rows.jsonl:1", "Row one"),
    ]
    reasons = dict(bad)
    assert reasons["docs/empty.md"] == "empty" and "1: not UTF-8 (byte 0xff)" in reasons["docs/other.md"]
    assert set(reasons) == {"docs/empty.md", "docs/other.md", *(f"docs/rows.jsonl:{n}" for n in (2, 3, 4, 5))}


def test_no_documents_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.md").write_text("")
    for path, said in (
        (tmp_path, "no document to read"),
        (tmp_path / "x.md", "no such file"),
        (Path(__file__), "this file type is not supported"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            read_documents([path])
        assert "\n" not in str(caught.value)


def test_pages_and_question_lists_are_documents_with_a_passage_for_each_question(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<h1>Desk</h1><dl><dt>When do you open?<dd>At nine.</dl><p>Imprint</p>")
    (tmp_path / "b.md").write_text("# Desk\n\n<details><summary>Where?</summary>\nHere.\n</details>\n")
    (tmp_path / "c.md").write_text("# Desk\n\n**Q: Who?**\n\nA: Bo.\n")
    documents, bad = read_documents([tmp_path])
    passages = [(chunk.headings, chunk.body) for document in documents for chunk in cut(document) if chunk.body]
    assert passages == [
        (("Desk", "When do you open?"), "At nine."),
        (("Desk",), "Imprint"),
        (("Desk", "Where?"), "Here."),
        (("Desk", "Who?"), "Bo."),
    ]
    assert bad == []
