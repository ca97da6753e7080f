"""Answers that were given elsewhere, into the ratings tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from alignment.errors import UserError
from alignment.ratings.file import RatingsFile
from alignment.ratings.questionnaire import as_seen, check_shape
from alignment.ratings.records import View, Why, check_answer, check_labeler, dense, dump
from alignment.ratings.rows import finish_rating, insert_rating, kind_and_count
from alignment.terminal import clean


class ImportedAnswer(TypedDict, total=False):
    """What may be known of an imported answer beside the choice, in item order; see `records.Rating`."""

    strength: int | None
    ranks: Sequence[int] | None
    score: int | None
    given: float | None
    order_shown: Sequence[int] | None
    seconds: float | None
    comment: str
    flags: Sequence[str]
    claimed_at: float | None
    done_at: float | None
    why: Why
    guideline: int | None
    questions: int | None
    view: View | None
    answers: Mapping[str, Any] | None


def import_answer(file: RatingsFile, item: int, labeler: str, choice: str, known: ImportedAnswer) -> bool:
    """Store an answer in item order, in one transaction; the same answer again changes nothing.

    Returns:
        Whether the answer is new.

    Raises:
        UserError: the item does not exist, the answer does not match it, or the labeler has given another answer.
    """
    check_labeler(labeler)
    answer: dict[str, Any] = {"choice": choice, **{name: known.get(name) for name in ("strength", "score", "given")}}
    why, ranks, order = known.get("why", "import"), known.get("ranks"), list(known.get("order_shown") or ())
    with file.transaction():
        kind, count = kind_and_count(file, item)
        check_answer(kind, count, choice, answer["strength"], ranks, answer["score"], answer["given"])
        if (order or why != "import") and sorted(order) != list(range(count)):
            raise UserError(f"order_shown {order} of item {item}: expected each of 0 to {count - 1} once")
        answers = known.get("answers") or {}
        check_shape(kind, count, answers)
        answer["ranks"] = None if ranks is None else dump(dense(ranks))
        answer["answers"] = dump(as_seen(answers, range(count))) if answers else None
        row = file.db.execute(
            "SELECT * FROM rating WHERE item = ? AND labeler = ? AND (why = 'repeat') = ?",
            (item, labeler, why == "repeat"),
        ).fetchone()
        if row is not None and row["done"]:
            if any(row[name] != value for name, value in answer.items()):
                raise UserError(
                    f"{file.path}: {labeler} has answered item {item} already, and otherwise ({row['choice']},"
                    f" found {choice}); the first answer is kept"
                )
            return False
        now = time.time()
        done_at = known.get("done_at")
        claimed_at = known.get("claimed_at")
        done_at = now if done_at is None else done_at
        rating = row["id"] if row is not None else insert_rating(file.db, item, labeler, [], why, 0.0)
        file.db.execute(
            "UPDATE rating SET order_shown = ?, why = ?, claimed_at = ? WHERE id = ?",
            (dump(order), why, done_at if claimed_at is None else claimed_at, rating),
        )
        answer |= {name: known.get(name) for name in ("seconds", "guideline", "questions", "view")}
        answer["comment"] = clean(known.get("comment", ""))
        answer["flags"] = dump([clean(flag) for flag in known.get("flags", ())])
        finish_rating(file.db, rating, answer, done_at)
        file.log(now, labeler, item, "import", answer | {"why": why})
        return True
