"""Put the messages of support tickets together to conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.data.help_desks import (
    flag_of,
    flagged_role,
    is_internal_type,
    nested_messages,
    role_of,
    ticket_columns,
    unused_keys,
)
from alignment.data.html_text import body_text, is_html
from alignment.data.messages import check_text, key_names, merge_turns
from alignment.data.opening import BadRow, DataError, Note, PassedOver
from alignment.data.ticket_order import refuse_lost_order
from alignment.data.times import TIME_KEYS, TimeColumn
from alignment.templates.rendering import Message

Rows = Iterator[tuple[str, Any]]


@dataclass
class TicketMessage:
    """One message: its place, who wrote it, its text, and its time or number as the file has it."""

    where: str
    role: Any
    text: Any
    ts: Any
    rest: Mapping[str, Any] = field(default_factory=dict)
    """The columns that are not read, in a file without a column of times."""


def is_ticket(row: Any, where: str) -> bool:
    """Whether a row is a message of a ticket, or a ticket with its messages inside."""
    if not isinstance(row, Mapping):
        return False
    try:
        return nested_messages(row, ()) is not None or ticket_columns(row, where) is not None
    except BadRow:
        return True


def ticket_rows(
    rows: Rows,
    agents: Collection[str] = (),
    note: Note = lambda text: None,
    renamed: Mapping[str, str | None] | None = None,
) -> Rows:
    """Yield a `messages` row for each ticket, from one row for each message, or one nested row for each ticket.

    The messages of a conversation are sorted by their times, and consecutive messages of one role are merged. Internal
    notes are left out. A bad message makes its whole conversation bad: without it, the conversation would be another.

    Args:
        rows: all rows of a file, which are kept in memory because a conversation's messages need not be adjacent.
        agents: further roles, names or ids that count as the assistant.
        renamed: the names that columns had in the file, by those they have now, for errors.

    Raises:
        DataError: the rows are no tickets, two columns may hold the same, or times can be read in two ways.
    """
    reader = _TicketReader(agents, renamed or {})
    for where, row in rows:
        try:
            reader.add(where, row)
        except BadRow as reason:
            yield where, reason
    conversations = reader.conversations
    said = reader.finish()
    refuse_lost_order([[(each.where, each.rest) for each in messages] for messages in conversations.values()])
    times = TimeColumn(
        ((message.where, message.ts) for messages in conversations.values() for message in messages),
        *reader.time_column(),
    )
    for text in [*said, *times.notes]:
        note(text)
    customers: Counter[str] = Counter()
    for messages in conversations.values():
        where = messages[0].where
        try:
            turns = [
                Message(role=_role(message.role, agents, customers), content=check_text(message.text, "'text'").strip())
                for message in messages
            ]
            order = times.order([message.ts for message in messages])
            turns = [turns[index] for index in order]
        except BadRow as reason:
            yield where, reason
            continue
        yield where, conversation_row(turns, [str(messages[index].role) for index in order])
    if customers:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(customers.items()))
        note(f"roles that are not known are read as the customer's, because agents are named: {named[:300]}")


def _role(value: Any, agents: Collection[str], customers: Counter[str]) -> str:
    """The role of a message; where agents are named, one that is not known is the customer's, and counted."""
    try:
        return role_of(value, agents)
    except BadRow:
        name = str(value or "").strip()
        if not agents or not name:
            raise
    customers[name] += 1
    return "user"


