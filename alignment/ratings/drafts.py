"""What a labeler has given to an open item so far, kept until the item is answered, so that a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment.ratings.file import RatingsFile
from alignment.ratings.records import Assignment, dump


class Drafts:
    """The drafts of the open items in one ratings file; `alignment.labeling.asking.Draft.kept` says what one holds."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    def keep(self, assignment: Assignment, draft: Mapping[str, Any]) -> None:
        """Keep a draft in place of the one before; it is on disk when this returns, and an empty one keeps nothing.

        An item that was answered meanwhile, for example in another window, has no draft any more.

        Raises:
            UserError: it cannot be written; the draft before stands.
        """
        with self._file.transaction():
            self._file.db.execute(
                "UPDATE rating SET draft = ? WHERE id = ? AND labeler = ? AND NOT done",
                (dump(draft) if draft else None, assignment.rating, assignment.labeler),
            )

    def of(self, assignment: Assignment) -> dict[str, Any]:
        """The draft of an assignment; empty if there is none."""
        row = self._file.db.execute(
            "SELECT draft FROM rating WHERE id = ? AND labeler = ?", (assignment.rating, assignment.labeler)
        ).fetchone()
        return json.loads(row["draft"]) if row and row["draft"] else {}
