"""Import rows from Slack exports, support tickets, question lists in Markdown and plain documents."""

from __future__ import annotations

import html
import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from alignment.data.messages import merge_turns, text_of
from alignment.data.row_files import BadRow, DataError
from alignment.templates.rendering import Message

Rows = Iterator[tuple[str, Any]]
TEXT_SUFFIXES = (".md", ".markdown", ".txt")
TICKET_KEYS = ("conversation_id", "role", "text")
TICKET_ROLES = {
    **dict.fromkeys(("user", "customer", "client", "requester", "end-user", "human"), "user"),
    **dict.fromkeys(("assistant", "agent", "support", "staff", "bot"), "assistant"),
    "system": "system",
}


class PassedOver(BadRow):
    """The reason why a valid row yields no example; counted apart from bad rows."""


# --- documents and question lists ----------------------------------------------------------------------------------


def text_files(path: Path) -> list[Path]:
    """The Markdown and text files at or below a path, sorted."""
    files = [path] if path.is_file() else path.rglob("*")
    return sorted(file for file in files if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())


def document_rows(files: Sequence[Path]) -> Rows:
    """Yield one `text` row for each file, with the file as its `source_id`."""
    for file in files:
        yield str(file), {"text": _read(file), "source_id": str(file)}


def faq_rows(files: Sequence[Path]) -> Rows:
    """Yield a `question`, `answer` row for each heading of Markdown files that has text below it."""
    for file in files:
        heading_line, question, answer = 1, "", []
        fence = False
        for line_number, line in enumerate([*_read(file).split("\n"), "# "], 1):
            fence ^= line.lstrip().startswith(("```", "~~~"))  # a comment in a code block is not a heading
            heading = None if fence else re.match(r"#{1,6}\s+(.*?)[\s#]*$", line)
            if heading is None:
                answer.append(line)
                continue
            text = "\n".join(answer).strip()
            if question and text:
                yield f"{file}:{heading_line}", {"question": question, "answer": text}
            heading_line, question, answer = line_number, heading.group(1), []


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}; save it as UTF-8") from None


# --- support tickets -----------------------------------------------------------------------------------------------


def ticket_rows(rows: Rows, agents: Collection[str] = ()) -> Rows:
    """Yield a `messages` row for each ticket, from one row for each message: conversation_id, role, text, optional ts.

    The messages of a conversation are sorted by `ts` (a number or an ISO time), and consecutive messages of one role
    are merged. A bad message makes its whole conversation bad: without it, the conversation would be a different one.

    Args:
        rows: all rows of a file, which are kept in memory because a conversation's messages need not be adjacent.
        agents: further roles, or names in the role column, that count as the assistant.
    """
    conversations: dict[str, list[tuple[str, Any]]] = {}
    for where, row in rows:
        key = row.get("conversation_id") if isinstance(row, Mapping) else None
        if key in (None, ""):
            yield where, row if isinstance(row, BadRow) else BadRow("no conversation_id")
        else:
            conversations.setdefault(str(key), []).append((where, row))
    for messages in conversations.values():
        try:
            turns = [(_time(row.get("ts")), _ticket_turn(where, row, agents)) for where, row in messages]
        except BadRow as reason:
            yield messages[0][0], reason
            continue
        if all(time is not None for time, _ in turns):
            turns.sort(key=lambda turn: turn[0] or 0.0)
        yield messages[0][0], _conversation([message for _, message in turns])


def _ticket_turn(where: str, row: Mapping[str, Any], agents: Collection[str]) -> Message:
    role = text_of(row, "role").strip()
    known = "assistant" if role in agents else TICKET_ROLES.get(role.lower())
    if known is None:
        raise BadRow(f"role {role!r}; expected {', '.join(TICKET_ROLES)}, or name it in data.agents")
    return Message(role=known, content=text_of(row, "text").strip())


