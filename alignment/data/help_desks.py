"""The exports of help desks: which of their keys hold what, and the nested tickets of Zendesk, Intercom, Freshdesk."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from alignment.data.opening import BadRow, DataError
from alignment.data.times import TIME_KEYS

CUSTOMER_FLAGS = (
    *("incoming", "is_incoming", "inbound", "is_inbound", "from_customer", "is_from_customer", "is_customer"),
    *("from_user", "is_user"),
)
"""Columns that are true where the customer wrote the message."""
AGENT_FLAGS = (
    *("from_agent", "is_from_agent", "is_agent", "outgoing", "is_outgoing", "outbound", "is_outbound"),
    *("is_bot", "from_bot", "is_staff", "from_staff", "from_support", "is_assistant"),
)
"""Columns that are true where the assistant did."""
TICKET_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "conversation_id": (
        *(("conversation_id",), ("ticket_id",), ("ticket_number",), ("case_id",), ("case_number",), ("thread_id",)),
        *(("conversations_thread_id",), ("dialogue_id", "dialog_id"), ("chat_id",)),
    ),
    "role": (("role",), ("author_role",), ("author_type",), ("sender_type",), ("sender_role",), ("incoming",)),
    "text": (
        ("text",),
        ("plain_body", "body_text", "body", "html_body"),
        ("comment_body",),
        ("comment",),
        ("message",),
        ("content",),
        ("message_text",),
    ),
    "ts": (
        *((key,) for key in TIME_KEYS),
        *(("created_at",), ("timestamp",), ("sent_at",), ("created_time",), ("created_datetime",), ("created",)),
        *(("created_on",), ("created_date", "date_created"), ("date",), ("datetime", "date_time"), ("time",)),
        *(("sent",), ("sent_on",), ("sent_date", "date_sent"), ("sent_time",), ("sent_datetime",), ("posted_at",)),
        *(("received_at",), ("message_time",), ("message_date",)),
    ),
    "is_public": (("is_public",), ("public",)),
    "is_internal": (("is_internal",), ("internal",), ("private",), ("is_private",)),
    "type": (("message_type", "type"),),
}
"""The columns of ticket files by what they hold. Columns in one bracket hold the same text, the first of them the plain
one; columns in two brackets may differ, so a file with both is refused."""
WEAKER_COLUMNS: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "role": (
        (("direction",), *((name,) for name in (*CUSTOMER_FLAGS[1:], *AGENT_FLAGS))),
        (("speaker",), ("sender",), ("author",), ("from",)),
    ),
    "ts": (
        (
            (
                *("message_index", "message_number", "message_no", "seq", "sequence", "seq_no", "turn_index"),
                *("turn_number", "turn_id", "turn", "position", "index"),
            ),
        ),
    ),
}
"""Columns that are read where a file has none of the ones above, nor of those before them."""
MESSAGE_KEYS = (
    *("conversation_id", "conversations_thread_id", "ticket_id", "ticket_number", "thread_id", "dialogue_id"),
    *("dialog_id", "chat_id"),
    *(name for family in TICKET_COLUMNS["role"] for name in family),
    *(name for tier in WEAKER_COLUMNS["role"] for family in tier for name in family),
)
"""A row with a `text` and one of these keys is a message, not a document."""
TICKET_ROLES = {
    **dict.fromkeys(("user", "customer", "client", "requester", "end-user", "human"), "user"),
    **dict.fromkeys(("end_user", "enduser", "end user", "contact", "lead", "visitor"), "user"),
    **dict.fromkeys(("assistant", "agent", "support", "staff", "bot"), "assistant"),
    **dict.fromkeys(("incoming", "inbound"), "user"),
    **dict.fromkeys(("outgoing", "outbound"), "assistant"),
    **dict.fromkeys(("admin", "operator", "teammate", "light agent"), "assistant"),
    "system": "system",
}
_NESTED = (
    *("id", "display_id", "ticket_id", "conversation_id", "type", "created_at", "requester_id", "comments", "notes"),
    *("description", "description_text", "description_html", "source", "conversation_message", "conversation_parts"),
    "conversations",
)
_NEEDED = ("conversation_id", "role", "text")
# Keys of other shapes: a row that has one is no message of a ticket.
_OTHERS = ("messages", "prompt", "parent_id", "message_tree_id", "chosen", "completion", "conversation")


def ticket_columns(row: Mapping[str, Any], place: str) -> dict[str, str] | None:
    """Which column of a file of messages holds what, told by one row; None if they are not messages of tickets.

    Raises:
        DataError: two columns may hold the same thing.
    """
    by_name = {plain_name(key): key for key in row}
    if any(key in by_name for key in _OTHERS):
        return None
    found: dict[str, str] = {}
    twice: dict[str, list[str]] = {}
    for target, families in TICKET_COLUMNS.items():
        tiers = (families, *WEAKER_COLUMNS.get(target, ()))
        present = next(filter(None, (_present(by_name, tier) for tier in tiers)), [])
        ours = [column for column in present if column == target or column in TIME_KEYS]  # renamed by the user
        if present:
            found[target] = (ours or present)[0]
        if len(ours or present) > 1:
            twice[target] = ours or present
    if any(target not in found for target in _NEEDED):
        return None
    for target, (first, second, *_) in twice.items():
        raise DataError(
            f"{place}: '{first}' and '{second}' may both be the {target} of a ticket's message; name one: "
            f"data.columns={{{target}: {first}}} (--column {target}={first})"
        )
    return found


def _present(by_name: Mapping[str, str], families: Sequence[Sequence[str]]) -> list[str]:
    """The first column of each family that the file has."""
    known = [next((by_name[name] for name in family if name in by_name), None) for family in families]
    return [column for column in known if column is not None]


def plain_name(key: Any) -> str:
    """A column's name in lower case with underscores: `Created At` and `createdAt` are `created_at`."""
    return re.sub(r"[\s-]+|(?<=[a-z0-9])(?=[A-Z])", "_", str(key).strip()).lower()


