"""Tell the exports of annotation tools by their keys: they hold what people said of texts, not texts to learn."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from alignment.data.messages import parsed

Row = Mapping[str, Any]


def annotation_format(row: Row) -> str | None:
    """The tool that exported a row, as `alignment rate import --format` names it; None for any other row."""
    return next((name for name, holds in _TOOLS.items() if holds(row)), None)


def refusal(name: str, file: str) -> str:
    """Why a stage does not train on such a row, with the command that reads it."""
    return (
        f"a row of {name}: what people said of texts, not texts to train on; run `alignment rate import --db ratings.db"
        f" --format {name} {shlex.quote(file)}`, then train a reward model with data.train=ratings.db"
    )


def _label_studio(row: Row) -> bool:
    """A task with its annotations, or (JSON-MIN and CSV) a row for each annotation."""
    if isinstance(row.get("data"), Mapping) and {"annotations", "completions"} & row.keys():
        return True
    return {"annotator", "lead_time"} <= row.keys() or {"annotator", "annotation_id"} <= row.keys()


def _argilla(row: Row) -> bool:
    """A record of version 2 or 1, nested or flattened, or as version 1 wrote data sets for the hub."""
    if isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping | list):
        return True
    if any(key.endswith((".responses.users", ".responses.status")) for key in map(str, row)):
        return True
    return any(hub_answers(value) is not None for value in row.values())


def hub_answers(value: Any) -> list[dict[str, Any]] | None:
    """The answers to a question in a data set that Argilla 1 wrote for the hub; None if it is no such column.

    They are a list of objects, or an object of lists, with `user_id`, `value` and `status`.
    """
    names = {"user_id", "value", "status"}
    if isinstance(value, str) and "user_id" not in value:  # an answer in JSON is not parsed for each row
        return None
    value = parsed(value)
    if isinstance(value, Mapping) and value.keys() == names and all(isinstance(each, list) for each in value.values()):
        return [dict(zip(value, answer, strict=False)) for answer in zip(*value.values(), strict=False)]
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and each.keys() == names for each in value):
        return [dict(each) for each in value]
    return None


def _potato(row: Row) -> bool:
    has_answers = "label_annotations" in row or isinstance(row.get("annotations"), Mapping)
    return (has_answers and bool({"instance_id", "id"} & row.keys())) or "instance_id_to_label_to_value" in row


def _prodigy(row: Row) -> bool:
    answered = row.get("answer") in ("accept", "reject", "ignore")
    return answered and bool({"_input_hash", "_task_hash", "_session_id", "_annotator_id", "_view_id"} & row.keys())


def _doccano(row: Row) -> bool:
    """Labels or spans of a text. One label as a plain text is no sign: data sets for classifiers have that too."""
    if not isinstance(row.get("text"), str):
        return False
    if "id" in row and isinstance(row.get("label"), list):
        return True
    if isinstance(row.get("entities"), list) and isinstance(row.get("relations"), list):
        return True
    marks = row.get("annotations")
    return (
        isinstance(marks, list) and all(isinstance(each, Mapping) and "user" in each for each in marks) and bool(marks)
    )


def _summaries(row: Row) -> bool:
    """OpenAI's comparisons of summaries."""
    return {"info", "summaries", "choice"} <= row.keys()


_TOOLS: dict[str, Callable[[Row], bool]] = {
    "label-studio": _label_studio,
    "argilla": _argilla,
    "potato": _potato,
    "prodigy": _prodigy,
    "doccano": _doccano,
    "summaries": _summaries,
}