def _time(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        raise BadRow(f"ts {value!r} is neither a number nor an ISO time such as 2026-01-31T09:00") from None


def _conversation(messages: Sequence[Message]) -> Any:
    turns = merge_turns(messages)
    if not turns:
        return PassedOver("a conversation in which the assistant answered no question")
    return {"messages": list(turns)}


# --- Slack ---------------------------------------------------------------------------------------------------------


def is_slack_export(path: Path) -> bool:
    """Return whether the path is a zip file, or a folder with Slack's list of channels or users."""
    return path.suffix.lower() == ".zip" or (path / "channels.json").is_file() or (path / "users.json").is_file()


def slack_rows(path: Path, agents: Collection[str]) -> Rows:
    """Yield a `messages` row for each thread of an export (a folder or a zip file) that an agent answered.

    Args:
        agents: ids or names (real, display or user name) of the users whose messages are the assistant's.

    Raises:
        DataError: no agent is named, or no named agent wrote a message.
    """
    if not agents:
        raise DataError(f"{path}: a Slack export; set data.agents to the users whose messages are the assistant's")
    names: dict[str, str] = {}
    agent_ids: set[str] = set()
    threads: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    authors: set[str] = set()
    for file, content in _json_files(path):
        channel, _, day = file.rpartition("/")
        if day == "users.json":
            for user in content:
                profile = user.get("profile") or {}
                user_names = {user.get("name"), user.get("real_name"), *map(profile.get, ("real_name", "display_name"))}
                names[user["id"]] = profile.get("display_name") or user.get("real_name") or user.get("name")
                if user_names & set(agents):
                    agent_ids.add(user["id"])
        elif re.fullmatch(r"\d{4}-\d\d-\d\d\.json", day):
            for index, message in enumerate(content, 1):
                author = message.get("user") or message.get("bot_id") or message.get("username")
                has_text = message.get("type") == "message" and str(message.get("text") or "").strip()
                if author and has_text and message.get("subtype") in (None, "bot_message", "thread_broadcast"):
                    authors.add(str(author))
                    thread = (channel, str(message.get("thread_ts") or message.get("ts")))
                    threads.setdefault(thread, []).append((f"{path}:{file}:row {index}", message))
    agent_ids |= set(agents) & authors
    if not agent_ids & authors:
        shown = ", ".join(sorted({names.get(author, author) for author in authors})[:20]) or "nobody"
        raise DataError(f"{path}: data.agents={list(agents)} wrote nothing here; these did: {shown}")
    for _, messages in sorted(threads.items()):
        messages.sort(key=lambda item: float(item[1].get("ts") or 0))
        turns = [
            Message(
                role="assistant"
                if {message.get("user"), message.get("bot_id"), message.get("username")} & agent_ids
                else "user",
                content=_slack_text(message["text"], names),
            )
            for _, message in messages
        ]
        yield messages[0][0], _conversation(turns)


def _json_files(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the relative name and the content of each JSON file of an export, users first."""
    try:
        if path.is_dir():
            files = {str(file.relative_to(path)): file for file in path.rglob("*.json")}
            for name in sorted(files, key=_users_first):
                yield name, _parse(path, name, files[name].read_bytes())
        else:
            with zipfile.ZipFile(path) as archive:
                for name in sorted((name for name in archive.namelist() if name.endswith(".json")), key=_users_first):
                    yield name, _parse(path, name, archive.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as a Slack export: {error}") from None


def _users_first(name: str) -> tuple[bool, str]:
    return not name.endswith("users.json"), name


def _parse(path: Path, name: str, content: bytes) -> list[Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}:{name}: not valid JSON: {error}") from None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _slack_text(text: str, names: Mapping[str, str]) -> str:
    """Slack's markup as plain text: `<@U1>` becomes a name, `<url|label>` becomes label and address."""
    text = re.sub(r"<@(\w+)(?:\|([^>]*))?>", lambda m: "@" + (m[2] or names.get(m[1]) or m[1]), text)
    text = re.sub(r"<[#!](?:\w+\|)?([^>]*)>", lambda m: m[1], text)
    text = re.sub(r"<([^|>\s]+)\|([^>]*)>", lambda m: f"{m[2]} ({m[1]})", text)
    text = re.sub(r"<((?:https?|mailto):[^>\s]+)>", lambda m: m[1], text)
    return html.unescape(text).strip()