def flagged_role(value: Any, theirs: str, ours: str) -> Any:
    """The role that a yes or no says in a column, by the name that the column had in the file; another value as it is.

    Raises:
        BadRow: neither that name nor the one it has now says who wrote the message where it is true.
    """
    flag = flag_of(value)
    if flag is None:
        return value
    for name in (plain_name(theirs), plain_name(ours)):
        if name in (*CUSTOMER_FLAGS, *AGENT_FLAGS):
            return "user" if flag == (name in CUSTOMER_FLAGS) else "assistant"
    raise BadRow(
        f"'{theirs}' is {value!r}, which does not say who wrote the message; name it --column incoming={theirs} if the "
        f"customer did where it is true, --column from_agent={theirs} if the agent did"
    )


def is_internal_type(value: Any, role_column: str) -> bool:
    """Whether the type of a message is that of a note; HubSpot, which has a direction, calls notes COMMENT."""
    name = plain_name(value)
    return name in ("note", "internal", "internal_note", "private_note", "internal_comment") or (
        name == "comment" and plain_name(role_column) == "direction"
    )


def nested_messages(row: Mapping[str, Any], agents: Collection[str]) -> list[dict[str, Any]] | None:
    """The messages of a nested ticket, by the names of TICKET_COLUMNS; None if it is no such ticket.

    Raises:
        BadRow: something of the ticket that decides who speaks is missing.
    """
    if isinstance(row.get("helpdesk_ticket"), Mapping):
        row = row["helpdesk_ticket"]
    ticket = row["ticket"] if isinstance(row.get("ticket"), Mapping) and len(row) <= 2 else row
    for is_such, read in ((_is_zendesk, _zendesk), (_is_intercom, _intercom), (_is_freshdesk, _freshdesk)):
        if is_such(ticket):
            return list(read(ticket, agents))
    return None


def unused_keys(row: Mapping[str, Any]) -> list[str]:
    """The keys of a nested ticket that hold something and are not used."""
    ticket = next((row[key] for key in ("helpdesk_ticket", "ticket") if isinstance(row.get(key), Mapping)), row)
    return [str(key) for key, value in ticket.items() if key not in _NESTED and value not in (None, "", [], {})]


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The items of a list that are objects; an item such as {"note": {...}} is what it wraps."""
    items = [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
    return [item["note"] if isinstance(item.get("note"), Mapping) else item for item in items]


def _text(item: Mapping[str, Any], *keys: str) -> str:
    return next((str(item[key]) for key in keys if isinstance(item.get(key), str) and item[key].strip()), "")


def _is_zendesk(ticket: Mapping[str, Any]) -> bool:
    comments = _objects(ticket.get("comments"))
    return bool(comments) and any("author_id" in comment for comment in comments)


def _zendesk(ticket: Mapping[str, Any], agents: Collection[str]) -> Iterator[dict[str, Any]]:
    """Zendesk: `comments` with `author_id`; the ticket's requester is the customer, everyone else an agent."""
    requester = ticket.get("requester_id")
    if requester is None and not agents:
        raise BadRow("a Zendesk ticket without requester_id; name the agents' author ids in data.agents (--agent)")
    comments = _objects(ticket.get("comments"))
    texts = [_text(comment, "plain_body", "body", "html_body") for comment in comments]
    yield from _opening(ticket, texts)
    for comment, text in zip(comments, texts, strict=True):
        author = comment.get("author_id")
        if author is None:
            raise BadRow("a comment without author_id, so it is not known who wrote it")
        is_agent = str(author) in agents if agents else author != requester
        yield _message(ticket, "assistant" if is_agent else "user", text, comment.get("created_at")) | {
            "is_public": comment.get("public", True),
            "has_files": bool(comment.get("attachments")),
        }


