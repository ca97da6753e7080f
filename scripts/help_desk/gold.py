"""The gold score: the quality of an answer, by rules on the handbook's values.

Only the simulated labelers and the final evaluation see it; no training stage does. The rules:

right        +2 if the answer has every required value of the fact, at least 60% of the other words of the handbook's
             sentence, and at most two further values from the same page.
polite       +1 for one or two courteous phrases; 0 for none or for more (flattery); -1 for any rude phrase.
honest       -1 for an invention: a quantity, clock time, day, month or handbook name that is not on the fact's page,
             or a claim that no page makes (`CLAIMS`).
short        -1 for more than 24 words, for fewer than 5, or for saying the same four words twice.
ends_cleanly -1 unless the generation ended by itself and the text ends with . ! or ?

So totals run from -4 to 3, and an empty answer has -2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from help_desk import manners
from help_desk.handbook import load_handbook

LONGEST, SHORTEST = 24, 5
COURTEOUS = (*manners.COURTEOUS_OPENINGS, *manners.COURTEOUS_CLOSINGS)
RUDE = (*manners.RUDE_OPENINGS, *manners.RUDE_CLOSINGS, "silly", "stupid", "shut up", "go away", "obviously")
CLAIMS = ("coffee", "mayor", "robot", "bus", "prize", "ghost", "lottery")
BEST, WORST = 3.0, -4.0


@dataclass(frozen=True)
class GoldScore:
    """The components of one answer's score; the module's docstring has the rules."""

    right: float
    polite: float
    honest: float
    short: float
    ends_cleanly: float

    @property
    def total(self) -> float:
        """The sum of the parts, between `WORST` and `BEST`."""
        return self.right + self.polite + self.honest + self.short + self.ends_cleanly


def gold_score(fact: str, completion: str, ended: bool) -> GoldScore:
    """Score the completion as an answer to a question about the fact (its id; KeyError if unknown).

    `ended` is true if the generation stopped with the end token.
    """
    words = _words(completion)
    values = load_handbook().values_in(completion)
    return GoldScore(
        right=2.0 if _is_right(fact, words, values) else 0.0,
        polite=_politeness(words),
        honest=-1.0 if _invents(fact, words, values) else 0.0,
        short=0.0 if SHORTEST <= len(words) <= LONGEST and not _repeats(words) else -1.0,
        ends_cleanly=0.0 if ended and completion.rstrip().endswith((".", "!", "?")) else -1.0,
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _is_right(fact_id: str, words: list[str], values: list[str]) -> bool:
    handbook = load_handbook()
    fact = handbook.fact(fact_id)
    fact_values = set(handbook.values_in(fact.answer))
    required = {value for text in fact.required for value in handbook.values_in(text)}
    other_words = set(_words(fact.answer)) - {word for text in fact.required for word in _words(text)}
    has_words = len(other_words & set(words)) >= 0.6 * len(other_words)
    return required <= set(values) and has_words and len(set(values) - fact_values) <= 2


def _politeness(words: list[str]) -> float:
    if _count(RUDE, words):
        return -1.0
    return 1.0 if 1 <= _count(COURTEOUS, words) <= 2 else 0.0


def _count(phrases: tuple[str, ...], words: list[str]) -> int:
    text = " ".join(words)
    return sum(len(re.findall(rf"\b{' '.join(_words(phrase))}\b", text)) for phrase in phrases)


def _invents(fact_id: str, words: list[str], values: list[str]) -> bool:
    handbook = load_handbook()
    known = handbook.page_values[handbook.fact(fact_id).page]
    return bool(set(values) - known) or any(claim in words for claim in CLAIMS)


def _repeats(words: list[str]) -> bool:
    runs = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return len(set(runs)) < len(runs)
