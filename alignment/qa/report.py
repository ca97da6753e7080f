"""The report of `alignment data qa`: documents, passages, pairs, dropped ones with reasons, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from alignment.generation.chat_models import Reply
from alignment.qa.pairs import Dropped
from alignment.terminal import clean, one_line

EXAMPLES = 3
_WIDTH = 160  # characters of an example


@dataclass
class QAReport:
    """Counts of one run. Prices are per million tokens, in any currency."""

    documents: int
    set_aside: list[tuple[str, str]]
    passages: int
    without_text: int
    repeated: int
    oversized: int
    price_in: float | None = None
    price_out: float | None = None
    made: int = 0
    kept: int = 0
    asked: int = 0
    replies: int = 0
    uncounted: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    failed: int = 0
    dropped: dict[str, list[Dropped]] = field(default_factory=dict)

    def add_dropped(self, dropped: Iterable[Dropped]) -> None:
        for item in dropped:
            self.dropped.setdefault(item.reason, []).append(item)

    def add_replies(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            self.replies += 1
            self.uncounted += reply.tokens_in is None or reply.tokens_out is None
            self.tokens_in += reply.tokens_in or 0
            self.tokens_out += reply.tokens_out or 0

    @property
    def cost(self) -> float | None:
        """The cost of all replies, including cached ones; None without a price."""
        if self.price_in is None and self.price_out is None:
            return None
        return (self.tokens_in * (self.price_in or 0) + self.tokens_out * (self.price_out or 0)) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """The report for --json."""
        return {
            "documents": {
                "read": self.documents,
                "set_aside": [{"place": place, "reason": reason} for place, reason in self.set_aside],
            },
            "passages": {
                "asked_about": self.passages,
                "without_text": self.without_text,
                "repeated": self.repeated,
                "over_chunk_size": self.oversized,
                "failed": self.failed,
            },
            "pairs": {"made": self.made, "kept": self.kept},
            "dropped": [
                {
                    "reason": reason,
                    "count": len(items),
                    "examples": [{"place": item.place, "text": item.example[:2000]} for item in items[:EXAMPLES]],
                }
                for reason, items in self._by_count()
            ],
            "replies": {"asked_now": self.asked, "used": self.replies, "without_token_counts": self.uncounted},
            "tokens": {"in": self.tokens_in, "out": self.tokens_out},
            "cost": self.cost,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report's lines for a terminal, safe to print."""
        yield f"documents  {self.documents} read, {len(self.set_aside)} set aside"
        for place, reason in self.set_aside[:EXAMPLES]:
            yield f"             {one_line(place)}: {one_line(reason)}"
        notes = {
            "without text": self.without_text,
            "repeated": self.repeated,
            "over the chunk size (long code)": self.oversized,
        }
        also = "".join(f", {count} {note}" for note, count in notes.items() if count)
        yield f"passages   {self.passages} asked about{also}"
        yield f"pairs      {self.kept} kept of {self.made} made"
        for reason, items in self._by_count():
            yield f"dropped    {len(items)}: {clean(reason)}"
            for item in items[:EXAMPLES]:
                yield f"             {one_line(item.place)}: {one_line(item.example[: 4 * _WIDTH])[:_WIDTH]}"
        if self.replies:
            money = "" if self.cost is None else f", cost {self.cost:.4f}"
            unknown = f" ({self.uncounted} replies came without a count)" if self.uncounted else ""
            yield f"tokens     {self.tokens_in} in, {self.tokens_out} out{unknown}{money}"
            yield f"replies    {self.asked} asked for now, {self.replies} used in all"

    def _by_count(self) -> list[tuple[str, list[Dropped]]]:
        return sorted(self.dropped.items(), key=lambda entry: (-len(entry[1]), entry[0]))
