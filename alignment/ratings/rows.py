"""Read and write single rows of the ratings tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.errors import UserError
from alignment.ratings.file import RatingsFile
from alignment.ratings.grading import graded_questions
from alignment.ratings.questionnaire import Questionnaire, as_seen
from alignment.ratings.records import (
    Assignment,
    Completion,
    Feedback,
    Gold,
    Item,
    Rating,
    Why,
    dump,
    flipped,
    is_right,
)


def item_from(row: sqlite3.Row) -> Item:
    """An item from its row."""
    return Item(
        **{name: row[name] for name in ("id", "key", "kind", "need", "created")},
        prompt=tuple(json.loads(row["prompt"])),
        completions=tuple(Completion(**fields) for fields in json.loads(row["completions"])),
        metadata=json.loads(row["metadata"]),
        gold=gold_from(row["gold"]),
    )


def rating_from(row: sqlite3.Row) -> Rating:
    """A finished rating from its row, joined with its item's kind."""
    names = ("id", "item", "labeler", "kind", "choice", "strength", "score", "given", "seconds", "comment", "why")
    return Rating(
        **{name: row[name] for name in (*names, "claimed_at", "done_at", "guideline", "questions", "view")},
        order_shown=tuple(json.loads(row["order_shown"])),
        ranks=tuple(json.loads(row["ranks"])) if row["ranks"] else None,
        flags=tuple(json.loads(row["flags"])),
        answers=json.loads(row["answers"]) if row["answers"] else None,
    )


def load_assignment(db: sqlite3.Connection, rating: int) -> Assignment:
    """The assignment of a claimed rating."""
    row = db.execute(
        "SELECT rating.item, labeler, item.kind, order_shown, prompt, completions, why,"
        " (SELECT max(version) FROM wording WHERE kind = 'guideline') AS guideline,"
        " (SELECT max(version) FROM wording WHERE kind = 'questions') AS questions"
        " FROM rating JOIN item ON item.id = rating.item WHERE rating.id = ?",
        (rating,),
    ).fetchone()
    order, completions = json.loads(row["order_shown"]), json.loads(row["completions"])
    return Assignment(
        rating=rating,
        item=row["item"],
        labeler=row["labeler"],
        kind=row["kind"],
        prompt=tuple(json.loads(row["prompt"])),
        completions=tuple(completions[index]["text"] for index in order),
        order_shown=tuple(order),
        why=row["why"],
        guideline=row["guideline"],
        questions=row["questions"],
    )


def load_feedback(
    db: sqlite3.Connection, assignment: Assignment, asked: Callable[[int | None], Questionnaire]
) -> Feedback | None:
    """The feedback after the answer to a calibration item; None for other items, or before the answer.

    Args:
        asked: the questions of a version.
    """
    row = db.execute(
        "SELECT rating.*, kind, gold FROM rating JOIN item ON item.id = rating.item"
        " WHERE rating.id = ? AND labeler = ? AND why = 'calibration' AND done AND gold IS NOT NULL",
        (assignment.rating, assignment.labeler),
    ).fetchone()
    if row is None:
        return None
    gold, order = gold_from(row["gold"]), assignment.order_shown
    assert gold is not None
    rating = rating_from(row)
    right = is_right(gold, rating.choice, rating.ranks, rating.score) if gold.chooses else rating.choice != "skip"
    questions = tuple(graded_questions(gold, rating, asked(rating.questions), order))
    if gold.choice is not None:
        gold = replace(gold, choice=flipped(gold.choice, order))
    if gold.ranks is not None:
        gold = replace(gold, ranks=tuple(gold.ranks[place] for place in order))
    if gold.attributes:
        gold = replace(gold, attributes=as_seen({"attributes": gold.attributes}, order)["attributes"])
    return Feedback(right and all(each.right for each in questions), gold, rating, questions)


def gold_from(text: str | None) -> Gold | None:
    """A gold answer from its JSON."""
    if text is None:
        return None
    fields = json.loads(text)
    lists = {name: None if fields.get(name) is None else tuple(fields[name]) for name in ("ranks", "tags")}
    return Gold(**fields | lists)


def kind_and_count(file: RatingsFile, item: int) -> tuple[str, int]:
    """An item's kind and number of completions. Raises UserError if there is no such item."""
    query = "SELECT kind, json_array_length(completions) AS count FROM item WHERE id = ?"
    row = file.db.execute(query, (item,)).fetchone()
    if row is None:
        raise UserError(f"{file.path}: no item {item}")
    return row["kind"], row["count"]


def last_done(db: sqlite3.Connection, labeler: str) -> float:
    """The time of the labeler's last answer; 0 if there is none."""
    row = db.execute("SELECT max(done_at) FROM rating WHERE labeler = ? AND done = 1", (labeler,)).fetchone()
    return float(row[0] or 0.0)


def insert_rating(
    db: sqlite3.Connection, item: int, labeler: str, order_shown: Sequence[int], why: Why, claimed_at: float
) -> int:
    """Insert a claimed rating and return its id."""
    rating = db.execute(
        "INSERT INTO rating(item, labeler, order_shown, why, claimed_at) VALUES(?, ?, ?, ?, ?)",
        (item, labeler, dump(order_shown), why, claimed_at),
    ).lastrowid
    assert rating is not None
    return rating


def finish_rating(db: sqlite3.Connection, rating: int, answer: Mapping[str, Any], done_at: float) -> None:
    """Write the answer of a claimed rating."""
    db.execute(
        "UPDATE rating SET choice = :choice, strength = :strength, ranks = :ranks, score = :score,"
        " given = :given, seconds = :seconds, comment = :comment, flags = :flags, guideline = :guideline,"
        " questions = :questions, view = :view, answers = :answers, done_at = :done_at, done = 1, draft = NULL"
        " WHERE id = :id",
        {**answer, "done_at": done_at, "id": rating},
    )
