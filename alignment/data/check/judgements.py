"""What a whole set of answers or judgements shows: answers that say nothing, ties, ratings that do not differ."""

from __future__ import annotations

import re
from collections.abc import Callable

from alignment.data.duplicates import digest
from alignment.data.records import Comparison, CompletionRating

_INVISIBLE = re.compile(
    r"[\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]+"
)
_NOTHING = frozenset(
    (
        "",
        "n/a",
        "na",
        "n.a.",
        "none",
        "null",
        "nil",
        "nan",
        "...",
        "…",
        ".",
        "-",
        "--",
        "—",
        "?",
        "tbd",
        "todo",
        "#n/a",
        "undefined",
    )
)
_HTML = re.compile(
    r"\A\s*<(p|div|ul|ol|table|span|h[1-6]|html|body|br|b|strong|em)\b[^>]*>|</(p|div|ul|ol|li)>|<br\s*/?>|&nbsp;", re.I
)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def says_nothing(answer: str) -> bool:
    """Whether an answer is empty to the eye: invisible characters, or a word for "nothing"."""
    return len(answer) < 64 and _INVISIBLE.sub("", answer).casefold() in _NOTHING


def is_html(answer: str) -> bool:
    """Whether an answer is written in HTML, outside of code."""
    return ("<" in answer or "&nbsp;" in answer) and _HTML.search(_CODE.sub("", answer)) is not None


class Judged:
    """Counts of comparisons and ratings, as `reward.data` uses them: ratings are compared by prompt and labeler.

    Args:
        see: is told the kind of a problem of one record.
    """

    def __init__(self, see: Callable[[str, str], None]) -> None:
        self._see = see
        self.num_pairs = self.num_ties = self.num_ratings = self.num_scored = 0
        self.values: set[float] = set()
        self.rated_pair = self.decided_pair = False
        """Whether two ratings give a pair, and one that is no tie."""
        self._first: dict[int, tuple[int, float]] = {}

    def add(self, record: Comparison | CompletionRating, group: str) -> None:
        """Count a record; `group` is the text of its prompt."""
        if isinstance(record, Comparison):
            self.num_pairs += 1
            self.num_ties += record.target == 0.5
            if record.scores is not None:
                self.num_scored += 1
                first, second = record.scores
                if (record.target > 0.5 and first < second) or (record.target < 0.5 and first > second):
                    self._see("scored_lower", record.place)
                elif first == second and record.target != 0.5:
                    self._see("scored_equal", record.place)
            return
        self.num_ratings += 1
        if len(self.values) < 1000:
            self.values.add(record.rating)
        completion = digest(record.completion)
        first_completion, rating = self._first.setdefault(
            digest(f"{group}\0{record.labeler}"), (completion, record.rating)
        )
        if completion != first_completion:
            self.rated_pair = True
            self.decided_pair |= rating != record.rating
