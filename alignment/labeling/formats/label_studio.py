"""Label Studio: tasks with annotations (JSON), or a row for each annotation (JSON-MIN and CSV)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data.importers import PassedOver
from alignment.data.messages import parsed
from alignment.data.row_files import BadRow
from alignment.labeling.entries import Entry
from alignment.labeling.formats.fields import (
    ShownAnswer,
    ShownTask,
    answer_of,
    ending,
    first_key,
    listed,
    plain,
    prompt_of,
    task_of,
    with_model,
)
from alignment.labeling.formats.questions import AskedKind, QuestionAnswer, is_ours, with_answers
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import (
    BAD,
    CHOICES,
    GOOD,
    RATINGS,
    Who,
    against,
    judged,
    labeler_of,
    ranked,
    said_of,
    scored,
    seconds_of,
)

DROPS = (
    "predictions of models, drafts, skipped annotations, spans without an answer of their own and reviews (each "
    "counted), times, the labeling config, and a ranker's buckets whose order is not known "
    "(--labels='BUCKET=1,OTHER=2' says it, 1 the best)"
)
RANK = "rank_response_"
"""How exports name the number that is an answer's rank, 1 the best."""
_KINDS: dict[str, AskedKind] = {"labels": "spans", "textarea": "text", "rating": "rating", "number": "rating"}
_CONTROLS = ("ranks", "pairwise", "ranker", "choices", "rating", "number")
_ANNOTATION_KEYS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")


class TagValue(NamedTuple):
    """What one tag of the labeling config got: its name, what it stands at, its kind and the value of that kind."""

    name: str
    at: str
    kind: str
    value: Any


def read_label_studio(row: Row, options: ImportOptions) -> Read:
    if not isinstance(row.get("data"), Mapping):
        return _read_flat(row, options)
    data = row["data"]
    read: Read = [PassedOver("a prediction of a model") for _ in listed(row.get("predictions"), "predictions")]
    read += [PassedOver("a draft") for _ in listed(row.get("drafts"), "drafts")]
    annotations = listed(row.get("annotations", row.get("completions")), "annotations")
    if not annotations:
        return [*read, PassedOver("a task that nobody annotated")]
    for annotation in annotations:
        if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result") or [], list):
            raise BadRow("each of 'annotations' must be an object with a list 'result'")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            read.append(PassedOver("a skipped annotation"))
            continue
        found = [control for part in annotation.get("result") or [] for control in _controls_of(part)]
        who = Who(labeler_of(annotation.get("completed_by")), seconds=seconds_of(annotation.get("lead_time")))
        read += _votes(data, found, who, options)
    return read


def _controls_of(part: Any) -> Iterator[TagValue]:
    value = part.get("value") if isinstance(part, Mapping) else None
    if not isinstance(value, Mapping):
        return
    kind = str(part.get("type"))
    inner = {"pairwise": "selected", "textarea": "text", "labels": ""}.get(kind, kind)
    yield TagValue(str(part.get("from_name")), str(part.get("to_name")), kind, value.get(inner, value))


def _read_flat(row: Row, options: ImportOptions) -> Read:
    """JSON-MIN and CSV: a row has the task's data, and each control's value under the control's name."""
    data = {key: value for key, value in row.items() if key not in _ANNOTATION_KEYS}
    found = [control for key, value in data.items() for control in _flat_controls(key, parsed(value))]
    if not found:
        named = options.columns.get("choice") or first_key(data, CHOICES) or first_key(data, RATINGS)
        found = [TagValue(named, "", "choices", data[named])] if named and data.get(named) not in (None, "") else []
    who = Who(labeler_of(row.get("annotator")), seconds=seconds_of(row.get("lead_time")))
    taken = {control.name for control in found}
    return _votes({key: value for key, value in data.items() if key not in taken}, found, who, options)


def _flat_controls(key: str, value: Any) -> Iterator[TagValue]:
    inner = value[0] if isinstance(value, list) and value else value
    kinds = {"selected": "pairwise", "ranker": "ranker", "choices": "choices", "rating": "rating", "number": "number"}
    if isinstance(inner, Mapping):
        for name, kind in kinds.items():
            if name in inner:
                yield TagValue(key, str(inner.get("to_name", "")), kind, inner[name])


