"""Question-answer pairs, what is wrong with a pair, and which of many are duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.data.duplicates import Sketches, folded
from alignment.qa.documents import Chunk
from alignment.qa.support import measure_support, numbers

MIN_SUPPORT = 0.7
"""Share of an answer's words that its passage must have. See docs/qa.md for what it lets through and what not."""


@dataclass(frozen=True)
class QAPair:
    """A question, its answer, the passage they are from, and who made them (`model`, `prompt_sha256`, `rating`)."""

    chunk: Chunk
    question: str
    answer: str
    maker: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """A row that every reader of demonstrations takes, and `data split` keeps together by `source_id`."""
        return {
            "prompt": self.question,
            "completion": self.answer,
            "source_id": self.chunk.sha256[:16],
            "file": self.chunk.file,
            "headings": list(self.chunk.headings),
            "passage_sha256": self.chunk.sha256,
            **self.maker,
        }


@dataclass(frozen=True)
class Dropped:
    """Something that did not become a pair: the reason, where, and what it looked like."""

    reason: str
    place: str
    example: str


def check_support(pair: QAPair, least: float) -> Dropped | None:
    """The pair as dropped where its passage has less than `least` of the answer's words, or lacks a number of it."""
    support = measure_support(pair.answer, pair.chunk.context)
    if support.missing_numbers:
        return drop(pair, "a number in the answer is not in the passage", f"[{', '.join(support.missing_numbers)}] ")
    if support.share < least:
        return drop(pair, "the passage has too few of the answer's words", f"[{support.share:.0%}] ")
    return None


def drop(pair: QAPair, reason: str, note: str = "") -> Dropped:
    return Dropped(reason, place(pair.chunk), f"{note}{pair.question} -> {pair.answer}")


def place(chunk: Chunk) -> str:
    """Where a passage stands, for people: `docs/guide.md: Install > Linux`."""
    return f"{chunk.file}: {' > '.join(chunk.headings)}" if chunk.headings else chunk.file


def drop_duplicates(pairs: Sequence[QAPair]) -> tuple[list[QAPair], list[Dropped]]:
    """Keep the first of each question, and of pairs whose questions and answers are both nearly equal.

    Nearly: sketches agree (alignment/data/duplicates.py) and the same numbers are in both, as "a page in 10 point" and
    "in 12 point" differ by little and ask for something else.
    """
    near = (Sketches(), Sketches())
    for pair in pairs:
        near[0].add(pair.question)
        near[1].add(pair.answer)
    alike = zip(near[0].labels().tolist(), near[1].labels().tolist(), strict=True)
    kept: list[QAPair] = []
    dropped: list[Dropped] = []
    asked: dict[str, str] = {}
    seen: set[tuple[Any, ...]] = set()
    for pair, labels in zip(pairs, alike, strict=True):
        question, answer = folded(pair.question), folded(pair.answer)
        key = (*labels, frozenset(numbers(question)), frozenset(numbers(answer)))
        if question in asked:
            same = asked[question] == answer
            dropped.append(drop(pair, "duplicate" if same else "the same question with another answer"))
        elif key in seen:
            dropped.append(drop(pair, "near duplicate"))
        else:
            asked[question] = answer
            seen.add(key)
            kept.append(pair)
    return kept, dropped
