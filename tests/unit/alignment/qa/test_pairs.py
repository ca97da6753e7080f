"""Pairs without a model, what a passage supports, and duplicates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.parsing import to_demonstration
from alignment.data.word_support import measure_support
from alignment.errors import UserError
from alignment.qa.documents import SourceDocument, cut
from alignment.qa.pairs import QAPair, check_support, drop_duplicates
from alignment.qa.questions import Questions, first_sentences

GUIDE = """\
# The desk

Opens at nine. A **ledger** is a book of accounts. It is heavy.

## Joining

Do this, in order:

1. Ask for a form.
2. Fill it in.

Then wait.

## Can I pay by card?

Yes, at the *front* desk.

## Words

- **Fee**: what is paid. Always.
- `loan` - a thing lent
- This is a test.

## Rooms

There are rooms.

- Maple
- Oak
"""


def asked(text: str, questions: Questions) -> list[tuple[str, str]]:
    return [(p.question, p.answer) for chunk in cut(SourceDocument("guide.md", text)) for p in questions.pairs(chunk)]


def test_headings_definitions_and_lists_become_questions() -> None:
    assert asked(GUIDE, Questions()) == [
        ('What is "The desk" about?', "Opens at nine. A ledger is a book of accounts. It is heavy."),
        (
            'What does "The desk" say about "Joining"?',
            "Do this, in order:\n1. Ask for a form.\n2. Fill it in.\n\nThen wait.",
        ),
        ('What are the steps of "Joining"?', "1. Ask for a form.\n2. Fill it in."),
        ("Can I pay by card?", "Yes, at the front desk."),
        (
            'What does "The desk" say about "Words"?',
            "- Fee: what is paid. Always.\n- loan - a thing lent\n- This is a test.",
        ),
        ("What is meant by Fee?", "Fee: what is paid."),
        ("What is meant by loan?", "loan: a thing lent"),
        ('What does "The desk" say about "Rooms"?', "There are rooms."),
        ('What are the points under "Rooms"?', "- Maple\n- Oak"),
    ]


def test_a_definition_is_told_from_a_sentence_about_this_or_that() -> None:
    def terms(text: str) -> list[str]:
        return [q for q, _ in asked(text, Questions('{% if kind == "definition" %}{{ term }}{% endif %}'))]

    assert terms("A **ledger** is a book of accounts. It is heavy.") == ["ledger"]
    assert terms("Quiet rooms are the ones upstairs.") == ["Quiet rooms"]
    assert terms("This is a test.\n\nThere is a lift.\n\nA card is free.\n\nIf it rains, that means trouble.") == []


def test_an_own_template_sees_the_passage_and_each_line_is_a_question() -> None:
    template = '{% if kind == "section" %}{% for item in items %}{{ item }}?\n\n{% endfor %}{% endif %}'
    source = "# Hours\n\nFrom **9 am** to 7 pm. Not on Sundays.\n- when do you open\n- when do you close\n"
    assert asked(source, Questions(template, sentences=1)) == [
        ("when do you open?", "From 9 am to 7 pm."),
        ("when do you close?", "From 9 am to 7 pm."),
    ]


def test_a_documents_own_braces_are_text() -> None:
    assert asked("# {{ 7 * 7 }}\n\n{% raw %}", Questions()) == [('What is "{{ 7 * 7 }}" about?', "{% raw %}")]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "q.jinja:1: not a Jinja template"),
        ("{{ headng }}", "q.jinja: 'headng' is undefined; the template's variables are answer, heading, headings"),
        ("{{ title.__class__.__mro__ }}", "q.jinja: access to attribute '__class__'"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        asked("# A\n\nText.", Questions(template, "q.jinja"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_sentences_end_where_the_next_begins() -> None:
    text = 'It costs 3.50 dollars, e.g. on Mondays. "Really?" Yes.'
    assert [first_sentences(text, count) for count in (1, 2, 9)] == [
        "It costs 3.50 dollars, e.g. on Mondays.",
        'It costs 3.50 dollars, e.g. on Mondays. "Really?"',
        text,
    ]


# --- support ------------------------------------------------------------------------------------------------------

PASSAGE = "The library opens at nine on weekdays. Late books cost 20 cents, damaged ones 1,500.50 dollars."


@pytest.mark.parametrize(
    ("answer", "share", "missing"),
    [
        ("The library opens at 9 on weekdays.", 1.0, ()),  # a number word in the passage is that number
        ("The library is opened at nine.", 1.0, ()),  # open, nine, library: an ending more or less
        ("A late book costs 20 cents.", 1.0, ()),
        ("A late book costs 21 cents.", 0.8, ("21",)),  # late, book, cost, cent of five
        ("It is 1500.5 dollars.", 1.0, ()),
        ("The museum closes at noon on weekdays.", 0.25, ()),  # museum, closes, noon are not there; weekdays is
        ("Yes.", 0.0, ()),  # nothing that could be found
        ("", 0.0, ()),
        ("007 dollars", 0.5, ("7",)),
    ],
)
def test_support_is_the_share_of_content_words_and_numbers_found(
    answer: str, share: float, missing: tuple[str]
) -> None:
    support = measure_support(answer, PASSAGE)
    assert support.share == pytest.approx(share) and support.missing_numbers == missing


def test_scripts_without_spaces_count_by_the_character() -> None:
    assert measure_support("図書館は九時", "図書館は九時に開く").share == 1.0
    assert measure_support("図書犬", "図書館").share == pytest.approx(2 / 3)


@given(st.text(max_size=80), st.text(max_size=80))
def test_a_text_supports_itself_whatever_stands_around_it(text: str, other: str) -> None:
    support = measure_support(text, f"{other} {text} {other}")
    assert support.share in (0.0, 1.0) and support.missing_numbers == ()


def pair(question: str, answer: str, text: str = PASSAGE) -> QAPair:
    return QAPair(cut(SourceDocument("a.md", text))[0], question, answer)


def test_an_unsupported_answer_is_dropped_with_the_reason() -> None:
    assert check_support(pair("When?", "At nine on weekdays."), 0.7) is None
    wrong = check_support(pair("How much?", "Late books cost 21 cents."), 0.7)
    assert wrong and "number" in wrong.reason and wrong.example == "[21] How much? -> Late books cost 21 cents."
    made_up = check_support(pair("Who?", "A robot brings coffee to the library."), 0.7)
    assert made_up and "words" in made_up.reason and made_up.place == "a.md"
    assert (
        check_support(pair("Which desk?", "The front desk.", "# Front desk\n\nPay here."), 0.7) is None
    )  # by its heading


# --- duplicates and rows ------------------------------------------------------------------------------------------


def test_the_first_of_duplicates_is_kept() -> None:
    long = "The reading room on the top floor opens at nine in the morning on every weekday of the year"
    kept, dropped = drop_duplicates(
        [
            pair("When does it open?", "At nine."),
            pair("when  does it OPEN?", "At Nine."),
            pair("When does it open?", "At ten."),
            pair("When does it close?", "At nine."),
            pair("When does the reading room on the top floor open to readers?", f"{long}."),
            pair("When does the reading room on the top floor open to reader?", f"{long}!"),
            pair("When does the reading room on the top floor 2 open to readers?", f"{long}."),
        ]
    )
    assert [p.question for p in kept] == [
        "When does it open?",
        "When does it close?",
        "When does the reading room on the top floor open to readers?",
        "When does the reading room on the top floor 2 open to readers?",
    ]
    assert [item.reason for item in dropped] == [
        "duplicate",
        "the same question with another answer",
        "near duplicate",
    ]


def test_a_row_is_a_demonstration_that_tells_its_source() -> None:
    chunk = cut(SourceDocument("docs/a.md", "# A\n\n## B\n\nText."))[1]
    row = QAPair(chunk, "Q?", "A.", {"model": "m@v1", "prompt_sha256": "0"}).to_row()
    assert [m["content"] for m in to_demonstration(row).messages] == ["Q?", "A."]
    assert row["file"] == "docs/a.md" and row["headings"] == ["A", "B"] and row["model"] == "m@v1"
    assert row["passage_sha256"].startswith(row["source_id"]) and len(row["source_id"]) == 16
