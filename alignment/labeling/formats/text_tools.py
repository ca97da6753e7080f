"""Potato, Prodigy and doccano: tools that show a text, with or without options to choose from."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from alignment.data.annotations import parsed
from alignment.data.importers import PassedOver
from alignment.data.messages import check_text
from alignment.data.row_files import BadRow
from alignment.labeling.formats.fields import (
    PROMPTS,
    SINGLES,
    ShownAnswer,
    ShownTask,
    answer_of,
    first_key,
    listed,
    object_of,
    plain,
    slot_keys,
    task_of,
    turns_of,
)
from alignment.labeling.formats.reading import SIDES, ImportOptions, Read, Row
from alignment.labeling.formats.voting import BAD, GOOD, Who, against, judged, labeler_of, ranked, said_of, seconds_of

POTATO_DROPS = (
    "spans and answers of machines (each counted), times and behavioural data; one answer in free text is a comment"
)
PRODIGY_DROPS = "ignored answers and spans (each counted), hashes and times"
DOCCANO_DROPS = (
    "spans and relations (each counted), and metadata; in a text of several lines the first is the prompt and the rest "
    "the answer"
)


def _text_task(row: Row, text: Any, options: ImportOptions) -> ShownTask:
    """The row's prompt and answers, or those within its text: the question on the first line, the answer below."""
    named = {"prompt", "a", "completion"} & options.columns.keys()
    if named or slot_keys(row) or (first_key(row, PROMPTS) and first_key(row, SINGLES)):
        return task_of(row, options)
    question, _, answer = check_text(text, "'text'").strip().partition("\n")
    if not answer.strip():
        raise BadRow(
            "its text has one line, and a rating needs a question and an answer; name the keys that have them with "
            "--columns prompt=KEY,completion=KEY"
        )
    return ShownTask(turns_of(question.strip(), "text"), (ShownAnswer("text", answer.strip()),), frozenset(["text"]))


# --- doccano -------------------------------------------------------------------------------------------------------


def read_doccano(row: Row, options: ImportOptions) -> Read:
    """A label of a text is a vote: good or bad, a number, or one of two answers beside the text."""
    user = labeler_of(next((row[key] for key in ("user", "username", "annotator", "labeler") if key in row), None))
    marks = row.get("annotations")
    if isinstance(marks, list):  # an older export: labels by number, with each one's user
        marks = [object_of(mark, "annotations") for mark in marks]
        votes = [(labeler_of(mark.get("user")), mark.get("label", mark.get("text"))) for mark in marks]
        spans = [mark for mark in marks if "start_offset" in mark]
    else:
        labels = row.get("label", [])
        labels = labels if isinstance(labels, list) else [labels]
        spans = [*listed(row.get("entities"), "entities"), *(label for label in labels if isinstance(label, list))]
        labels = [label for label in labels if not isinstance(label, list)]
        if len(labels) > 1:
            raise BadRow(f"{len(labels)} labels of one text; a vote is one label")
        votes = [(user, label) for label in labels]
    read: Read = [PassedOver("a span, which is no vote") for _ in spans]
    if spans:
        return read
    if not votes:
        return [PassedOver("a text without a label")]
    if (
        "\n" not in str(row.get("text")).strip()
        and not slot_keys(row)
        and any(map(_is_text, (said for _, said in votes)))
    ):
        raise BadRow(
            "its labels are texts that answer its text (sequence to sequence), not votes; train on them with "
            "data.format=completion data.columns='{prompt: text, completion: label}'"
        )
    task = _text_task(row, row.get("text"), options)
    comments = [str(each) for each in listed(row.get("Comments"), "Comments") if isinstance(each, str)]
    for labeler, label in votes:
        read += judged(task, label, Who(labeler, "\n".join(comments)), options)
    return read


def _is_text(label: Any) -> bool:
    return isinstance(label, str) and len(label.split()) > 1


# --- Prodigy -------------------------------------------------------------------------------------------------------


