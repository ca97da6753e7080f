"""A line of our own `jsonl` ratings files, checked key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from alignment.data.row_files import BadRow
from alignment.errors import UserError
from alignment.ratings import Completion, Gold, View, Why
from alignment.ratings.questionnaire import check_shape, checked_questions
from alignment.ratings.records import as_completion, as_message, check_answer, check_item, check_labeler
from alignment.ratings.settings import WORDING_KINDS
from alignment.terminal import clean

ITEM_KEYS = ("item", "kind", "prompt", "completions", "need", "gold", "metadata", "ratings", "wordings")
_OPTIONAL = ("strength", "ranks", "score", "given", "order_shown", "seconds", "comment", "flags")
_SEEN = ("guideline", "questions", "view", "answers")
LATEST = 2.0**53
"""Above any time in seconds, and below what a database has no room for."""
RATING_KEYS = ("labeler", "choice", *_OPTIONAL, *_SEEN, "claimed_at", "done_at", "why", "simulated")


def checked_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry (see `formats.Entry`) that a line holds; the item's number belongs to another file.

    Raises:
        BadRow: a key is missing, unknown or of the wrong kind.
    """
    try:
        return _entry(row)
    except UserError as reason:
        raise BadRow(str(reason)) from None


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    _check_keys(row, ITEM_KEYS, ("kind", "prompt", "completions"), "the line")
    _need(isinstance(row["prompt"], list), "'prompt' must be a list of messages")
    _need(isinstance(row["completions"], list), "'completions' must be a list")
    prompt = [as_message(message) for message in row["prompt"]]
    completions = [_completion(fields) for fields in row["completions"]]
    need = row.get("need", 1)
    _need(type(need) is int, f"'need' must be a whole number, found {need!r}")
    gold = _gold(row.get("gold"))
    kind = row["kind"]
    check_item(kind if isinstance(kind, str) else repr(kind), len(prompt), len(completions), need, gold)
    metadata, ratings = row.get("metadata") or {}, row.get("ratings") or []
    _need(isinstance(metadata, dict), "'metadata' must be an object")
    _need(isinstance(ratings, list), "'ratings' must be a list")
    lengths = [len(completion.text) for completion in completions]
    answers = [_answer(each, kind, lengths, number) for number, each in enumerate(ratings, 1)]
    seen = [(answer["labeler"], answer["why"] == "repeat") for answer in answers]
    _need(len(set(seen)) == len(seen), "a labeler has two ratings of this item; the second must be a repeat")
    return {
        "kind": kind,
        "prompt": prompt,
        "completions": completions,
        "answers": answers,
        "need": need,
        "metadata": metadata,
        "gold": gold,
        "wordings": _wordings(row.get("wordings") or {}),
        "simulated": frozenset(each["labeler"] for each in ratings if each.get("simulated")),
    }


def _completion(fields: Any) -> Completion:
    _need(isinstance(fields, dict), "each of 'completions' must be an object with a text")
    answer = as_completion(fields)
    fits = (
        isinstance(answer.ended, bool)
        and isinstance(answer.model, str | None)
        and (answer.tokens is None or type(answer.tokens) is int)
    )
    _need(fits, "a completion's ended is true or false, its model a text and its tokens a number")
    return answer


def _gold(fields: Any) -> Gold | None:
    if fields is None:
        return None
    _need(isinstance(fields, dict), "'gold' must be an object")
    _check_keys(fields, ("choice", "ranks", "score", "reason", "attributes", "tags"), (), "'gold'")
    ranks, reason = fields.get("ranks"), fields.get("reason") or ""
    _need(isinstance(reason, str), "the reason of 'gold' must be a text")
    ranks = None if ranks is None else _numbers(ranks, "the ranks of 'gold'")
    attributes, tags = fields.get("attributes"), fields.get("tags")
    _need(isinstance(attributes, dict | None), "the attributes of 'gold' must be an object of names and values")
    _need(isinstance(tags, list | None), "the tags of 'gold' must be a list of texts")
    return Gold(
        fields.get("choice"), ranks, fields.get("score"), reason, attributes, None if tags is None else tuple(tags)
    )


