"""Parse handbook.md: pages, facts, questions, and the checkable values of a text.

Questions and clean answers are the pairs that `alignment data qa handbook.md --questions questions.jinja` makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alignment.qa.documents import SourceDocument, cut
from alignment.qa.questions import Questions

HANDBOOK = Path(__file__).with_name("handbook.md")
QUESTIONS = Path(__file__).with_name("questions.jinja")  # the template for `alignment data qa --questions`

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
NUMBER_WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "twenty": "20", "thirty": "30", "forty": "40", "fifty": "50",
    "hundred": "100", "thousand": "1000",
}  # fmt: skip
UNITS = ("am", "pm", "dollar", "cent", "year", "month", "week", "day", "hour", "minute", "item", "time", "people")

# "may" is usually the verb, so it is never read as a month.
_CALENDAR = re.compile(rf"\b({'|'.join([*DAYS, *(month for month in MONTHS if month != 'may')])})s?\b")
_QUANTITY = re.compile(rf"(\d+(?:[.:,]\d+)*)(?:\s*\b({'|'.join(UNITS)})s?\b)?")


@dataclass(frozen=True)
class Fact:
    """One fact: `answer` is the handbook's sentence without markup, `required` are its bold values."""

    id: str
    page: str
    answer: str
    required: tuple[str, ...]
    questions: tuple[str, ...]  # asked in demonstrations and rated prompts
    held_out_question: str


@dataclass(frozen=True)
class Handbook:
    """All facts in the handbook's order, and the values on each page, normalized as by `values_in`."""

    facts: tuple[Fact, ...]
    names: tuple[str, ...]  # bold values that are neither quantities nor calendar words, in lower case
    page_values: dict[str, frozenset[str]]

    def fact(self, fact_id: str) -> Fact:
        """The fact with an id; KeyError if there is none."""
        return {fact.id: fact for fact in self.facts}[fact_id]

    def values_in(self, text: str) -> list[str]:
        """Checkable values in reading order per kind: quantities ("21 day"), calendar words, the handbook's names."""
        return plain_values(text) + [name for name in self.names if re.search(rf"\b{re.escape(name)}\b", text.lower())]


def plain_values(text: str) -> list[str]:
    """Quantities and calendar words in the text, in singular: "2 dollars" is "2 dollar", "Mondays" is "monday".

    Number words from two on are read as digits. A number may have no known unit.
    """
    lowered = re.sub(r"\b[a-z]+\b", lambda word: NUMBER_WORDS.get(word[0], word[0]), text.lower())
    quantities = [" ".join(part for part in match if part) for match in _QUANTITY.findall(lowered)]
    return quantities + _CALENDAR.findall(lowered)


def parse_handbook(text: str) -> Handbook:
    """Parse the format that handbook.md describes in its own first paragraph."""
    facts = []
    asker = Questions(QUESTIONS.read_text(encoding="utf-8"), QUESTIONS.name)
    for passage in cut(SourceDocument(HANDBOOK.name, text)):
        pairs = asker.pairs(passage)
        if pairs:
            *_, page, fact_id = passage.headings
            *questions, held_out = (pair.question for pair in pairs)
            required = tuple(re.findall(r"\*\*(.+?)\*\*", passage.body))
            facts.append(Fact(fact_id, page, pairs[0].answer, required, tuple(questions), held_out))
    names = tuple(value.lower() for fact in facts for value in fact.required if not plain_values(value))
    unpaged = Handbook(tuple(facts), names, {})
    pages = dict.fromkeys(fact.page for fact in facts)
    values = {
        page: frozenset(value for fact in facts if fact.page == page for value in unpaged.values_in(fact.answer))
        for page in pages
    }
    return Handbook(tuple(facts), names, values)


@cache
def load_handbook() -> Handbook:
    """The parsed handbook.md beside this file."""
    return parse_handbook(HANDBOOK.read_text(encoding="utf-8"))