# --- votes ---------------------------------------------------------------------------------------------------------


def _votes(data: Row, found: Sequence[TagValue], who: Who, options: ImportOptions) -> Read:
    """The votes of one annotation; the reasons why other parts of it are none."""
    ranks = {control.at: control.value for control in found if control.name.startswith(RANK)}
    if ranks:  # exports write the rank of each answer
        found = [TagValue("ranking", "", "ranks", ranks), *(c for c in found if not c.name.startswith(RANK))]
    beside = [control for control in found if is_ours(control.name) and control.name != "comment"]
    others = [control for control in found if control not in beside]
    comments = [text for control in others if control.kind == "textarea" for text in _texts(control.value)]
    who = who._replace(comment="\n".join(comments))
    if wanted := options.columns.get("choice"):
        others = [control for control in others if control.name == wanted]
    votes = [control for control in others if control.kind in _CONTROLS]
    beside += [control for control in others if control.kind == "labels"]
    read: Read = [
        PassedOver(f"an answer of kind {control.kind}, which is no vote")
        for control in others
        if control.kind not in (*_CONTROLS, "textarea", "labels")
    ]
    if not votes:
        return [*read, *map(_not_kept, beside)] or [PassedOver("an annotation without a vote")]
    compared = min((control.kind for control in votes), key=_CONTROLS.index)
    voted = next((control for control in votes if control.kind == compared), None)
    kept: Read = []
    for control in votes:
        rates = control.kind in ("rating", "number")
        is_score = options.scale or (compared == control.kind and not _is_one(data, options))
        if rates and (is_score or control is voted):
            kept += scored(_rated(data, control, options), control.value, who, options)
        elif control is voted:
            kept += _compared(data, control, who, options)
        else:
            beside.append(control)
    return [*read, *_with_beside(kept, data, beside, options)]


def _with_beside(vote: Read, data: Row, beside: Sequence[TagValue], options: ImportOptions) -> Read:
    if not beside:
        return vote
    votes = [part for part in vote if isinstance(part, Entry)]
    if len(votes) != 1:
        return [*vote, *map(_not_kept, beside)]
    task = task_of(data, options)
    if [answer.text for answer in task.answers] != [each.text for each in votes[0].completions]:
        return [*vote, *map(_not_kept, beside)]
    return with_answers(vote, task, [_asked(control) for control in beside], options)


def _asked(control: TagValue) -> QuestionAnswer:
    value, kind = control.value, _KINDS.get(control.kind, "label")
    if kind == "spans":
        labels = value.get("labels") if isinstance(value, Mapping) else None
        label = labels[0] if isinstance(labels, list) and len(labels) == 1 else None
        value = [{**value, "label": label}] if isinstance(value, Mapping) else []
    elif control.kind == "pairwise" and value in ("left", "right"):
        names = [name.strip() for name in control.at.split(",")]
        value = names[value == "right"] if len(names) == 2 else value
    elif kind == "text":
        value = "\n".join(_texts(value))
    elif control.kind == "choices" and control.name in ("tags", "flags"):
        kind, value = "labels", value if isinstance(value, list) else [value]
    return QuestionAnswer(control.name, control.at, kind, value)


def _not_kept(control: TagValue) -> PassedOver:
    if control.kind == "labels":
        return PassedOver("an answer of kind labels, which is no vote")
    return PassedOver(f"an answer to '{control.name}' without one vote on the same answers")


def _is_one(data: Row, options: ImportOptions) -> bool:
    """Whether a task has one answer, so that a second number is about something else than the answer as a whole."""
    try:
        return len(task_of(data, options).answers) == 1
    except BadRow:
        return False