def _answer(row: Any, kind: str, lengths: Sequence[int], number: int) -> dict[str, Any]:
    size = len(lengths)
    where = f"rating {number}"
    _need(isinstance(row, dict), f"{where} must be an object")
    _check_keys(row, RATING_KEYS, ("labeler", "choice"), where)
    _need(isinstance(row["labeler"], str), f"the labeler of {where} must be a text")
    check_labeler(row["labeler"])
    answer = {key: row.get(key) for key in _OPTIONAL}
    for key in ("ranks", "order_shown"):
        if answer[key] is not None:
            answer[key] = _numbers(answer[key], f"{key} of {where}")
    check_answer(kind, size, row["choice"], answer["strength"], answer["ranks"], answer["score"], answer["given"])
    why = row.get("why", "import")
    _need(why in get_args(Why), f"why of {where} is {why!r}; expected one of {', '.join(get_args(Why))}")
    order = answer["order_shown"] or None
    _need(
        sorted(order) == list(range(size)) if order else why == "import",
        f"order_shown of {where} must have each of 0 to {size - 1} once",
    )
    times = {key: row.get(key) for key in ("claimed_at", "done_at")}
    for key, value in [("seconds", answer["seconds"]), *times.items()]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _need(value is None or (is_number and 0 <= value < LATEST), f"{key} of {where} is {value!a}"[:200])
    comment, flags = answer["comment"] or "", answer["flags"] or []
    is_texts = isinstance(comment, str) and isinstance(flags, list) and all(isinstance(flag, str) for flag in flags)
    _need(is_texts, f"comment and flags of {where} must be a text and a list of texts")
    said = {"labeler": row["labeler"], "choice": row["choice"], "why": why}
    return (
        answer
        | times
        | said
        | _seen(row, kind, lengths, where)
        | {"order_shown": order, "comment": comment, "flags": flags}
    )


def _seen(row: Any, kind: str, lengths: Sequence[int], where: str) -> dict[str, Any]:
    """What the labeler was shown and asked, and what they answered."""
    seen = {key: row.get(key) for key in _SEEN}
    view = seen["view"]
    _need(view is None or view in get_args(View), f"view of {where} is {view!a}; expected raw, rendered or null")
    for key in WORDING_KINDS:
        fits = seen[key] is None or (type(seen[key]) is int and seen[key] >= 1)
        _need(fits, f"{key} of {where} is {seen[key]!a}; expected the number of a version")
    _need(isinstance(seen["answers"], dict | None), f"answers of {where} must be an object")
    check_shape(kind, len(lengths), seen["answers"] or {})
    for length, spans in zip(lengths, (seen["answers"] or {}).get("spans", ()), strict=False):
        _need(
            all(end <= length for _, end, _ in spans), f"a span of {where} ends after the {length} characters there are"
        )
    return seen


def _wordings(value: Any) -> dict[str, list[dict[str, Any]]]:
    """The versions of guideline and questions."""
    _need(isinstance(value, dict), "'wordings' must be an object")
    _check_keys(value, WORDING_KINDS, (), "'wordings'")
    for kind, wordings in value.items():
        _need(isinstance(wordings, list), f"{kind} of 'wordings' must be a list")
        for wording in wordings:
            _need(isinstance(wording, dict), f"each {kind} of 'wordings' must be an object")
            _check_keys(wording, ("at", "text"), ("at", "text"), f"a {kind} of 'wordings'")
            fits = type(wording["at"]) in (int, float) and 0 <= wording["at"] < LATEST
            _need(fits and isinstance(wording["text"], str), f"a {kind} of 'wordings' needs a time and a text")
            if kind == "questions":
                wording["text"] = checked_questions(wording["text"])
            else:
                wording["text"] = clean(wording["text"])
    return value


def _numbers(value: Any, name: str) -> tuple[int, ...]:
    _need(
        isinstance(value, list) and all(type(each) is int for each in value), f"{name} must be a list of whole numbers"
    )
    return tuple(value)


def _check_keys(row: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...], name: str) -> None:
    missing = [key for key in required if key not in row]
    unknown = [str(key) for key in row if key not in known]
    _need(not missing, f"{name} has no key '{', '.join(missing)}'; found {', '.join(map(str, row)) or 'none'}")
    _need(not unknown, f"{name} has the unknown key '{', '.join(unknown)}'; known are {', '.join(known)}")


def _need(holds: bool, reason: str) -> None:
    if not holds:
        raise BadRow(reason)
