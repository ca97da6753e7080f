"""What to do about a row that no shape reads, where its keys and texts tell what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignment.data.keys import is_empty, plain_key
from alignment.data.messages import parsed
from alignment.data.nested import shown_columns, suggested_columns

_AUTHORS = ("from", "author", "sender", "user", "from_user", "author_id", "sender_id", "from_id")
_BODIES = ("content", "text", "body", "message", "comment")
_THREADS = (
    "in_reply_to",
    "reply_to",
    "reference",
    "reply_to_message_id",
    "reply_to_id",
    "timestamp",
    "date",
    "created_date_time",
)
_LONG = 60
"""Letters of a key that is rather a text."""


def unread_hint(row: Mapping[str, Any], shape: str | None, reads: Callable[[Mapping[str, str]], bool]) -> str:
    """The fix for a row that a stage does not read, "" if nothing is known of it.

    Args:
        shape: what it was taken for.
        reads: whether the stage would read it with these columns.
    """
    names = [plain_key(str(key)) for key in row]
    if any(len(str(key)) > _LONG or str(key).rstrip().endswith(("?", ".", "!")) for key in row) and shape is None:
        return "these are texts, so the file has no header line; put one above them, as prompt,completion"
    if shape == "text":
        return (
            "a text has neither question nor answer (a file of text is one document); write an object a line, "
            '{"prompt": ...} or {"prompt": ..., "completion": ...}, as .jsonl'
        )
    columns = suggested_columns(row)
    if columns and shape in (None, "prompt") and reads(columns):
        return f"its texts lie inside other keys: {shown_columns(columns)} reads them"
    if shape is None and all(any(name in names for name in group) for group in (_AUTHORS, _BODIES, _THREADS)):
        return (
            "the rows are single messages of a chat or of mails; write a row for each with the columns "
            "conversation_id, role (user or assistant), text and ts, and those of one conversation_id become one "
            "conversation"
        )
    inner = [str(key) for key, value in row.items() if isinstance(parsed(value), dict | list) and not is_empty(value)]
    if inner and shape in (None, "prompt"):
        return (
            f"its texts lie inside {', '.join(map(repr, inner[:4]))} in a form that is not read; write each "
            'conversation out as {"messages": [{"role": "user", "content": ...}, '
            '{"role": "assistant", "content": ...}]}, '
            "or name texts inside with a path, as --column prompt=KEY.INNER --column completion=KEY.0.INNER"
        )
    return ""
