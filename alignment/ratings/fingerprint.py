"""The fingerprint of a ratings file in the manifests of models that are trained on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from alignment.ratings.file import LEARNED, RatingsFile
from alignment.ratings.people import People
from alignment.ratings.records import digest, dump


def fingerprint_of(file: RatingsFile, people: People, labelers: Collection[str] | None = None) -> dict[str, Any]:
    """Counts and digests of the ratings that training reads, and whether any labeler is simulated. The votes on an
    item with a verdict are among them: they say how much it weighs, and who agrees.

    Args:
        labelers: the names of those whose ratings are used; None: everybody's.

    `ratings`, `items` and `labelers` are counts. `sha256` covers the rated texts and the answers, regardless of their
    order and of who gave them. `database` and `rating_ids` (as "1-40,42") identify the rows and their file.
    `labeler_hashes` counts ratings by labeler; see `People.labeler_hash`. `rewritten_by` counts the ratings with a
    rewritten answer by its author's hash, if there are any. `answered_by` counts rated items by the model
    that wrote a completion.
    """
    counted = f"done AND choice <> 'skip' AND {LEARNED}"
    if labelers is not None:
        counted += " AND labeler IN (SELECT value FROM json_each(:labelers))"
    values = {"labelers": dump(sorted(labelers or ()))}
    rows = file.db.execute(
        "SELECT rating.id, item.key, item, labeler, why, choice, strength, ranks, score, given, answers FROM rating"
        f" JOIN item ON item.id = rating.item WHERE {counted} ORDER BY rating.id",
        values,
    ).fetchall()
    names = ("key", "choice", "strength", "ranks", "score")
    answers = [
        [*map(row.__getitem__, names), *(row[name] for name in ("given", "answers") if row[name] is not None)]
        + ["verdict"] * (row["why"] == "verdict")
        for row in rows
    ]
    counts = Counter(row["labeler"] for row in rows)
    models = file.db.execute(
        "SELECT json_extract(value, '$.model') AS model, count(DISTINCT item.id) AS items"
        " FROM item, json_each(item.completions) WHERE model IS NOT NULL AND EXISTS (SELECT 1 FROM rating"
        f" WHERE rating.item = item.id AND {counted}) GROUP BY model ORDER BY model",
        values,
    ).fetchall()
    rewrites = Counter(row["labeler"] for row in rows if row["answers"] and "rewrites" in json.loads(row["answers"]))
    rewritten_by = {people.labeler_hash(name): count for name, count in sorted(rewrites.items())}
    simulated = people.simulated() if labelers is None else people.simulated().intersection(labelers)
    return {
        "ratings": len(rows),
        "items": len({row["item"] for row in rows}),
        "labelers": len(counts),
        # The answer to a pair has the form of schema 1, so that old digests stay valid.
        "sha256": digest(sorted(dump(answer[:3] if answer[3:] == [None, None] else answer) for answer in answers)),
        "simulated": bool(simulated),
        "database": file.meta("database", ""),
        "rating_ids": _ranges([row["id"] for row in rows]),
        "labeler_hashes": {people.labeler_hash(name): count for name, count in sorted(counts.items())},
        "answered_by": {row["model"]: row["items"] for row in models},
        **({"rewritten_by": rewritten_by} if rewritten_by else {}),
    }


def _ranges(ids: Sequence[int]) -> str:
    """Ascending ids as a string of ranges: "1-40,42"."""
    ranges: list[list[int]] = []
    for rating_id in ids:
        if ranges and rating_id == ranges[-1][1] + 1:
            ranges[-1][1] = rating_id
        else:
            ranges.append([rating_id, rating_id])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
