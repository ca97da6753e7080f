"""Measure lexical support of an answer by a passage: cheap and deterministic, but blind to paraphrase and negation.

Hallucinations mostly have words and numbers that are not in the passage. A judge may catch the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = (
    "a about after all also an and any are as at be because been before being between both but by can could "
    "did do does each either every for from had has have he her his how i if in into is it its may might more "
    "most must no nor not of on one only or other our own shall she should so some such than that the their "
    "them then there these they this those through to up was we were what when where which while who why will "
    "with would yes you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English function words, which are ignored. In other languages, function words count as content."""
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = (
    {word: str(value) for value, word in enumerate(_UNITS.split())}
    | {word: str(value) for value, word in zip(range(20, 100, 10), _TENS.split(), strict=True)}
    | {"hundred": "100", "thousand": "1000", "million": "1000000", "half": "0.5"}
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# Characters of scripts without spaces count as single words.
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힣]|(?:(?![぀-ヿ㐀-鿿가-힣])[^\W\d_])+")
_ENDINGS = ("ing", "ed", "es", "ly", "e", "s")


@dataclass(frozen=True)
class Support:
    """The fraction (`share`) of the answer's content words and numbers in the passage, and the missing numbers."""

    share: float
    missing_numbers: tuple[str, ...]


def measure_support(answer: str, passage: str) -> Support:
    """Measure how many of an answer's content words and numbers are in a passage.

    Distinct words are compared without case and common English endings (opens, opened); function words are ignored. A
    number in digits must be in the passage, in digits or as a word. An answer without content words and numbers
    ("Yes.") has share 0.
    """
    known_words, known_numbers = content_words(passage), numbers(passage)
    known_numbers |= {NUMBER_WORDS[word] for word in _words(passage) if word in NUMBER_WORDS}
    answer_words, answer_numbers = content_words(answer), numbers(answer)
    supported = {word for word in answer_words if word in known_words or NUMBER_WORDS.get(word) in known_numbers}
    missing = answer_numbers - known_numbers
    total = len(answer_words) + len(answer_numbers)
    share = (len(supported) + len(answer_numbers) - len(missing)) / total if total else 0.0
    return Support(share, tuple(sorted(missing)))


def content_words(text: str) -> set[str]:
    """Stems of the content words of a text."""
    return {_stem(word) for word in _words(text) if word not in FUNCTION_WORDS}


def numbers(text: str) -> set[str]:
    """The numbers written in digits: 1,000 is 1000, and 3.50 is 3.5."""
    return {_value(number) for number in _NUMBER.findall(text)}


def _words(text: str) -> list[str]:
    return _WORD.findall(re.sub(r"[’']s?\b", "", text.casefold()))


def _stem(word: str) -> str:
    if word in NUMBER_WORDS:
        return word
    ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    return word.removesuffix(ending)


def _value(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    if re.fullmatch(r"\d+\.\d+", number):
        number = number.rstrip("0").rstrip(".")
    return re.sub(r"^0+(?=\d)", "", number)
