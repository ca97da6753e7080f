"""Write records of Argilla and tasks of Label Studio. A hash stands for each labeler, and no model is named."""

from __future__ import annotations

from collections import Counter
from typing import Any

from alignment.labeling.entries import Rows, Stored
from alignment.labeling.formats.argilla import read_argilla
from alignment.labeling.formats.label_studio import RANK, read_label_studio
from alignment.labeling.formats.questions import QuestionAnswer, asked_of, field_names
from alignment.labeling.formats.read_back import Votes, Written, write_checked
from alignment.ratings import Item


def _fields(item: Item) -> dict[str, Any]:
    """The prompt as a chat, and each answer as a text."""
    texts = (each.text for each in item.completions)
    return {"prompt": [dict(turn) for turn in item.prompt]} | dict(zip(field_names(item), texts, strict=True))


# --- Argilla 2: records as `records.to_json` writes them -------------------------------------------------------------


def write_argilla(stored: Stored, left_out: Counter[str]) -> Rows:
    return write_checked(stored, left_out, _record, read_argilla)


def _record(votes: Votes, left_out: Counter[str]) -> Written:
    responses: dict[str, list[dict[str, Any]]] = {}
    for rating in votes.ratings:
        for asked in asked_of(rating, field_names(votes.item)):
            value = asked.value
            if asked.kind == "ranking":
                value = [{"value": field, "rank": rank} for field, rank in sorted(value.items(), key=lambda at: at[1])]
            responses.setdefault(asked.name, []).append({"value": value, "user_id": votes.hashes[rating.labeler]})
    record: dict[str, Any] = {"id": str(votes.item.id), "status": "completed", "fields": _fields(votes.item)}
    yield record | {"metadata": {}, "suggestions": {}, "responses": responses, "vectors": {}}, votes.ratings


# --- Label Studio: tasks as its JSON export has them -----------------------------------------------------------------

_TYPES = {"label": "choices", "labels": "choices", "rating": "rating", "text": "textarea", "spans": "labels"}
_VALUES = {"choices": "choices", "rating": "rating", "textarea": "text"}


def write_label_studio(stored: Stored, left_out: Counter[str]) -> Rows:
    people = {
        name: number
        for number, name in enumerate(sorted({stored.hashes[rating.labeler] for rating in stored.counting}), 1)
    }

    def task(votes: Votes, left_out: Counter[str]) -> Written:
        annotations = []
        for rating in votes.ratings:
            name = votes.hashes[rating.labeler]
            annotation: dict[str, Any] = {"completed_by": {"id": people[name], "username": name}}
            parts = [
                part for asked in asked_of(rating, field_names(votes.item)) for part in _regions(asked, votes.item)
            ]
            annotations.append(annotation | {"was_cancelled": False, "lead_time": rating.seconds, "result": parts})
        yield {"id": votes.item.id, "data": _fields(votes.item), "annotations": annotations}, votes.ratings

    return write_checked(stored, left_out, task, read_label_studio)


def _regions(asked: QuestionAnswer, item: Item) -> list[dict[str, Any]]:
    """What a control gave: one region, of spans and ranks one each."""
    if asked.kind == "ranking":
        prefix = RANK.removesuffix("response_")
        return [_region(f"{prefix}{field}", field, "number", {"number": rank}) for field, rank in asked.value.items()]
    if asked.kind == "spans":
        text = item.completions[field_names(item).index(asked.at)].text
        marks = ((each["start"], each["end"], each["label"]) for each in asked.value)
        values = [{"start": start, "end": end, "text": text[start:end], "labels": [kind]} for start, end, kind in marks]
        return [_region(asked.name, asked.at, "labels", value) for value in values]
    type = _TYPES[asked.kind]
    value = asked.value if asked.kind in ("rating", "labels") else [asked.value]
    return [_region(asked.name, asked.at, type, {_VALUES[type]: value})]


def _region(name: str, at: str, type: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": at, "type": type, "value": value}