def _compared(data: Row, control: TagValue, who: Who, options: ImportOptions) -> Read:
    if control.kind == "ranker":
        return _ranking(data, control, who, options)
    if control.kind == "ranks":
        task = task_of(data, options)
        return ranked(task, [control.value.get(answer.key) for answer in task.answers], who)
    names = [name.strip() for name in control.at.split(",")]
    if control.kind == "pairwise" and len(names) == 2 and all(name in data for name in names):
        # The first name is the left side; the order of the task's keys says nothing.
        others = {key: value for key, value in data.items() if key not in names}
        sides = [with_model(answer_of(data[name], name), ending(name), data, options) for name in names]
        task = ShownTask(prompt_of(others, options)[0], tuple(sides))
    else:
        task = task_of(data, options)
    if control.kind == "choices" and isinstance(control.value, list) and len(control.value) > 1:
        chosen = {said_of(value, task, options) for value in control.value}
        return ranked(task, [1 if place in chosen else 2 for place in range(len(task.answers))], who)
    if control.kind == "pairwise" and control.value in ("left", "right") and len(task.answers) != 2:
        raise BadRow(f"a pairwise vote on {len(task.answers)} answers; name two with --columns a=KEY,b=KEY")
    return judged(task, control.value, who, options)


def _rated(data: Row, control: TagValue, options: ImportOptions) -> ShownTask:
    """The task with the one answer that a rating stands at."""
    at = control.at
    if at in data and isinstance(data[at], str):
        others = {key: value for key, value in data.items() if key != at}
        return ShownTask(prompt_of(others, options)[0], (answer_of(data[at], at),))
    task = task_of(data, options)
    if len(task.answers) > 1:
        place = said_of(at or control.name, task, options)
        if not isinstance(place, int):
            raise BadRow(
                f"the rating '{control.name}' names none of the answers; name it with --columns completion=KEY"
            )
        task = task._replace(answers=(task.answers[place],))
    return task


def _ranking(data: Row, control: TagValue, who: Who, options: ImportOptions) -> Read:
    """A ranked list of items with ids; items that were not ranked are no part of it."""
    lists = control.value.values() if isinstance(control.value, Mapping) else [control.value]
    ordered = [ids for ids in lists if isinstance(ids, list)]
    if isinstance(control.value, Mapping) and "_" in control.value:
        ordered = [ids for name, ids in control.value.items() if name != "_"]
    buckets = control.value if isinstance(control.value, Mapping) and len(ordered) != 1 else {}
    places = {name: _bucket_place(name, options) for name in buckets if name != "_"}
    if len(ordered) != 1 and (None in places.values() or len(set(places.values())) < 2):
        return [
            PassedOver(
                "a sorting into buckets, of which none is known to be the better; --labels='BUCKET=1,OTHER=2' says "
                f"which (1 the best), for {', '.join(places) or 'each'}"
            )
        ]
    items = next((value for value in map(parsed, data.values()) if isinstance(value, list) and _ids(value)), [])
    by_id = {str(item["id"]): item for item in items}
    ids = [str(each) for group in ordered for each in group]
    missing = [each for each in ids if each not in by_id]
    if missing or len(ids) < 2:
        raise BadRow(
            f"the ranker {control.name} has {', '.join(missing) or 'fewer than two items'}, not in the task's list"
        )
    answers: list[ShownAnswer] = [answer_of(by_id[each], each) for each in sorted(ids)]
    texts = {key: value for key, value in data.items() if not (isinstance(parsed(value), list) and _ids(parsed(value)))}
    task = ShownTask(prompt_of(texts, options)[0], tuple(answers))
    if not buckets:
        return ranked(task, [ids.index(each) + 1 for each in sorted(ids)], who)
    rank = {str(each): place for name, place in places.items() if place is not None for each in buckets[name]}
    by_rank = {place: [sorted(ids).index(each) for each in ids if rank[each] == place] for place in rank.values()}
    votes = (
        against(task, by_rank[better], by_rank[worse], who)
        for better, worse in itertools.combinations(sorted(by_rank), 2)
    )
    return [vote for each in votes for vote in each]


def _bucket_place(name: str, options: ImportOptions) -> int | None:
    """The place of a bucket, 1 the best: as the user says, or by a word for good or bad."""
    said = options.labels.get(name, "")
    if said.isdigit():
        return int(said)
    return 1 if plain(name) in GOOD else 2 if plain(name) in BAD else None


def _ids(value: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) and "id" in item for item in value) and bool(value)


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
