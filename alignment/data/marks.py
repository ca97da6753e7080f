"""Marks with which people say that a row is not to be used: deleted, rejected, wrong, disliked, for tests, flagged.

A marked row is left out and counted, or warned of. `MARKS` is the vocabulary. A value that is none of its words says
nothing, and the key is listed as not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from alignment.data.keys import ANSWERED, NO, VOTED, YES, Changes, is_empty, plain_key, without
from alignment.data.opening import BadRow, PassedOver

Effect = Literal["out", "bad", "held_out", "flagged", "no_vote"]


@dataclass(frozen=True, eq=False)  # told apart by identity: its hash is taken for every row
class RowMark:
    """Keys with which people say that a row is not to be used.

    `bad_if`: a value that is true, or false, or filled (anything but a no), or one of `words`, says it. `effect`: the
    row is left out; its answer is bad, so no demonstration; it is kept for tests, or its contents were flagged (both
    are warned of); its vote is a test of the labeler. Keys are written as `plain_key` gives them.
    """

    bad_if: Literal["true", "false", "filled", "word"]
    effect: Effect
    about: str
    names: tuple[str, ...]
    pattern: str = ""
    words: frozenset[str] = frozenset()


_REFUSED_WORDS = frozenset((
    *("reject", "rejected", "declined", "denied", "refused", "deleted", "removed", "discarded", "excluded", "dropped"),
    *("invalid", "spam", "skip", "skipped", "bad", "draft", "fail", "failed", "failure", "error", "errored", "trash"),
    *("not_approved", "unapproved", "disapproved", "needs_work", "needs_changes", "changes_requested", "do_not_use"),
    *("archived", "blocked", "hidden", "withdrawn", "retracted", "aborted", "low_quality", "poor", "wrong", "ko"),
    *("unusable", "incorrect", "not_ok", "no", "nein", "abgelehnt", "verworfen", "entwurf", "gelöscht", "ungültig"),
    "very_poor",
    *("aborted_low_grade", "halted_by_moderator", "scoring_failed", "prompt_lottery_waiting", "backlog_ranking"),
    *("initial_prompt_review", "growing", "ranking"),
))  # fmt: skip
_DISLIKED = frozenset((
    *("negative", "thumbs_down", "thumb_down", "thumbsdown", "down", "downvote", "downvoted", "dislike", "disliked"),
    *("bad", "unhelpful", "not_helpful", "no", "wrong", "incorrect", "poor", "false", "0", "👎", "rejected", "fail"),
))  # fmt: skip
_TEST_PARTS = frozenset((
    *("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "held_out", "benchmark"),
))  # fmt: skip
MARKS = (
    RowMark(
        "true", "out", "a person took the row out",
        (
            *("deleted", "removed", "discard", "discarded", "skip", "skipped", "exclude", "excluded", "rejected"),
            *("spam", "hidden", "invalid", "bad", "unusable", "not_usable", "disabled", "blocked", "banned"),
            *("drop", "withdrawn", "retracted", "low_quality", "label_noise", "noisy", "mislabeled", "mislabelled"),
            *("corrupted", "corrupt"),
            *("broken", "opt_out", "opted_out", "failed", "has_error", "gelöscht", "abgelehnt", "ausgeschlossen"),
        ),
        r"(do_?not|dont|never)_(use|train|include|learn|publish)\w*"
        r"|(exclude|remove|drop|skip|omit|discard)d?_(from|in|for|on)_\w+",
    ),
    RowMark(
        "false", "out", "no: the row is not to be used",
        (
            *("valid", "include", "included", "keep", "kept", "use", "usable", "for_training", "train_ok", "can_train"),
            *("enabled", "active", "passed", "ok", "okay", "selected_for_training", "freigegeben", "gültig"),
            "verwenden",
        ),
        r"(use|used|include|included|keep|ok|okay|good|approved|ready|cleared|suitable|eligible|allowed|usable)_(for|in|to)"
        r"_(train|training|finetun\w*|fine_tun\w*|sft|use|dataset|data|model)\w*"
        r"|(qa|qc|review|quality)_?(ok|okay|passed|pass|approved)|(passed|passes|approved)_(by_)?(qa|qc|review|quality)\w*",
    ),
    RowMark(
        "filled", "out", "who took the row out, when or why",
        (),
        r"(deleted|removed|rejected|excluded|discarded|banned|skipped)_(by|at|on|because|for|reason)\w*"
        r"|(rejection|exclusion|removal|deletion|skip|reject|exclude|discard)_reason",
    ),
    RowMark(
        "word", "out", "what a review said of the row",
        ("status", "state", "review", "approval", "qa", "qc", "curation", "level", "quality_check", "tree_state"),
        r"(review|approval|moderation|qa|qc|annotation|record|row|curation|workflow|validation|quality|item|example|data)_"
        r"(status|state|result|decision|outcome)",
        _REFUSED_WORDS,
    ),
    RowMark(
        "false", "bad", "whether the answer is right",
        ("correct", "right", "helpful_answer"),
        r"(is|was|answer|response)_(is_)?(correct|right|helpful|good|acceptable)|judged_correct",
    ),
    RowMark(
        "true", "bad", "what is wrong with the answer",
        (
            *("wrong", "incorrect", "hallucination", "hallucinated", "hallucinates", "thumbs_down", "thumb_down"),
            *("disliked", "downvoted", "refusal_wrong"),
        ),
        r"(is|was|has|contains)_(wrong|incorrect|hallucinat\w+|disliked|downvoted|bad_answer)",
    ),
    RowMark(
        "word", "bad", "what a person thought of the answer",
        ("feedback", "thumbs", "thumb", "reaction"),
        r"(user|human|customer|annotator|expert|answer|response|message)_(feedback|thumbs?|reaction)"
        r"|feedback_(type|value|label|score|rating)|thumbs_rating",
        _DISLIKED | {"-1", "-1.0", "0.0"},
    ),
    RowMark("word", "bad", "a rating of plus or minus one", ("rating", "user_rating"), "", frozenset(("-1", "-1.0"))),
    RowMark(
        "word", "held_out", "the part of the data set",
        ("split", "set", "partition", "fold", "subset", "phase", "usage"),
        r"(data|dataset|train_test)_?(split|partition)",
        _TEST_PARTS,
    ),
    RowMark(
        "true", "held_out", "kept for tests",
        ("eval_only", "test_only", "holdout", "held_out", "hold_out"),
        r"(is|for|in)_(the_)?(test|eval|evaluation|holdout|held_out|validation|benchmark)(_(set|only|split))?",
    ),
    RowMark(
        "true", "flagged", "harmful contents",
        (
            *("toxic", "toxicity", "flagged", "nsfw", "unsafe", "harmful", "jailbreak", "jailbreaking", "offensive"),
            *("hateful", "moderation", "openai_moderation"),
        ),
        r"(is|has|contains)_(toxic|flagged|nsfw|unsafe|harmful|jailbreak|offensive|hateful|pii)|moderation_flagged",
    ),
    RowMark(
        "filled", "no_vote", "a test of the labelers",
        ("gold", "golden", "tainted", "honeypot", "attention_check", "control", "test_question", "practice"),
        r"(is|was)_(a_)?(gold|golden|tainted|honeypot|attention_check|control|test_question|practice|screening|qualification)"
        r"(_question|_item|_task)?|golden_\w+|is_(quality_control|initial_screening)_question",
    ),
)  # fmt: skip
"""The keys that mark rows. A value that is none of those above says nothing, and the key is listed as not used."""

_COMPILED = [(frozenset(mark.names), re.compile(mark.pattern or r"(?!)"), mark) for mark in MARKS]
_FINE_WORDS = frozenset((
    *("approved", "approve", "accepted", "accept", "done", "complete", "completed", "published", "ready", "reviewed"),
    *("ready_for_export", "ready_for_scoring", "good", "great", "positive", "thumbs_up", "thumb_up", "thumbsup", "up"),
    *("upvote", "like", "liked", "helpful", "success", "succeeded", "finished", "final", "submitted", "active", "👍"),
    *("pass", "passed", "validated", "verified", "default", "1", "1.0", *YES),
))  # fmt: skip
_DEMONSTRATIONS = (*ANSWERED, "calls", "self-instruct")
_INTERNAL = ("private", "is_private", "internal", "is_internal", "internal_note", "is_internal_note", "private_note")
_PUBLIC = ("public", "is_public")
_LONGEST_WORD = 64
_MOST_INNER = 64
"""Keys of an object inside a row that are looked at."""


class Marked(NamedTuple):
    """A mark of a row: the key as it is shown (`review.status`), the column that it stands in, and what it says."""

    shown: str
    column: str
    mark: RowMark
    value: Any
    is_bad: bool


@lru_cache(maxsize=1 << 14)
def mark_of(name: str) -> RowMark | None:
    """The mark that a key is, by its name."""
    plain = plain_key(name)
    bare = re.sub(r"\A(is|was|has_been)_", "", plain)
    found = (mark for names, pattern, mark in _COMPILED if plain in names or bare in names or pattern.fullmatch(plain))
    return next(found, None)


def says_bad(mark: RowMark, value: Any) -> bool | None:
    """Whether a value says that the row is not to be used; None: it says neither."""
    if isinstance(value, Mapping | list):
        return _any_flagged(value) if mark.effect == "flagged" else None
    if isinstance(value, str) and len(value) > _LONGEST_WORD and mark.bad_if != "filled":
        return None
    return _says_bad(mark, value, type(value)) if isinstance(value, Hashable) else None


@lru_cache(maxsize=1 << 14)
def _says_bad(mark: RowMark, value: Any, _: type) -> bool | None:
    """`says_bad` of a plain value; its type tells True from 1."""
    if mark.bad_if != "false" and (is_empty(value) or (isinstance(value, float) and math.isnan(value))):
        return False
    text = re.sub(r"[\s-]+", "_", str(value).strip().lower()) if value != -1 else "-1"
    if mark.bad_if == "filled":
        return text not in NO
    if mark.bad_if == "word":
        return True if text in mark.words else False if text in _FINE_WORDS else None
    if mark.effect == "flagged" and isinstance(value, float) and 0 <= value <= 1:
        return value >= 0.5
    is_true = True if text in YES else False if text in NO else None
    return is_true if is_true is None or mark.bad_if == "true" else not is_true


def _any_flagged(value: Any) -> bool | None:
    """Whether the answer of a moderation has flagged a turn."""
    items = value if isinstance(value, list) else [value]
    said = [item["flagged"] for item in items if isinstance(item, Mapping) and isinstance(item.get("flagged"), bool)]
    return any(said) if said else None


def marks_in(row: Mapping[str, Any], names: Iterable[str]) -> Iterator[Marked]:
    """The marks among keys of a row, and among those of objects below them."""
    for name in names:
        value = row.get(name)
        mark = mark_of(name) if isinstance(name, str) else None
        if mark is not None and (bad := says_bad(mark, value)) is not None:
            yield Marked(name, name, mark, value, bad)
        elif isinstance(value, dict) and len(value) <= _MOST_INNER:
            for key, inner in value.items():
                mark = mark_of(key) if isinstance(key, str) else None
                if mark is not None and (bad := says_bad(mark, inner)) is not None:
                    yield Marked(f"{name}.{key}", str(name), mark, inner, bad)


def is_heeded(mark: RowMark, shape: str, changes: Collection[Changes]) -> bool:
    """Whether rows of a shape that have the mark are left out."""
    by_effect = {
        "out": True,
        "bad": shape in _DEMONSTRATIONS and "answer" in changes,
        "no_vote": shape in VOTED and "answer" in changes,
    }
    return by_effect.get(mark.effect, False)


def check_marks(row: Mapping[str, Any], names: Iterable[str], shape: str, changes: Collection[Changes]) -> None:
    """Leave out a row that people marked as one not to use.

    Raises:
        PassedOver: with the key, and how to read such rows.
    """
    for marked in marks_in(row, names):
        if marked.is_bad and is_heeded(marked.mark, shape, changes):
            raise PassedOver(f"{reason_of(marked)}; {without(marked.column)} reads such rows too")


def reason_of(marked: Marked) -> str:
    """Why a row is left out; a value that may be a name or a text is not repeated."""
    value = "" if marked.mark.bad_if == "filled" else f": {str(marked.value).strip()[:40]}"
    return f"marked as not to be used ({marked.shown}{value})"


def is_internal(key: Any, value: Any) -> bool:
    """Whether a turn was written for colleagues alone, by one of its keys."""
    plain = plain_key(key) if isinstance(key, str) else ""
    text = str(value).strip().lower()
    return (plain in _INTERNAL and text in YES) or (plain in _PUBLIC and text in NO)


def is_marked_turn(item: Mapping[str, Any], names: Iterable[str], role: str, name: str) -> bool:
    """Whether an assistant's turn is marked as one not to be used, so that it is not trained on.

    Raises:
        BadRow: another turn is, or one was not meant for the reader: the conversation would be another without it.
    """
    for marked in marks_in(item, names):
        if marked.is_bad and marked.mark.effect in ("out", "bad"):
            if role == "assistant":
                return True
            raise BadRow(f"{name} ({role}) is {reason_of(marked)}; take the turn out, or the row")
    internal = next((key for key in names if is_internal(key, item[key])), None)
    if internal is not None:
        raise BadRow(f"{name} is an internal note ('{internal}': {item[internal]}); take such turns out")
    return False


def heeded_in_turns(key: Any) -> bool:
    """Whether a key of a turn is a mark that `is_marked_turn` heeds."""
    mark = mark_of(key) if isinstance(key, str) else None
    return mark is not None and mark.effect in ("out", "bad")


def warned_marks(row: Mapping[str, Any], names: Iterable[str]) -> set[tuple[Effect, str]]:
    """What is warned of, and by which key: parts kept for tests, and harmful contents."""
    return {
        (marked.mark.effect, marked.shown)
        for marked in marks_in(row, names)
        if marked.is_bad and marked.mark.effect in ("held_out", "flagged")
    }
