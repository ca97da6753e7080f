"""Argilla: records of version 2 (nested, flattened) and of version 1 (feedback records, data sets on the hub)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignment.data.annotations import hub_answers
from alignment.data.importers import PassedOver
from alignment.data.messages import parsed
from alignment.data.row_files import BadRow
from alignment.labeling.formats.fields import ShownTask, ending, listed, object_of, plain, task_of
from alignment.labeling.formats.questions import AskedKind, QuestionAnswer, is_ours, with_answers
from alignment.labeling.formats.reading import ImportOptions, Read, Row
from alignment.labeling.formats.voting import Who, judged, labeler_of, ranked, said_of, scored

DROPS = (
    "suggestions, drafts, discarded answers and spans without an answer of their own (each counted), vectors and "
    "metadata, and the questions' settings; answers in free text are comments of the vote beside them"
)
_BESIDE = ("id", "_server_id", "status", "external_id", "inserted_at", "updated_at", "vectors", "metadata", "score")


class QuestionReply(NamedTuple):
    """A person's answer to a question."""

    question: str
    user: str | None
    value: Any
    status: str


def read_argilla(row: Row, options: ImportOptions) -> Read:
    fields, replies = _record(row)
    read: Read = [
        PassedOver("a suggestion of a model")
        for key, value in row.items()
        if key.endswith((".suggestion", "-suggestion")) and value is not None
    ]
    suggested = row.get("suggestions")
    read += (
        [PassedOver("a suggestion of a model") for _ in suggested if suggested]
        if isinstance(suggested, list | Mapping)
        else []
    )
    if not replies:
        return [*read, PassedOver("a record that nobody answered")]
    users: dict[tuple[str | None, int], list[QuestionReply]] = {}
    seen: dict[tuple[str, str | None], int] = {}
    for reply in replies:
        if reply.status != "submitted":
            read.append(PassedOver(f"an answer that is {reply.status}, not submitted"))
            continue
        count = seen.setdefault((reply.question, reply.user), 0)
        seen[reply.question, reply.user] += 1
        # Answers without a name are of as many people as there are to one question.
        users.setdefault((reply.user, count), []).append(reply)
    for (user, _), said in users.items():
        read += _votes(fields, user, said, options)
    return read


# --- the layouts ---------------------------------------------------------------------------------------------------


def _record(row: Row) -> tuple[dict[str, Any], list[QuestionReply]]:
    """The fields of a record, and all answers."""
    if isinstance(row.get("fields"), Mapping):
        return dict(row["fields"]), _nested(row.get("responses") or [])
    fields: dict[str, Any] = {}
    replies: list[QuestionReply] = []
    for key, value in row.items():
        if key.endswith(".responses"):
            users, statuses = (_listed(row.get(f"{key}.{name}")) for name in ("users", "status"))
            values = _listed(value)
            replies += [
                _reply(key.removesuffix(".responses"), _at(users, index), each, _at(statuses, index))
                for index, each in enumerate(values)
            ]
        elif (answers := hub_answers(value)) is not None:
            replies += [_reply(key, each["user_id"], each["value"], each["status"]) for each in answers]
        elif not re.search(r"\.responses\.(users|status)$|[.-]suggestion(\.|-|$)", key) and key not in _BESIDE:
            fields[key] = value
    return fields, [reply for reply in replies if reply.value is not None]


def _nested(responses: Any) -> list[QuestionReply]:
    if isinstance(responses, Mapping):  # version 2: lists by question
        return [
            _reply(question, each.get("user_id"), each.get("value"), each.get("status"))
            for question, answers in responses.items()
            for each in (object_of(answer, question) for answer in listed(answers, question))
        ]
    replies = []
    for each in (object_of(response, "responses") for response in listed(responses, "responses")):
        values = each.get("values")
        if isinstance(values, Mapping):  # version 1: a person's answers to all questions
            said = {name: value.get("value") if isinstance(value, Mapping) else value for name, value in values.items()}
            replies += [_reply(name, each.get("user_id"), value, each.get("status")) for name, value in said.items()]
        elif "question_name" in each:
            replies.append(_reply(each["question_name"], each.get("user_id"), each.get("value"), each.get("status")))
        elif "status" not in each:
            raise BadRow(
                f"a response has the keys {', '.join(map(str, each))}, and Argilla's have `values` and `status`; "
                "write a row for each vote with prompt, response_a, response_b and choice"
            )
        elif each["status"] != "submitted":
            replies.append(_reply("", each.get("user_id"), None, each.get("status")))
    return replies


def _reply(question: str, user: Any, value: Any, status: Any) -> QuestionReply:
    # Version 2 exports nested answers without a status: they are those that were submitted.
    value = value if re.match("(comment|rewrite)(_|$)", str(question)) else parsed(value)
    return QuestionReply(str(question), labeler_of(user), value, "submitted" if status is None else str(status))