class _TicketReader:
    """Collects the messages of all tickets, and what is to be said about them."""

    def __init__(self, agents: Collection[str], renamed: Mapping[str, str | None]) -> None:
        self._agents, self._renamed = agents, renamed
        self._columns: dict[str, str] | None = None
        self.conversations: dict[str, list[TicketMessage]] = {}
        self._internal = self._with_files = 0
        self._unused: Counter[str] = Counter()

    def add(self, where: str, row: Any) -> None:
        """Take in a row.

        Raises:
            BadRow: it cannot be used.
            DataError: no row of a ticket.
        """
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow(f"expected an object with named keys, found a {type(row).__name__}")
        nested = nested_messages(row, self._agents)
        self._unused.update(unused_keys(row) if nested is not None else ())
        for message in [self._flat(where, row)] if nested is None else nested:
            key = message["conversation_id"]
            if key in (None, ""):
                raise BadRow("no conversation_id")
            if flag_of(message.get("is_public", True)) is False or flag_of(message.get("is_internal", False)):
                self._internal += 1
                continue
            self._with_files += bool(message.get("has_files"))
            if message.get("has_files") and message["text"] == "":
                continue
            ts = message.get("ts")
            if isinstance(ts, list | dict):
                raise BadRow(f"ts {ts!r} is neither a number nor a time such as 2026-01-31T09:00"[:200])
            self.conversations.setdefault(str(key), []).append(
                TicketMessage(where, message["role"], message["text"], ts, message.get("rest", {}))
            )

    def _flat(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        if self._columns is None:
            self._columns = ticket_columns(row, where)
            if self._columns is None:
                raise DataError(
                    f"{where}: found the keys {key_names(row)[:200]}; expected conversation_id, role and text of a "
                    "ticket's message (data.columns renames, --column OURS=THEIRS)"
                )
        used = set(self._columns.values())
        self._unused.update(str(key) for key, value in row.items() if key not in used and value not in (None, "", []))
        missing = [theirs for ours, theirs in self._columns.items() if theirs not in row and ours != "type"]
        if missing:
            raise BadRow(f"no key '{missing[0]}'; found the keys {key_names(row)[:200]}")
        message = {ours: row.get(theirs) for ours, theirs in self._columns.items()}
        column = self._columns["role"]
        if is_internal_type(message.get("type"), column):
            return {**message, "is_internal": True}
        if str(message["role"]).strip() not in self._agents:
            message["role"] = flagged_role(message["role"], self._renamed.get(column) or column, column)
        rest = {} if "ts" in message else {key: value for key, value in row.items() if key not in used}
        return {**message, "rest": rest}

    def time_column(self) -> tuple[str, str | None]:
        """The one of TIME_KEYS that says how times are read, and the name of their column in the file."""
        column = (self._columns or {}).get("ts")
        return column if column in TIME_KEYS else "ts", self._renamed.get(column, column) if column else None

    def finish(self) -> list[str]:
        """What is to be said; bodies in HTML are made text here, because all of them decide whether they are HTML."""
        said = []
        if self._internal:
            said.append(f"{self._internal} internal notes are left out")
        if self._with_files:
            said.append(f"files of {self._with_files} messages are left out")
        if self._unused:
            said.append(f"keys of tickets that are not used: {', '.join(sorted(self._unused))[:300]}")
        messages = [each for conversation in self.conversations.values() for each in conversation]
        written = [each for each in messages if isinstance(each.text, str) and is_html(each.text)]
        if written and 2 * len(written) < len(messages):
            said.append(f"{len(written)} of {len(messages)} messages look like HTML and are left as they are")
        elif written:
            num_images = 0
            for each in written:
                each.text, images = body_text(each.text)
                num_images += images
            images_said = f"; {num_images} images in them are left out" if num_images else ""
            said.append(f"{len(written)} of {len(messages)} messages are HTML, read as text{images_said}")
        return said


def conversation_row(messages: Sequence[Message], speakers: Sequence[str] = ()) -> Any:
    """The `messages` row of a conversation, or the reason why it is passed over.

    Args:
        speakers: who wrote each message, as the file says it.
    """
    turns = merge_turns(messages)
    if not turns:
        answering = _answering(messages, speakers)
        advice = f"; {answering} speaks after the customer: --agent {answering} (data.agents) if it answers"
        return PassedOver(f"a conversation in which the assistant answered no question{advice if answering else ''}")
    return {"messages": list(turns)}


def _answering(messages: Sequence[Message], speakers: Sequence[str]) -> str | None:
    """The speaker of a system turn after a customer's, where nobody else answered: it may be the assistant."""
    roles = [message["role"] for message in messages]
    if "assistant" in roles or "user" not in roles:
        return None
    after = zip(roles[roles.index("user") :], speakers[roles.index("user") :], strict=False)
    return next((speaker.strip() for role, speaker in after if role == "system"), None)
