"""What is checked before a row of a table of votes is read: marks, the order of answers, the direction of a scale."""

from __future__ import annotations

import re
from collections.abc import Collection

from alignment.data.importers import PassedOver
from alignment.data.keys import NO, known_key
from alignment.data.marks import marks_in, reason_of
from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.labeling.formats.fields import ending, filled, named_key, plain
from alignment.labeling.formats.reading import ImportOptions, Row
from alignment.labeling.formats.voting import CHOICES, meaning

HEEDED = ("out", "no_vote")
"""The effects of marks that leave a vote out."""
_ORDERS = ("displayed_left", "final_preference")
_BEST_FIRST = re.compile(
    r"\b1\s*(?:=|is|:|-)?\s*(?:the\s+)?(?:best|highest|excellent|sehr gut|am besten)|(?:best|sehr gut)\s*(?:=|:)\s*1\b",
    re.I,
)
_GRADES = ("note", "schulnote", "zensur", "rank", "place")


def check_direction(rating: str, options: ImportOptions) -> None:
    """Refuse ratings of which the lowest may be the best, unless the user said which end is.

    Raises:
        UserError: with the two options.
    """
    if options.scale is None and (_BEST_FIRST.search(rating) or plain(rating) in _GRADES):
        raise UserError(
            f"'{rating}' may have its best rating at the low end; say which end is which with --scale WORST..BEST: "
            "--scale 6..1 if 1 is the best of 6, --scale 1..6 if 6 is"
        )


def check_header(row: Row) -> None:
    """Pass over the two lines below the header of Qualtrics' files: the questions' texts, and their ids."""
    names = {plain(key): row[key] for key in row}
    is_qualtrics = "startdate" in names and "responseid" in names
    if is_qualtrics and (
        str(names["startdate"]).strip() in ("Start Date", "StartDate") or "ImportId" in str(names["startdate"])
    ):
        raise PassedOver("a header line of Qualtrics")
    if is_qualtrics and str(names.get("status", "")).strip().lower() in ("survey preview", "spam", "1", "8"):
        raise PassedOver(f"a preview or spam, by Qualtrics' status: {names['status']}")


def check_unmarked(row: Row, said: Collection[str], options: ImportOptions) -> None:
    """Refuse to read a vote that was taken out, that tests the labeler, or whose answers were shown in another order.

    Args:
        said: the keys that hold the vote and the labeler.

    Raises:
        PassedOver: it was taken out, or is a test; BadRow: it may mean the other answer.
    """
    known = {*options.columns.values(), *said, "chosen", "rejected"}
    rest = [key for key in row if key not in known]
    for marked in marks_in(row, rest):
        if marked.is_bad and marked.mark.effect in HEEDED:
            raise PassedOver(f"{reason_of(marked)}; a copy of the file without the column reads such votes too")
    choice = named_key(row, "choice", CHOICES, options)
    order = next((key for key in rest if (meant := known_key(key, "vote")) and meant.names[0] in _ORDERS), None)
    if choice and order and filled(row[order]) and str(row[order]).strip().lower() not in NO:
        word = plain(meaning(row[choice], options))
        if ending(word) in ("left", "right", "first", "second", "1", "2") or word in ("a", "b"):
            raise BadRow(
                f"'{order}' says in which order the answers were shown, and '{choice}' is {row[choice]!a}, a place; "
                "write who won by the name of its column there, or, if places mean the columns, take the column out"
            )