def _listed(value: Any) -> list[Any]:
    value = parsed(value)
    return value if isinstance(value, list) else [] if value is None else [value]


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


# --- votes ---------------------------------------------------------------------------------------------------------


def _votes(fields: dict[str, Any], user: str | None, said: Sequence[QuestionReply], options: ImportOptions) -> Read:
    """The votes of one person on one record."""
    task = task_of(fields, options)
    read: Read = []
    comments: list[str] = []
    votes: list[QuestionReply] = []
    beside: list[QuestionReply] = []
    wanted = options.columns.get("choice")
    for reply in said:
        if is_ours(reply.question) and reply.question != "comment":
            beside.append(reply)
        elif wanted and reply.question != wanted:
            continue
        elif _is_spans(reply.value):
            beside.append(reply)
        elif reply.question == "comment" or _is_comment(reply, task, options):
            comments.append(str(reply.value))
        else:
            votes.append(reply)
    who = Who(user, "\n".join(comments))
    if not votes:
        return with_answers([], task, _asked(beside), options) or [
            PassedOver("an answer in free text alone, which is no vote")
        ]
    compared = [reply for reply in votes if len(task.answers) > 1 and not _is_number(reply.value)][:1]
    for reply in votes:
        is_score = _is_number(reply.value) and (options.scale or not compared) and len(task.answers) > 1
        if reply is not (compared or votes)[0] and not is_score:
            beside.append(reply)
        elif reply in compared:
            read += _ranking(task, reply, who, options)
        else:
            read += scored(_rated(reply, task, options), reply.value, who, options)
    return with_answers(read, task, _asked(beside), options)


def _asked(replies: Sequence[QuestionReply]) -> list[QuestionAnswer]:
    """Replies that are no vote, as answers to questions."""
    return [QuestionAnswer(reply.question, "", _kind(reply), reply.value) for reply in replies]


def _kind(reply: QuestionReply) -> AskedKind:
    if _is_spans(reply.value):
        return "spans"
    if _is_number(reply.value):
        return "rating"
    if isinstance(reply.value, list) and all(isinstance(each, str) for each in reply.value):
        return "labels"
    return "text" if reply.question.startswith(("comment_", "rewrite_")) else "label"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_spans(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) and "start" in each for each in value)
    )


def _is_comment(reply: QuestionReply, task: ShownTask, options: ImportOptions) -> bool:
    """Whether a text is no choice: a reason, or a better answer."""
    if not isinstance(reply.value, str) or reply.question == "preference":
        return False
    if len(task.answers) == 1:
        return not re.fullmatch(r"[\w./% -]{1,24}", reply.value) or " " in reply.value.strip()
    try:
        said_of(reply.value, task, options)
    except PassedOver:
        return False
    except BadRow:
        return " " in reply.value.strip()  # one word that is no choice is an error to be named
    return False


def _rated(reply: QuestionReply, task: ShownTask, options: ImportOptions) -> ShownTask:
    """The task with the one answer that a number stands at."""
    if len(task.answers) == 1:
        return task
    names = [answer.key for answer in task.answers]
    holding = [place for place, name in enumerate(names) if plain(name) in plain(reply.question)]
    ends = {ending(part) for part in re.split(r"[\W_]*(?:rating|score|quality)[\W_]*", reply.question)} - {""}
    holding = holding or [place for place, name in enumerate(names) if ending(name) in ends]
    if len(holding) != 1:
        raise BadRow(
            f"the question '{reply.question}' rates one of {', '.join(names)}, and its name does not say which"
        )
    return task._replace(answers=(task.answers[holding[0]],))


def _ranking(task: ShownTask, reply: QuestionReply, who: Who, options: ImportOptions) -> Read:
    """A ranking (options in their order, or each with its rank), or a label that names an answer."""
    value = reply.value
    if not isinstance(value, list) or len(value) < 2:
        return judged(task, value, who, options)
    ranks: dict[int, float] = {}
    for order, each in enumerate(value, 1):
        name, rank = (each.get("value"), each.get("rank")) if isinstance(each, Mapping) else (each, order)
        place = said_of(name, task, options)
        if not isinstance(place, int) or rank is None:
            raise BadRow(f"the ranking '{reply.question}' has {each!a}; expected the name of an answer and its rank")
        ranks[place] = rank
    if len(ranks) < len(task.answers):
        ranked_ones = sorted(ranks)
        task = task._replace(answers=tuple(task.answers[place] for place in ranked_ones))
        ranks = {new: ranks[old] for new, old in enumerate(ranked_ones)}
    return ranked(task, [ranks[place] for place in range(len(task.answers))], who)
