"""Question lists in Markdown and HTML, and pages as documents."""

import pytest

from alignment.config.sections import DataConfig
from alignment.data.importers import sectioned_text
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.records import Document
from alignment.data.row_files import DataError


def pairs(path, text):
    path.write_text(text)
    records = read_records(path, to_examples, DataConfig(train="unused", format="faq"))
    return [(r.messages[0]["content"], r.messages[1]["content"]) for r in records.items], records


PAIRS = [("When do you open?", "At nine."), ("Where is the saw?", "Left of the door.")]

MARKDOWN = {
    "atx": "# Help\n\n## When do you open? ##\nAt nine.\n\n## Where is the saw?\n\nLeft of the door.\n",
    "setext": "Help\n====\n\nWhen do you open?\n---\nAt nine.\n\nWhere is the saw?\n---\n\nLeft of the door.\n",
    "bold": "# Help\n\n**When do you open?**\n\nAt nine.\n\n__Where is the saw?__\nLeft of the door.\n",
    "bold, marked": "**Q: When do you open?**\n\nA: At nine.\n\n**Q2. Where is the saw?** **A:** Left of the door.\n",
    "marked": "Q: When do you open?\nA: At nine.\n\nQ: Where is the saw?\n\nA: Left of the door.\n",
    "details": "<details><summary>When do you open?</summary>\nAt nine.\n</details>\n\n"
    "<details>\n<summary>Where is <b>the</b> saw?</summary>\n\nLeft of the door.\n\n</details>\n",
    "items": "- When do you open?\n  At nine.\n- **Where is the saw?**\n\n  Left of the door.\n",
    "front matter": "---\ntitle: Help\n---\n# When do you open?\nAt nine.\n# Where is the saw?\nLeft of the door.\n",
}


@pytest.mark.parametrize("style", MARKDOWN)
def test_each_style_of_markdown_is_read(tmp_path, style):
    assert pairs(tmp_path / "faq.md", MARKDOWN[style])[0] == PAIRS


def test_an_answer_is_kept_as_it_was_written(tmp_path):
    answer = "Bring:\n- a pen\n- *paper*\n\n````md\n```\n# no heading\n```\n````\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    found, _ = pairs(tmp_path / "faq.md", f"# What do I need?\n{answer}\n# Where?\nHere. **Not there?** No.\n")
    assert found == [("What do I need?", answer), ("Where?", "Here. **Not there?** No.")]


def test_an_answer_that_begins_with_a_letter_and_a_point_keeps_it(tmp_path):
    assert pairs(tmp_path / "faq.md", "# Who wrote it?\nA. Smith did.\n")[0] == [("Who wrote it?", "A. Smith did.")]


def test_text_below_no_question_is_left_out_and_said(tmp_path):
    _, records = pairs(tmp_path / "faq.md", "Welcome.\n\n" + MARKDOWN["details"] + "\nThat is all.\n")
    assert records.notes == [f"{tmp_path / 'faq.md'}: 2 texts that stand below no question are left out"]


HTML = {
    "headings": "<h1>Help</h1><h2>When do you open?</h2><p>At nine.</p><h2>Where is the saw?</h2><p>Left of the door.",
    "terms": "<dl><dt>When do you open?<dd>At nine.<dt><p>Where is the saw?</p></dt><dd><p>Left of the door.</p></dl>",
    "details": "<details><summary>When do you open?</summary>At <b>nine</b>.</details>"
    "<details><summary><h3>Where is the saw?</h3></summary><p>Left of\n the door.</p></details>",
    "bold": "<p><strong>When do you open?</strong></p><p>At nine.</p>"
    "<p><b>Q: Where is the saw?</b><br>Left of the door.</p>",
}


@pytest.mark.parametrize("style", HTML)
def test_each_style_of_html_is_read(tmp_path, style):
    page = f"<!doctype html><head><title>x</title><style>p {{}}</style></head><nav>menu</nav><body>{HTML[style]}</body>"
    assert pairs(tmp_path / "faq.html", page)[0] == PAIRS


def test_terms_in_a_row_share_the_answer_and_text_after_a_list_is_not_of_it(tmp_path):
    page = "<dl><dt>When?<dt>At what time?<dd>At nine.</dl><p>Imprint</p>"
    assert pairs(tmp_path / "faq.htm", page)[0] == [("When?", "At nine."), ("At what time?", "At nine.")]


TITLED = {
    "title above": "# FAQ\n\nWelcome.\n\n## {}\nAt nine.\n\n## {}\nLeft of the door.\n",
    "title beside": "# Our shop\n\nWelcome.\n\n# {}\nAt nine.\n\n# {}\nLeft of the door.\n",
    "list of links": "# Our shop\n\n- [{0}](#a)\n- [{1}](#b)\n\n## {0}\nAt nine.\n\n## {1}\nLeft of the door.\n",
    "contents": "## Contents\n\n1. {0}\n2. {1}\n\n## {0}\nAt nine.\n\n## {1}\nLeft of the door.\n",
    "list below a part": "## Going there\n\n1. {0}\n2. {1}\n\n## {0}\nAt nine.\n\n## {1}\nLeft of the door.\n",
    "bold": "# Help\n\nWelcome.\n\n**{}**\nAt nine.\n\n**{}**\nLeft of the door.\n",
}


@pytest.mark.parametrize("style", TITLED)
def test_titles_and_lists_of_questions_are_no_questions(tmp_path, style):
    found, records = pairs(tmp_path / "faq.md", TITLED[style].format(*(question for question, _ in PAIRS)))
    assert found == PAIRS
    assert records.notes == [f"{tmp_path / 'faq.md'}: 1 texts that stand below no question are left out"]


