"""What annotators of QA-Feedback marked in an answer, as judgements of attributes: three kinds of error.

`feedback` of a row has the errors of `prediction 1`, and `corrected-prediction`, the same answer with the errors
corrected by the annotator. The two are a pair: in an attribute with errors the corrected answer is better, and in one
without errors they are tied. The kinds are those of the data's authors (Wu et al. 2023, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.keys import is_empty
from alignment.data.messages import Turns, text_of
from alignment.data.questions import qa_prompt
from alignment.data.row_files import BadRow

COLUMN = "feedback"
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "relevance": ("errors", ("Irrelevant", "Redundant", "Incoherent")),
    "factuality": ("errors", ("Unverifiable", "Wrong-Grounding")),
    "completeness": ("missing-info", ("Missing-Answer", "Missing-Major-Auxiliary", "Missing-Minor-Auxiliary")),
}
"""By attribute, the list of `feedback` that holds its errors, and their names."""
_LISTS: dict[str, tuple[str, ...]] = {
    key: tuple(kind for where, kinds in KINDS.values() if where == key for kind in kinds)
    for key in ("errors", "missing-info")
}


class Corrected(NamedTuple):
    """An answer, the same one corrected, and the number of its errors by attribute."""

    prompt: Turns
    answer: str
    corrected: str
    errors: dict[str, int]


def read_corrected(row: Mapping[str, Any]) -> Corrected:
    """The pair of a QA-Feedback row with `feedback`.

    Raises:
        BadRow: the feedback is of another form, or names an unknown kind of error.
        PassedOver: the answer was not corrected.
    """
    feedback = row[COLUMN]
    if not isinstance(feedback, Mapping):
        keys = f"{', '.join(_LISTS)} and corrected-prediction"
        raise BadRow(f"'{COLUMN}' must be an object with {keys}, found {feedback!a}"[:300])
    marked = {key: _kinds(feedback.get(key), key) for key in _LISTS}
    corrected = feedback.get("corrected-prediction")
    if is_empty(corrected) or not str(corrected).strip():
        raise PassedOver("the annotator left no corrected answer")
    answer, corrected = text_of(row, "prediction 1"), text_of(feedback, "corrected-prediction")
    if answer.strip() == corrected.strip():
        raise PassedOver("the annotator corrected nothing")
    errors = {name: sum(kind in kinds for kind in marked[key]) for name, (key, kinds) in KINDS.items()}
    return Corrected(qa_prompt(row), answer, corrected, errors)


def _kinds(errors: Any, key: str) -> list[str]:
    """The kinds of the errors of a list of `feedback`."""
    if errors is None:
        return []
    if not isinstance(errors, list) or not all(isinstance(error, Mapping) for error in errors):
        raise BadRow(f"'{COLUMN}.{key}' must be a list of objects with an 'error type', found {errors!a}"[:300])
    kinds = [error.get("error type") for error in errors]
    for kind in kinds:
        if kind not in _LISTS[key]:
            expected = ", ".join(_LISTS[key])
            raise BadRow(f"an 'error type' in '{COLUMN}.{key}' is {kind!a}; expected one of {expected}"[:300])
    return kinds