def _opening(ticket: Mapping[str, Any], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The customer's description, unless the first messages repeat it, as Zendesk's do."""
    description = _text(ticket, "description_text", "description", "description_html")
    bare = " ".join(description.split())
    if bare and not any(bare in " ".join(text.split()) for text in texts):
        yield _message(ticket, "user", description, ticket.get("created_at"))


def _message(ticket: Mapping[str, Any], role: Any, text: str, ts: Any) -> dict[str, Any]:
    key = next((ticket[key] for key in ("id", "display_id", "ticket_id", "conversation_id") if key in ticket), None)
    return {"conversation_id": key, "role": role, "text": text, "ts": ts}


def _is_intercom(ticket: Mapping[str, Any]) -> bool:
    return "conversation_parts" in ticket and any(key in ticket for key in ("source", "conversation_message", "id"))


def _intercom(ticket: Mapping[str, Any], agents: Collection[str]) -> Iterator[dict[str, Any]]:
    """Intercom: `source`, then `conversation_parts`; a part without a body is an event, a `note` is internal."""
    opening = ticket.get("source", ticket.get("conversation_message"))
    parts = ticket["conversation_parts"]
    parts = parts.get("conversation_parts") if isinstance(parts, Mapping) else parts
    for index, part in enumerate([opening, *_objects(parts)]):
        if not isinstance(part, Mapping) or not _text(part, "body"):
            continue
        author = part.get("author")
        author = author if isinstance(author, Mapping) else {}
        names = {str(author.get(key)) for key in ("id", "name", "email")}
        role = "assistant" if names & set(agents) else author.get("type")
        ts = part.get("created_at", None if index else ticket.get("created_at"))
        is_internal = str(part.get("part_type")).startswith("note")
        yield _message(ticket, role, _text(part, "body"), ts) | {
            "is_internal": is_internal,
            "has_files": bool(part.get("attachments")),
        }


def _is_freshdesk(ticket: Mapping[str, Any]) -> bool:
    return any("incoming" in note for key in ("notes", "conversations") for note in _objects(ticket.get(key)))


def _freshdesk(ticket: Mapping[str, Any], _: Collection[str]) -> Iterator[dict[str, Any]]:
    """Freshdesk: the `description` is the customer's, then `notes` or `conversations`, `incoming` or not."""
    notes = _objects(ticket.get("notes")) or _objects(ticket.get("conversations"))
    texts = [_text(note, "body_text", "body", "body_html") for note in notes]
    yield from _opening(ticket, texts)
    for note, text in zip(notes, texts, strict=True):
        yield _message(ticket, note.get("incoming"), text, note.get("created_at")) | {
            "is_internal": note.get("private", False),
            "has_files": bool(note.get("attachments")),
        }


def role_of(value: Any, agents: Collection[str]) -> str:
    """`user`, `assistant` or `system` for a role, or for Freshdesk's `incoming`.

    Raises:
        BadRow: nothing known.
    """
    name = str(value).strip()
    if name in agents:
        return "assistant"
    flag = flag_of(value)
    known = TICKET_ROLES.get(name.lower()) or ({True: "user", False: "assistant"}[flag] if flag is not None else None)
    if known is None:
        raise BadRow(
            f"role {name!r}; expected {', '.join(TICKET_ROLES)}; --agent NAME (data.agents) names the roles of the "
            "assistant, and all that are not known are then the customer's"
        )
    return known


def flag_of(value: Any) -> bool | None:
    """Yes or no, also as CSV files write it; None for anything else."""
    known = {"true": True, "yes": True, "1": True, "t": True, "false": False, "no": False, "0": False, "f": False}
    return known.get(str(value).strip().lower().removesuffix(".0"))