def test_headings_that_do_not_ask_are_questions_where_they_are_no_titles(tmp_path):
    found, _ = pairs(tmp_path / "faq.md", "# Shop\nOurs.\n## Hours\nNine to five.\n## Fees\n20 cents.\n")
    assert found == [("Hours", "Nine to five."), ("Fees", "20 cents.")]


@pytest.mark.parametrize("number", ["1. ", "12) ", "(3) ", "#4 ", "1.2 ", "2.1. "])
def test_numbers_of_questions_are_taken_off(tmp_path, number):
    page = f"## {number}When do you open?\nAt nine.\n\n## 3.5 mm jack or USB?\nBoth.\n\n## 2024: what is new?\nUs.\n"
    asked = ["When do you open?", "3.5 mm jack or USB?", "2024: what is new?"]
    assert [question for question, _ in pairs(tmp_path / "faq.md", page)[0]] == asked


def test_a_page_without_questions_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"faq\.md: no question with an answer below it; expected headings"):
        pairs(tmp_path / "faq.md", "Only text.\n")


PAGE = """<html><head><title>x</title></head><body><h1>Fees &amp; rules</h1><p>Late books<br>cost <i>20 cents</i>,
see <a href="https://example.org/fees">the list</a>.</p><ul><li>One<li>Two</ul><pre>a  b
 c</pre><script>no()</script><table><tr><th>Day</th><th>Hour</th></tr></table></body></html>"""
TEXT = """# Fees & rules

Late books
cost 20 cents, see the list (https://example.org/fees).

- One
- Two

```
a  b
 c
```

Day | Hour"""


def test_comments_are_left_out_and_those_without_end_take_no_quadratic_time(tmp_path):
    page = "<h1>When?</h1><!-- <p>not\nthis</p> -->At nine." + "<!--" * 50_000
    assert pairs(tmp_path / "faq.html", page)[0] == [("When?", "At nine.")]
    assert pairs(tmp_path / "faq.md", "# When?\nAt nine.\n\n<!-- not\nthis -->\n")[0] == [("When?", "At nine.")]


def test_a_page_is_a_document(tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    records = read_records(tmp_path, to_examples, DataConfig(train="unused"))
    assert records.items == [Document(TEXT)] and records.notes == []


def test_a_question_list_that_is_read_as_a_text_is_said(tmp_path):
    (tmp_path / "faq.md").write_text(MARKDOWN["bold"] + "\n**Who are you?**\n\nA library.\n")
    records = read_records(tmp_path / "faq.md", to_examples, DataConfig(train="unused"))
    assert len(records.items) == 1
    assert records.notes == [
        f"{tmp_path / 'faq.md'}: has 3 questions with answers; data.format=faq (--format faq) reads it as such"
    ]


def test_questions_become_headings_for_passages(tmp_path):
    (tmp_path / "faq.md").write_text("# Help\n\n" + MARKDOWN["details"] + "\nMore.\n")
    assert sectioned_text(tmp_path / "faq.md") == (
        "# Help\n\n###### When do you open?\n\nAt nine.\n\n"
        "###### Where is the saw?\n\nLeft of the door.\n\n# Help\n\nMore."
    )
    (tmp_path / "plain.md").write_text("# Help\n\n* a\n* b\n")
    assert sectioned_text(tmp_path / "plain.md") == "# Help\n\n* a\n* b\n"


def test_texts_of_windows_are_read_and_that_is_said(tmp_path):
    (tmp_path / "a.md").write_bytes("# Café\r\n\r\nThe café opens at nine.".encode("cp1252"))
    records = read_records(tmp_path, to_examples, DataConfig(train="unused"))
    assert records.items == [Document("# Café\n\nThe café opens at nine.")]
    assert records.notes == [f"{tmp_path / 'a.md'}: read as cp1252"]


FURNITURE = (
    "<header><h1>Shop</h1><nav><ul><li><a href='/'>Home</a></nav></header>",
    "<nav><ul><li><a href='/'>Home</a></li></ul></nav>",
    "<aside><ul><li>News</li></ul></aside>",
    "<script>let a = '<ul><li>';</script>",
    "<footer><ul><li>Imprint</li></ul><p>2024</p></footer>",
)


@pytest.mark.parametrize("furniture", FURNITURE)
def test_what_stands_around_a_page_is_no_part_of_it(tmp_path, furniture):
    page = "<h3>When do you open?</h3><p>At nine.</p><p>Not on Sundays.</p>"
    wanted = [("When do you open?", "At nine.\n\nNot on Sundays.")]
    assert pairs(tmp_path / "p.html", furniture + page)[0] == wanted
    assert pairs(tmp_path / "p.html", page + furniture)[0] == wanted
    assert pairs(tmp_path / "p.html", f"<head><title>FAQ</title><body>{furniture}<main>{page}</main>")[0] == wanted


def test_the_header_of_an_article_is_part_of_it(tmp_path):
    page = "<article><header><h3>When do you open?</h3></header><p>At nine.</p></article>"
    assert pairs(tmp_path / "p.html", page)[0] == [("When do you open?", "At nine.")]


def test_a_list_item_with_a_heading_is_a_section_and_lists_in_it_are_lists(tmp_path):
    asked = "<h3>What do you sell?</h3><p>Tools:</p><ul><li>Saws</li><li>Nails</li></ul><p>And wood.</p>"
    page = f"<ul><li>{asked}</li><li><h3>When?</h3><p>At nine.</p></li></ul>"
    assert pairs(tmp_path / "p.html", page)[0] == [
        ("What do you sell?", "Tools:\n\n- Saws\n- Nails\n\nAnd wood."),
        ("When?", "At nine."),
    ]
