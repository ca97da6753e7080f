"""What a format is, and what its reader is told beside the row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.labeling.entries import Entry, Rows, Stored

Row = Mapping[str, Any]
SIDES = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
ROLES = (
    "prompt", *SIDES, "completion", "completions", "chosen", "rejected", "choice", "strength", "rating", "ranks",
    "scores", "labeler", "comment", "seconds", "model", *(f"model_{side}" for side in SIDES),
)  # fmt: skip
"""What a column of a table of votes can be: the left sides of `--columns`."""


@dataclass(frozen=True)
class ImportOptions:
    """What the user said of a file.

    Attributes:
        columns: the file's key by what it is (`ROLES`).
        labels: what a word of the file means: a side (a, b), `tie`, `both bad`, `skip`, or a number.
        scale: the lowest and the highest rating that the labelers could give.
        worst_high: whether the highest is the worst, as in school grades; what is kept is turned round.
        labeler: who gave the votes that have no name.
        file: where the row stands.
        numbers: takes each number that was read as a choice without a label, and whether its meaning is certain.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: tuple[float, float] | None = None
    worst_high: bool = False
    labeler: str | None = None
    file: Path = Path()
    numbers: dict[str, bool] = field(default_factory=dict)

    def key(self, role: str, row: Row) -> str | None:
        """The key of the row that the user named for a role.

        Raises:
            BadRow: the row has no such key.
        """
        name = self.columns.get(role)
        if name is not None and name not in row:
            raise BadRow(f"no key '{name}', which --columns {role}={name} names; found {', '.join(map(str, row))}")
        return name


def assignments(text: str, option: str) -> dict[str, str]:
    """The pairs of `left=right,left=right`."""
    roles = "|".join(ROLES)
    pairs = [part.partition("=") for part in re.split(rf",(?=\s*(?:{roles})\s*=)", text)]
    if not all(left.strip() and right.strip() for left, _, right in pairs):
        raise UserError(f"{option} {text}: expected name=value, or several with commas between them")
    return {left.strip(): right.strip() for left, _, right in pairs}


def _labels(text: str) -> dict[str, str]:
    """The pairs of `word=meaning,word=meaning`; a part without `=` is the beginning of the next word, as in `4,5=5`."""
    found, word = {}, ""
    for part in text.split(","):
        left, sign, meaning = part.rpartition("=")
        if not sign:
            word += part + ","
            continue
        found[(word + left).strip()], word = meaning.strip(), ""
    if word or not all(found) or not all(found.values()):
        raise UserError(f"--labels {text}: expected name=value, or several with commas between them")
    return found


def import_options(
    columns: Sequence[str] = (), labels: Sequence[str] = (), scale: str | None = None, labeler: str | None = None
) -> ImportOptions:
    """The options of the command line.

    Raises:
        UserError: one of them cannot be read.
    """
    named = {role: key for text in columns for role, key in assignments(text, "--columns").items()}
    if unknown := [role for role in named if role not in ROLES]:
        raise UserError(f"--columns {unknown[0]}={named[unknown[0]]}: a column is one of {', '.join(ROLES)}")
    words = {word: ours for text in labels for word, ours in _labels(text).items()}
    limits, worst_high = None, False
    if scale is not None:
        low, dots, high = scale.partition("..")
        try:
            limits = (float(low), float(high))
        except ValueError:
            limits = (0.0, 0.0)
        worst_high = limits[0] > limits[1]
        limits = (min(limits), max(limits))
        if not (dots and float("-inf") < limits[0] < limits[1] < float("inf")):
            raise UserError(
                f"--scale {scale}: expected WORST..BEST, the worst and the best rating, as 0..100, or 6..1 for grades"
            )
    return ImportOptions(named, words, limits, worst_high, labeler)


Read = list[Entry | PassedOver]
"""The entries of a row, and the reason for each vote in it that is left out."""
Reader = Callable[[Row, ImportOptions], Read]


class FileFormat(NamedTuple):
    """How a format is read and written.

    Attributes:
        title: its name for people.
        read: reads a row, or raises BadRow (the row is wrong) or PassedOver (nothing was rated).
        recognises: whether a row has this format's keys.
        import_drops: in words, what does not come along.
        write: the rows of a store; None where the format is only read.
        export_drops: in words, what a written file has no room for.
        joins: whether rows on the same answers are votes on one item.
        used: the keys of a row that are read, where the others are listed; None where `import_drops` names them.
        asks: whether answers to questions come without the questions, which are then made of the answers.
    """

    title: str
    read: Reader
    recognises: Callable[[Row], bool]
    import_drops: str
    write: Callable[[Stored, Counter[str]], Rows] | None = None
    suffixes: tuple[str, ...] = ()
    export_drops: str = ""
    joins: bool = True
    used: Callable[[Row, ImportOptions], set[str]] | None = None
    asks: bool = False