def read_prodigy(row: Row, options: ImportOptions) -> Read:
    """A choice among options, a comparison of A and B, or a text that was accepted or rejected."""
    who = Who(labeler_of(row.get("_annotator_id") or row.get("_session_id")), str(row.get("comment") or ""))
    if row.get("answer") == "ignore":
        raise PassedOver("an ignored answer")
    if row.get("spans"):
        raise PassedOver("spans, which are no vote")
    if isinstance(row.get("options"), list):
        return _prodigy_choice(row, who, options)
    if isinstance(row.get("A"), Mapping) and isinstance(row.get("B"), Mapping):
        prompt = row.get("input", row.get("text"))
        prompt = prompt.get("text") if isinstance(prompt, Mapping) else prompt
        task = ShownTask(turns_of(prompt, "input"), (answer_of(row["A"], "A"), answer_of(row["B"], "B")))
        # Which side stands for "accept" is drawn for each row.
        mapping = object_of(row.get("mapping") or {"A": "accept"}, "mapping")
        accepted = [side for side in ("A", "B") if mapping.get(side) == "accept"]
        if len(accepted) != 1 or row.get("answer") not in ("accept", "reject"):
            raise BadRow("a comparison needs an answer, and a mapping that says which of A and B is 'accept'")
        rejected = "B" if accepted == ["A"] else "A"
        return judged(task, accepted[0] if row["answer"] == "accept" else rejected, who, options)
    task = _text_task(row, row.get("text"), options)
    return judged(task, row.get("answer"), who, options)


def _prodigy_choice(row: Row, who: Who, options: ImportOptions) -> Read:
    shown = row["options"]
    if row.get("answer") == "reject":
        raise PassedOver("a rejected task")
    keyed = [(str(option.get("id")), option) for option in shown if isinstance(option, Mapping)]
    accepted = [str(each) for each in listed(row.get("accept"), "accept")]
    if not accepted:
        raise PassedOver("an answer that accepts no option")
    texts = {key: value for key, value in row.items() if key not in ("options", "accept", "answer")}
    if slot_keys(texts) or (first_key(texts, SINGLES) and first_key(texts, PROMPTS)):
        return judged(task_of(texts, options), accepted, who, options)  # the options are words for answers beside them
    if all(_is_verdict(option, options) for _, option in keyed):
        return judged(_text_task(texts, row.get("text"), options), accepted, who, options)
    prompt = first_key(texts, ("prompt", "question", "instruction", "text"))
    if prompt is None:
        raise BadRow("no prompt beside the options; name it with --columns prompt=KEY")
    key = options.key("prompt", row) or prompt
    task = ShownTask(turns_of(row[key], key), tuple(answer_of(option, name) for name, option in keyed))
    chosen = [place for place, (name, _) in enumerate(keyed) if name in accepted]
    others = [place for place in range(len(keyed)) if place not in chosen]
    if not others:
        return ranked(task, [1] * len(keyed), who)
    return against(task, chosen, others, who)


def _is_verdict(option: Mapping[str, Any], options: ImportOptions) -> bool:
    """Whether an option is a word of judgement (good, 4, a label that the user explained), not an answer."""
    name, text = str(option.get("id")), str(option.get("text"))
    return (
        bool({name, text} & options.labels.keys()) or bool({plain(name), plain(text)} & {*GOOD, *BAD}) or text.isdigit()
    )


# --- Potato --------------------------------------------------------------------------------------------------------


def read_potato(row: Row, options: ImportOptions) -> Read:
    """One person's answers to one item. The name is in the row, or is that of the folder (annotation_output/NAME/)."""
    if "instance_id_to_label_to_value" in row:
        raise BadRow("a Potato user_state.json has no texts; export with `python -m potato.export --format jsonl`")
    origin = parsed(row.get("annotator_origin"))
    if (origin.get("kind") if isinstance(origin, Mapping) else origin or "human") != "human":
        raise PassedOver("an answer of a machine")
    user = labeler_of(row.get("user_id", row.get("user")))
    if user is None and options.file.name.startswith("annotated_instances"):
        user = labeler_of(options.file.absolute().parent.name)
    answers = row.get("label_annotations", row.get("annotations"))
    if not isinstance(answers, Mapping) or not answers:
        raise PassedOver("an item without an answer")
    behaviour = row.get("behavioral_data")
    seconds = seconds_of(behaviour.get("time_spent")) if isinstance(behaviour, Mapping) else None
    task = _potato_task(row, options)
    who = Who(user, seconds=seconds)
    read: Read = []
    voted = False
    texts = {name: value for name, value in answers.items() if _free_text(value)}
    who = who._replace(comment="\n".join(_free_text(value) for value in texts.values()))
    for name, value in answers.items():
        if name in texts or (options.columns.get("choice") not in (None, name)):
            continue
        if voted:
            read.append(PassedOver(f"a second question on the same answers; --columns choice={name} reads it"))
        else:
            voted = True
            read += _potato_vote(task, value, who, options)
    if row.get("span_annotations") or row.get("spans"):
        read.append(PassedOver("spans, which are no vote"))
    return read or [PassedOver("an answer in free text alone, which is no vote")]


