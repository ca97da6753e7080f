"""Question-answer pairs, the check of their support, and the removal of duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.data.duplicates import Sketches, folded
from alignment.data.word_support import measure_support, numbers
from alignment.qa.documents import Chunk

MIN_SUPPORT = 0.7
"""Minimum fraction of an answer's words that must be in its passage; docs/guides/qa.md has its limits."""


@dataclass(frozen=True)
class QAPair:
    """A question, its answer, their passage, and their provenance (`model`, `prompt_sha256`, `rating`)."""

    chunk: Chunk
    question: str
    answer: str
    maker: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """A demonstration row; `data split` keeps rows with the same `source_id` together."""
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
    """A rejected pair or reply: the reason, the place and an example."""

    reason: str
    place: str
    example: str


def check_support(pair: QAPair, min_support: float) -> Dropped | None:
    """The reason to drop a pair whose passage lacks too many of the answer's words or one of its numbers, or None."""
    support = measure_support(pair.answer, pair.chunk.context)
    if support.missing_numbers:
        return drop(pair, "a number in the answer is not in the passage", f"[{', '.join(support.missing_numbers)}] ")
    if support.share < min_support:
        return drop(pair, "the passage has too few of the answer's words", f"[{support.share:.0%}] ")
    return None


def drop(pair: QAPair, reason: str, note: str = "") -> Dropped:
    return Dropped(reason, place(pair.chunk), f"{note}{pair.question} -> {pair.answer}")


def place(chunk: Chunk) -> str:
    """The place of a passage: `docs/guide.md: Install > Linux`."""
    return f"{chunk.file}: {' > '.join(chunk.headings)}" if chunk.headings else chunk.file


def drop_duplicates(pairs: Sequence[QAPair]) -> tuple[list[QAPair], list[Dropped]]:
    """Keep the first pair of each question, and the first of pairs with nearly equal questions and answers.

    Texts are nearly equal if their sketches agree (alignment/data/duplicates.py) and their numbers do: "a page in 10
    point" and "a page in 12 point" are different questions.
    """
    sketches = (Sketches(), Sketches())
    for pair in pairs:
        sketches[0].add(pair.question)
        sketches[1].add(pair.answer)
    alike = zip(sketches[0].labels().tolist(), sketches[1].labels().tolist(), strict=True)
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
