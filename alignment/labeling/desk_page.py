"""The organiser's page of progress: what `alignment rate progress` prints, behind a link of its own."""

from __future__ import annotations

import os
from typing import Any

from alignment.labeling.desk import AGREEMENT, LABELER_COLUMNS, clock, labeler_cells, progress_lines
from alignment.ratings import RatingsStore
from alignment.ratings.progress import progress_of


def progress_page(db: str | os.PathLike[str], token: str) -> dict[str, Any] | None:
    """What the page shows; None if the token is not that of the organiser's link."""
    with RatingsStore(db) as store:
        if not store.desk.opens(token):
            return None
        found = progress_of(store)
    return {
        "at": clock(found["at"]),
        "lines": progress_lines(found),
        "warnings": found["warnings"],
        "columns": LABELER_COLUMNS,
        "rows": [labeler_cells(row, found["at"]) for row in found["labelers"]],
        "note": AGREEMENT,
    }