def _free_text(value: Any) -> str:
    text = value.get("text_box", value.get("text")) if isinstance(value, Mapping) and len(value) == 1 else None
    return text if isinstance(text, str) else ""


def _potato_task(row: Row, options: ImportOptions) -> ShownTask:
    shown = parsed(row.get("displayed_text", row.get("text")))
    beside = {
        key: value for key, value in row.items() if key not in ("displayed_text", "label_annotations", "annotations")
    }
    data = beside.pop("data", None) or beside.pop("item", None)
    beside |= data if isinstance(data, Mapping) else {}
    if isinstance(shown, Mapping):
        beside |= shown
    elif isinstance(shown, str):
        # Lists are shown as "A. text<br>B. text", after the prompt if there is one.
        shown = html.unescape(re.sub(r"<br\s*/?>", "\n", shown))
        parts = re.split(r"(?:^|\n)\s*(?:<b>)?([A-I])[.:](?:</b>)?\s+", shown)
        found = dict(zip(map(str.lower, parts[1::2]), (part.strip() for part in parts[2::2]), strict=True))
        if len(found) > 1:
            beside |= found | ({"prompt": parts[0].strip()} if parts[0].strip() else {})
    if isinstance(shown, list) and not {"prompt", "a", "completion"} & options.columns.keys():
        key = "displayed_text" if "displayed_text" in row else "text"
        names = ",".join(f"{side}={key}.{place}" for place, side in enumerate(("prompt", *SIDES)[: max(2, len(shown))]))
        raise BadRow(f"its '{key}' is a list of {len(shown)}; say what each is, as --columns {names}")
    return _text_task(beside, shown if isinstance(shown, str) else None, options)


def _potato_vote(task: ShownTask, value: Any, who: Who, options: ImportOptions) -> Read:
    """An answer is a word, or an object: a selection, a value of a scale, an order, or the labels that were ticked."""
    value = parsed(value)
    if isinstance(value, Mapping) and isinstance(value.get("labels"), Mapping):
        value = value["labels"]
    if not isinstance(value, Mapping):
        return judged(task, value, who, options)
    if "selection" in value:
        return judged(task, value["selection"], who, options)
    if "scale_value" in value and len(task.answers) == 2:
        degree = _degree(value["scale_value"])
        if options.scale is None and abs(degree) > 3:
            raise BadRow(f"the degree {degree:g} is beyond 3; name the scale with --scale LOW..HIGH, as -5..5")
        choice = "tie" if degree == 0 else task.answers[0].key if degree < 0 else task.answers[1].key
        fits = options.scale in (None, (-3.0, 3.0)) and degree.is_integer()
        return judged(task, choice, who, options, abs(int(degree)) if fits and degree else None)
    if "rank_order" in value:
        groups = enumerate(str(value["rank_order"]).split(","), 1)
        ranks = {said_of(name, task, options): rank for rank, group in groups for name in group.split("=")}
        places = range(len(task.answers))
        if set(ranks) != set(places):
            raise BadRow(f"the order {json.dumps(value['rank_order'])} does not have each of the answers")
        return ranked(task, [ranks[place] for place in places], who)
    # A label that was ticked has the value true; a scale's point (scale_4) has its number.
    ticked = [
        name if ticked in (True, "true", "1", "on", name) and not name.endswith(str(ticked)) else ticked
        for name, ticked in value.items()
        if ticked not in (None, False, "", "false")
    ]
    if len(ticked) != 1:
        raise BadRow(f"{len(ticked)} labels of one question; a vote is one label")
    return judged(task, ticked[0], who, options)


def _degree(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadRow(f"the scale's value {value!a} is no number") from None
